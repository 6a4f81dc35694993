"""Runs on a real coordinator, with real SuperNodes that come through the public port."""

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TinyDomain, TinyFederation
from tests.server.deploy.conftest import free_ports, new_server
from tests.server.deploy.running import call, eventually, online, running, status
from tests.starts import start_from, write_start

from isthmus.backbone_file import load_backbone
from isthmus.config import load_federation
from isthmus.errors import RunError
from isthmus.server.deploy.bundle import SETTINGS, Bundle, make_bundle
from isthmus.server.deploy.certs import make_node_key
from isthmus.server.deploy.runs import Progress, _keep_federation, begin_run, latest_run, progress_of, resume_run
from isthmus.server.deploy.settings import ServerConfig

STEPS = {"books": 0.01, "games": 0.03}
_WAITING = "deadline = 40\njoining = 40\n\n[polling]\ntasks = 2.0\nreplies = 1.0\n"


def scripted() -> Bundle:
    """A bundle that ships a ClientApp of the test's own."""
    code = (Path(__file__).parent / "scripted_client.py").read_bytes()
    return make_bundle({"scripted_client.py": code}, clientapp="scripted_client:app")


def test_the_bundle_carries_no_code() -> None:
    """One file of settings, the same bytes each time; both apps are references into the installed package."""
    bundle = make_bundle()
    names = zipfile.ZipFile(BytesIO(bundle.content)).namelist()
    assert names == ["pyproject.toml", ".info/CONTENT"]
    assert make_bundle() == bundle
    text = zipfile.ZipFile(BytesIO(bundle.content)).read("pyproject.toml").decode()
    assert 'serverapp = "isthmus.server.app:app"' in text
    assert 'clientapp = "isthmus.clients.app:app"' in text
    assert all(f"\n{key} = " in text for key in SETTINGS)


def test_a_bundle_that_carries_code_is_another_one() -> None:
    """The mutant: a business unit that expects the digest sees it."""
    assert scripted().digest != make_bundle().digest


@dataclass
class Nodes:
    """SuperNodes of a coordinator, each with a key of its own."""

    config: ServerConfig
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, name: str, *, authority: Path | None = None, **settings: float | str) -> None:
        """Register a node, unless it has a key, and let it connect to the public port, unless it is there."""
        if name in self.processes and self.processes[name].poll() is None:
            return
        key = self.register(name)
        words = {"domain": f'"{name}"', "step": STEPS.get(name, 0.01), **settings}
        command = [
            *(str(Path(sys.executable).parent / "flower-supernode"), "--superlink", self.config.public),
            *("--root-certificates", str(authority or self.config.certificates_folder / "ca.crt")),
            *("--auth-supernode-private-key", f"{key}.key", "--port", str(free_ports(1)[0])),
            *("--node-config", " ".join(f"{word}={value}" for word, value in words.items())),
        ]
        environment = {
            **os.environ,
            "FLWR_HOME": str(self.config.folder / f"{name}-home"),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1.0",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        with (self.config.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def register(self, name: str) -> Path:
        """Add a node's key, unless it has one; returns where it is, without its ending."""
        key = self.config.folder / name
        if not key.with_suffix(".key").exists():
            make_node_key(key)
            call(self.config.folder, "server", "nodes", "add", name, "--key", f"{key}.pub")
        return key

    def stop(self) -> None:
        """End all of them."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    """A coordinator that needs two domains."""
    return new_server(tmp_path_factory.mktemp("runs"), domains=2, extra=_WAITING)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation of four rounds without evaluations."""
    domain = TinyDomain(tmp_path_factory.mktemp("federation"))
    return TinyFederation(domain)(evaluate_every=0, seed=None)


@pytest.fixture(scope="module")
def nodes(config: ServerConfig) -> Iterator[Nodes]:
    """None yet."""
    nodes = Nodes(config)
    yield nodes
    nodes.stop()


def finished(config: ServerConfig, rounds: int) -> bool:
    """Whether the latest run has finished so many rounds."""
    run = latest_run(config)
    return run is not None and progress_of(config, run, ask=False).round >= rounds


def over(config: ServerConfig) -> Progress:
    """The latest run, once it is over."""
    run = latest_run(config)
    assert run is not None
    eventually(lambda: progress_of(config, run).over, 120, "the run is over")
    return progress_of(config, run)


@pytest.mark.slow
@pytest.mark.deployed
def test_a_round_goes_on_without_a_slow_node_and_a_stopped_run_is_resumed(
    config: ServerConfig, nodes: Nodes, file: Path
) -> None:
    """The deadline holds though the SuperLink is killed; a stopped run ends as one that was not. More in `deployed`.

    Before, with the real bundle: nodes that have no vault say so, and the command prints it.
    """
    with running(config.folder) as up:
        nodes.start("books")
        nodes.start("games", **{"slow-round": 2})
        eventually(lambda: online(config) == set(STEPS), 90, "nodes are there")
        said = call(config.folder, "server", "run", file, "--rounds", 1, code=2)
        assert "no domain joined the run" in said
        assert "cannot reach its vault" in said
        assert "Traceback" not in said

        # 1. Six rounds, of which games misses the second; so many that it is not over before it can be stopped.
        run = begin_run(config, file, rounds=6, seed=None, bundle=scripted())
        with pytest.raises(RunError, match=r"is going on .* `isthmus server stop --run` ends it"):
            begin_run(config, file, rounds=None, seed=None)
        eventually(lambda: finished(config, 1), 120, "round 1")
        os.kill(up.part("superlink")["pid"], signal.SIGKILL)  # the run goes on when it is back
        eventually(lambda: finished(config, 2), 120, "round 2")
        log = call(config.folder, "server", "log")

        # 2. Stopped after that, and resumed.
        assert "has ended" in call(config.folder, "server", "stop", "--run")
        assert status(config.folder)["runs"][0]["result"] == "stopped"
        again = resume_run(config, file, rounds=None, bundle=scripted())
        assert again.run == run.run
        assert again.flower != run.flower
        ended = over(config)
        assert ended.flower is not None
        assert (ended.flower.result, ended.round) == ("completed", 6), ended.flower.details
        shown = status(config.folder)
        assert (shown["run"]["run"], shown["run"]["rounds"]) == (run.run, 6)
        with pytest.raises(RunError, match="has finished its 6 rounds"):
            resume_run(config, file, rounds=None)
    assert ended.state is not None
    outcomes = {(one.round, name): outcome for one in ended.state.history for name, outcome in one.outcomes.items()}
    assert {key for key, outcome in outcomes.items() if outcome.status != "ok"} == {(2, "games")}
    # Ours, or Flower's about a message that expired at the same moment.
    reason = outcomes[2, "games"].reason
    assert reason == "no answer within 40 s" or "Message Unavailable" in reason
    assert f"round 2: books ok, games error ({reason})" in log
    steps = [STEPS["books"], *5 * [np.mean(list(STEPS.values()))]]
    for name, array in ended.state.arrays.items():
        # What crosses is rounded to 127 steps, each way.
        off = 6 * 2 * max(STEPS.values()) / 127
        assert np.allclose(array - ended.state.best[name], np.sum(steps), atol=off)
    shipped = load_backbone(config.state_folder / "runs" / run.run / "backbone.safetensors")
    assert shipped.round == 0  # nothing was evaluated, so the prior is what is shipped


@pytest.mark.slow
@pytest.mark.deployed
def test_a_run_cannot_go_on_with_another_federation_file(config: ServerConfig, file: Path, tmp_path: Path) -> None:
    """It would be another run."""
    changed = tmp_path / "federation.toml"
    changed.write_text(file.read_text().replace("learning_rate = 0.5", "learning_rate = 0.25"))
    assert load_federation(changed).digest() != load_federation(file).digest()
    with pytest.raises(RunError, match="is not what run tiny-.* began with"):
        resume_run(config, changed, rounds=9)
    changed.write_text(file.read_text().replace('"tiny"', '"other"'))
    with pytest.raises(RunError, match="there is no run of 'other' to go on with"):
        resume_run(config, changed, rounds=9)


def test_a_run_keeps_what_it_starts_from(tmp_path: Path, tiny_federation: TinyFederation) -> None:
    """A copy beside its federation file, which has the same digest there; without a start the file is as it was."""
    file, run = tiny_federation(), tmp_path / "run"
    run.mkdir()
    _keep_federation(file, run)
    assert (run / "federation.toml").read_bytes() == file.read_bytes()
    assert len(list(run.iterdir())) == 1
    write_start(file.parent / "start.safetensors", file, axes=True)
    start_from(file, "start.safetensors")
    digest = load_federation(file).digest()
    _keep_federation(file, run)
    (file.parent / "start.safetensors").unlink()
    assert load_federation(run / "federation.toml").digest() == digest


def test_a_run_needs_a_server_that_is_up(tmp_path: Path, tiny_federation: TinyFederation) -> None:
    """Nothing is left behind."""
    config = new_server(tmp_path / "server")
    with pytest.raises(RunError, match="Is `isthmus server up` running"):
        begin_run(config, tiny_federation(), rounds=None, seed=None)
    assert not (config.state_folder / "runs").exists()
