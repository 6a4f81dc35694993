"""The compose file's commands, users, environments, mounts and networks, as processes: a run of three units."""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deployed.compose import compose
from tests.deployed.containers import Containers
from tests.other_user import needs_root

from isthmus.demo import write_demo
from isthmus.privacy.reading import read_ledger
from isthmus.server.deploy.certs import make_certificates

UNITS = ("shopping", "music", "dining")
SETTINGS = ("--server", "/etc/isthmus/server.toml")
FEDERATION = """name = "demo"
domains = ["shopping", "music", "dining"]

[features]
encoder = "hash:64"

[backbone]
width = 8
layers = 1
heads = 2
feedforward = 16
positions = 8

[training]
rivals = 20

[strategy]
rounds = 1
evaluate_every = 0
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployed,
    needs_root,
    pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces need `ip`"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """What the head of the compose file says to make: data, certificates, secrets; each for the user who reads it."""
    folder = Path(tempfile.mkdtemp(prefix="isthmus-compose-"))
    folder.chmod(0o755)
    write_demo(folder / "isthmus-demo")
    make_certificates(folder / "certs", ["coordinator"])
    shutil.chown(folder / "certs" / "server.key", 10001, 10001)
    (folder / "secrets").mkdir()
    (folder / "kits").mkdir()
    for name in ("coordinator", *UNITS):
        key = folder / "secrets" / f"{name}.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o400)
        shutil.chown(key, 10001 if name == "coordinator" else 10011)
    yield folder
    shutil.rmtree(folder)


def test_what_the_compose_file_says_is_a_federation_that_runs(folder: Path) -> None:
    """Every health check says well, a run ends, each ledger is charged and clean, and the borders hold."""
    with Containers(compose(), folder) as containers:
        containers.up("coordinator")
        for name in UNITS:
            kit = f"/var/lib/isthmus/{name}.zip"
            containers.run("coordinator", ["isthmus", "invite", name, *SETTINGS, "--out", kit])
            shutil.copy(containers.volume("coordinator-state") / f"{name}.zip", folder / "kits")
            shutil.chown(folder / "kits" / f"{name}.zip", 10021, 10021)
        containers.up(*(f"{name}-vault" for name in UNITS))
        containers.up(*(f"{name}-node" for name in UNITS))

        # A run.
        file = containers.volume("coordinator-state") / "federation.toml"
        file.write_text(FEDERATION)
        os.chown(file, 10001, 10001)
        words = ["isthmus", "server", "run", "/var/lib/isthmus/federation.toml", *SETTINGS, "--json"]
        said = containers.run("coordinator", words).stdout
        assert json.loads(said)["finished"] == 1
        for name in UNITS:
            books = read_ledger(containers.volume(f"{name}-ledger") / "ledger.db")
            assert books.findings == ()
            assert [(entry.kind, entry.released, entry.private) for entry in books.entries] == [
                ("catalogue", True, True),
                ("update", True, True),
            ]

        # The borders.
        interfaces = containers.run("dining-vault", ["ls", "/sys/class/net"]).stdout.split()
        assert interfaces == ["lo"], "a vault has no network"
        for service in ("dining-vault", "dining-node", "coordinator"):
            mounts = [
                line.split() for line in containers.run(service, ["cat", "/proc/self/mounts"]).stdout.splitlines()
            ]
            assert "ro" in next(options for _, target, _, options, *_ in mounts if target == "/").split(","), service
        assert containers.run("dining-node", ["ls", "/etc/isthmus/domain"]).stdout.split() == ["domain.toml"]
        assert containers.run("dining-vault", ["touch", "/etc/isthmus/domain/items.csv"], check=False).returncode != 0
        for service in ("dining-node", "dining-vault", "coordinator"):
            status = containers.run(service, ["cat", "/proc/self/status"]).stdout
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert {fields[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}, service
            assert fields["NoNewPrivs"].strip() == "1"
        reach = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
        containers.run("dining-node", ["python", "-c", reach, "coordinator", "8443"])
        for host, port in (("coordinator", "8000"), ("10.77.1.2", "8443")):  # Flower's own port; another unit's node
            done = containers.run("dining-node", ["python", "-c", reach, host, port], check=False)
            assert done.returncode != 0, (host, port)
