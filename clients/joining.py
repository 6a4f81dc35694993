"""A business unit takes part: its vault, and the node that speaks to the coordinator, started together.

    membership = accept_kit(Path("books.zip"), config, coordinator=known_key)      # checks; writes the node's files
    supervise(parts_of(membership, ...), state=membership.folder, started=...)

The kit says where the coordinator is and how it is recognised; the unit's own files say what may leave. The node is
Flower's SuperNode. It starts a client process for each message, and that process runs code which the coordinator
may have shipped: give the node a user of its own (`client_user`), and the vault's files are out of its reach.
"""

import datetime as dt
import hashlib
import json
import os
import pwd
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import isthmus
from isthmus.clients.health import is_ready
from isthmus.config import DomainConfig
from isthmus.durable import write_durably
from isthmus.errors import ConfigError, Refused, RunError
from isthmus.privacy.kit import CA, NODE_KEY, Kit, read_kit
from isthmus.privacy.program import code_hash
from isthmus.supervision import Part, free_port

_ACCEPTED = "accepted.json"
_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
    "HF_HUB_OFFLINE": "1",
}

_NODE_DEATHS, _NODE_DELAY = 30, 5.0  # in a row, and seconds at most between two of them


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A kit that was accepted.

    Attributes:
        kit: What it says.
        folder: Where the node's files and logs are.
        user: Ids of the user and group of the node; this process's where absent.
    """

    kit: Kit
    folder: Path
    user: tuple[int, int] | None

    @property
    def node_folder(self) -> Path:
        """What the node may read."""
        return self.folder / "node"


def accept_kit(
    path: Path, folder: Path, *, domain: str, coordinator: str | None = None, client_user: str | None = None
) -> Membership:
    """Check a kit and write what the node needs into a folder of its own.

    Args:
        path: Of the kit.
        folder: Where the node's files and logs go; made if absent.
        domain: Name of the domain that is to take part.
        coordinator: Public key of the coordinator, hex, known from elsewhere; not compared where absent.
        client_user: User that the node is to run as.

    Raises:
        ConfigError: If it is no kit, is for another domain, or the user is not there.
        Refused: If it is of another coordinator, or made for another program.
    """
    kit, files = _read(path, folder)
    if kit.domain != domain:
        raise ConfigError(f"{path} invites {kit.domain!r}, and this domain is {domain!r}; ask for a kit of its own")
    if coordinator is not None and coordinator.lower() != kit.key:
        raise Refused(
            f"{path} is signed by {kit.key}, and not by the coordinator {coordinator.lower()}; do not use it",
            rule="coordinators",
            asked=kit.key,
            limit=coordinator.lower(),
        )
    if kit.program != code_hash():
        raise Refused(
            f"the coordinator runs isthmus {kit.isthmus}, program {kit.program[:16]}; here is {isthmus.__version__}, "
            f"program {code_hash()[:16]}. Install the same, or ask for a kit that was made with this one.",
            rule="programs",
            asked=code_hash(),
            limit=kit.program,
        )
    member = Membership(kit=kit, folder=folder, user=_ids(client_user))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700 if member.user is None else 0o711)  # the node's user walks through, and sees nothing
    if member.user is not None:
        _require_way(folder)
    member.node_folder.mkdir(mode=0o700, exist_ok=True)
    write_durably(member.node_folder / CA, files[CA], mode=0o644)
    write_durably(member.node_folder / NODE_KEY, files[NODE_KEY], mode=0o600)
    about = {"kit": hashlib.sha256(path.read_bytes()).hexdigest(), "accepted": dt.datetime.now(dt.UTC).isoformat()}
    write_durably(folder / _ACCEPTED, json.dumps(about, indent=1).encode())
    if member.user is not None:
        for file in (member.node_folder, member.node_folder / CA, member.node_folder / NODE_KEY):
            shutil.chown(file, *member.user)
    return member


def vault_part(config: DomainConfig, socket_path: Path, *, group: int | None, options: tuple[str, ...]) -> Part:
    """The domain's vault as a program.

    Args:
        config: Of the domain.
        socket_path: Where it listens.
        group: Id of the group that may ask besides this user.
        options: Further ones of `isthmus vault`.
    """
    shared = () if group is None else ("--group", str(group))
    return Part(
        name="vault",
        command=(*_isthmus(), "vault", str(config.folder), "--socket", str(socket_path), *shared, *options),
        listening=f"unix:{socket_path}  for the client process: six questions",
        ready=lambda: is_ready(f"unix:{socket_path}"),
        environment=_FLOWER,
    )


def node_part(member: Membership, vault: str) -> Part:
    """Flower's SuperNode as a program.

    Args:
        member: The kit that was accepted.
        vault: Address of the vault.
    """
    port = free_port()
    return Part(
        name="node",
        command=(
            *(sys.executable, "-m", "isthmus.clients.node", "--superlink", member.kit.address),
            *("--root-certificates", str(member.node_folder / CA)),
            *("--auth-supernode-private-key", str(member.node_folder / NODE_KEY)),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--node-config", f'vault="{vault}"'),
        ),
        listening=f"127.0.0.1:{port}  this machine only: Flower's Runtime API for the client process",
        ready=lambda: _accepts(port),
        environment={
            **_FLOWER,
            "FLWR_HOME": str(member.node_folder / "flower"),
            "HOME": str(member.node_folder),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        },
        user=member.user,
        # After a kill the SuperLink lets no node of this key in until it has missed its heartbeats, a minute later.
        most_deaths=_NODE_DEATHS,
        longest_delay=_NODE_DELAY,
    )


def leave(folder: Path) -> None:
    """Forget the kit: without the node's key nobody can take part as this domain from here.

    Raises:
        RunError: If there is none.
    """
    if not (folder / _ACCEPTED).exists():
        raise RunError(f"{folder}: no federation was joined from here")
    for file in (folder / "node" / NODE_KEY, folder / "node" / CA, folder / _ACCEPTED):
        file.unlink(missing_ok=True)


def _read(path: Path, folder: Path) -> tuple[Kit, dict[str, bytes]]:
    """The kit; one that was accepted in time may be used again afterwards."""
    try:
        accepted = json.loads((folder / _ACCEPTED).read_text(encoding="utf-8"))
        again = accepted["kit"] == hashlib.sha256(path.read_bytes()).hexdigest()
        then = dt.datetime.fromisoformat(accepted["accepted"])
    except (OSError, ValueError, KeyError, TypeError):
        return read_kit(path)
    return read_kit(path, now=then) if again else read_kit(path)


def _ids(user: str | None) -> tuple[int, int] | None:
    if user is None:
        return None
    try:
        found = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"--client-user: there is no user {user!r}; `useradd --system {user}` makes one") from None
    if os.geteuid() not in (0, found.pw_uid):
        raise ConfigError(f"--client-user {user}: only root can start the node as another user")
    return found.pw_uid, found.pw_gid


def _require_way(folder: Path) -> None:
    """Another user must be able to walk to the node's files and the socket, and better not through the data."""
    closed = [parent for parent in folder.resolve().parents if not parent.stat().st_mode & 0o001]
    if closed:
        raise ConfigError(
            f"{closed[-1]} is closed to other users, so the node's user cannot reach {folder}. Keep the domain's "
            f"folder closed, and name another place for the node's files and the socket: --state /var/lib/isthmus"
        )


def _isthmus() -> tuple[str, ...]:
    return (sys.executable, "-c", "from isthmus.cli import main; main()")


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
