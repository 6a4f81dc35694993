"""Start what a compose file says, without an engine: the same commands, users, environments, mounts and networks.

    with Containers(compose(), folder) as containers:
        containers.up("coordinator")
        containers.run("coordinator", ["isthmus", "invite", "dining", ...])

Each service gets a network namespace (pairs of virtual cables between it and the others of its networks; `none` has no
cable at all) and mounts of its own: volumes, configs and secrets where the file puts them, everything else
read-only. Its command runs as its user and groups, without capabilities and without a way to get any. What a container
would have besides, an image of its own, is this machine's: so the build of the images is all that is not tested.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.other_user import ROOT

BIN = Path(sys.executable).parent

_INSIDE = """
set -e
stage={stage}
mkdir -p "$stage/keep" "$stage/etc" "$stage/lib" "$stage/mounts"
# What is needed below closed folders, and what is mounted, is held while the folders above are covered.
n=0; for kept in {kept}; do mkdir "$stage/keep/$n"; mount --bind "$kept" "$stage/keep/$n"; n=$((n + 1)); done
n=0; for source in {sources}; do
  if [ -d "$source" ]; then mkdir "$stage/mounts/$n"; else touch "$stage/mounts/$n"; fi
  mount --bind "$source" "$stage/mounts/$n"; n=$((n + 1))
done
cp -a /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache /etc/ssl "$stage/etc/" 2>/dev/null || true
echo "127.0.0.1 localhost {hosts}" | tr ';' '\\n' > "$stage/etc/hosts"
mount --bind "$stage/etc" /etc
mount -t tmpfs none /var/lib
mount -t tmpfs -o mode=755 none /run
for closed in {closed}; do mount -t tmpfs -o mode=755 none "$closed"; done
n=0; for kept in {kept}; do mkdir -p "$kept"; mount --bind "$stage/keep/$n" "$kept"; n=$((n + 1)); done
n=0; for target in {targets}; do
  mkdir -p "$(dirname "$target")"
  if [ -d "$stage/mounts/$n" ]; then mkdir -p "$target"; else touch "$target"; fi
  mount --bind "$stage/mounts/$n" "$target"; n=$((n + 1))
done
for target in {read_only}; do mount -o remount,bind,ro "$target"; done
mount -t tmpfs none /tmp
mount -o remount,bind,ro /
cd /
exec env -i {environment} setpriv --reuid {user} --regid {group} --groups {groups} \\
  --bounding-set=-all --inh-caps=-all --no-new-privs -- "$@"
"""


@dataclass
class Containers:
    """The services of a compose file.

    Attributes:
        file: As parsed; paths in it are relative to `folder`.
        folder: Where its data, kits, certificates and secrets are.
        work: What this makes: volumes, logs.
        running: Processes by service.
    """

    file: dict[str, Any]
    folder: Path
    work: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="isthmus-containers-")))
    running: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.work.chmod(0o755)
        for service in self.file["services"]:
            _ip("netns", "add", self._netns(service))
            _ip("-n", self._netns(service), "link", "set", "lo", "up")
        for number, network in enumerate(self.file["networks"]):
            members = [name for name, one in self.file["services"].items() if network in one.get("networks", [])]
            assert len(members) == 2, f"{network} joins {members}: a unit's node and the coordinator"
            self._cable(number, *members)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for service in self.file["services"]:
            subprocess.run(["ip", "netns", "del", self._netns(service)], check=False)
        shutil.rmtree(self.work, ignore_errors=True)

    def up(self, *services: str) -> None:
        """Start services and wait until their own health checks say that they are well."""
        for service in services:
            command = ["isthmus", *self.file["services"][service]["command"]]
            with (self.work / f"{service}.log").open("ab") as log:
                self.running[service] = subprocess.Popen(self._command(service, command), stdout=log, stderr=log)
        for service in services:
            until = time.monotonic() + 180
            check = self.file["services"][service]["healthcheck"]["test"][1:]
            while self.run(service, check, check=False).returncode != 0:
                alive = self.running[service].poll() is None
                assert alive, f"{service} has ended:\n{self.logs()}"
                assert time.monotonic() < until, f"{service} is not well:\n{self.logs()}"
                time.sleep(1)

    def run(self, service: str, command: list[str], *, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """A command inside a service, as `docker compose exec` runs one."""
        done = subprocess.run(self._command(service, command), capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    def volume(self, name: str) -> Path:
        """Where a named volume lies on this machine."""
        return self.work / "volumes" / name

    def logs(self) -> str:
        """The end of every service's words."""
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.work.glob("*.log")))

    def _netns(self, service: str) -> str:
        return f"ist-{os.getpid()}-{service}"

    def _cable(self, number: int, one: str, other: str) -> None:
        """A pair of virtual interfaces, an end in each service."""
        ends = [f"i{os.getpid() % 100000}a{number}", f"i{os.getpid() % 100000}b{number}"]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end, service in zip(ends, (one, other), strict=True):
            place = self._netns(service)
            _ip("link", "set", end, "netns", place)
            _ip("-n", place, "addr", "add", f"{self._address(number, service)}/24", "dev", end)
            _ip("-n", place, "link", "set", end, "up")

    def _address(self, number: int, service: str) -> str:
        return f"10.77.{number}.{1 if service == 'coordinator' else 2}"

    def _hosts(self, service: str) -> str:
        """Names of the others on a service's networks."""
        lines = []
        for number, network in enumerate(self.file["networks"]):
            if network in self.file["services"][service].get("networks", []):
                others = [
                    n for n, s in self.file["services"].items() if network in s.get("networks", []) and n != service
                ]
                lines += [f"{self._address(number, other)} {other}" for other in others]
        return ";".join(["", *lines])

    def _command(self, service: str, command: list[str]) -> list[str]:
        """The words that run a command inside a service."""
        one = self.file["services"][service]
        mounts = self._mounts(service)
        kept = sorted({Path(path).resolve() for path in (sys.base_prefix, sys.prefix, ROOT)})
        tops = {a for path in kept for a in path.parents if not a.stat().st_mode & 0o001}
        closed = [min(tops, key=lambda path: len(path.parts))] if tops else []
        inside = [path for path in kept if any(top in path.parents for top in closed)]
        user, _, group = str(one["user"]).partition(":")
        environment = {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src"), **one.get("environment", {})}
        stage = Path(tempfile.mkdtemp(dir=self.work, prefix="stage-"))
        script = _INSIDE.format(
            stage=stage,
            kept=_words(inside),
            sources=_words(source for source, _, _ in mounts),
            targets=_words(target for _, target, _ in mounts),
            read_only=_words(target for _, target, read_only in mounts if read_only),
            closed=_words(closed),
            hosts=self._hosts(service),
            environment=" ".join(shlex.quote(f"{key}={value}") for key, value in environment.items()),
            user=user,
            group=group,
            groups=",".join([group, *map(str, one.get("group_add", []))]),
        )
        program = [str(BIN / command[0]) if (BIN / command[0]).exists() else command[0], *command[1:]]
        namespaces = ["ip", "netns", "exec", self._netns(service), "unshare", "--mount", "--propagation", "private"]
        return [*namespaces, "sh", "-c", script, "sh", *program]

    def _mounts(self, service: str) -> list[tuple[Path, str, bool]]:
        """What is mounted where: source, target, whether read-only."""
        one = self.file["services"][service]
        found = []
        for text in one.get("volumes", []):
            source, target, *mode = text.split(":")
            path = self.folder / source if source.startswith(".") else self._made(source, target, one)
            found.append((path.resolve(), target, mode == ["ro"]))
        for config in one.get("configs", []):
            declared = self.file["configs"][config["source"]]
            path = self.work / config["source"]
            if "content" in declared:
                path.write_text(declared["content"])
                path.chmod(0o644)
            found.append((path if "content" in declared else self.folder / declared["file"], config["target"], True))
        for secret in one.get("secrets", []):
            name = secret if isinstance(secret, str) else secret["source"]
            target = f"/run/secrets/{name}" if isinstance(secret, str) else secret["target"]
            found.append((self.folder / self.file["secrets"][name]["file"], target, True))
        return [(Path(source).resolve(), target, read_only) for source, target, read_only in found]

    def _made(self, volume: str, target: str, service: dict[str, Any]) -> Path:
        """A named volume: made with the owner that the image's folder has (see the Dockerfiles)."""
        path = self.volume(volume)
        if not path.exists():
            path.mkdir(parents=True, mode=0o755)
            if target == "/run/isthmus":
                shutil.chown(path, 10011, 10021)
                path.chmod(0o750)
            else:
                user, _, group = str(service["user"]).partition(":")
                shutil.chown(path, int(user), int(group))
                path.chmod(0o700)
        return path


def _words(things: Any) -> str:
    return " ".join(shlex.quote(str(thing)) for thing in things)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
