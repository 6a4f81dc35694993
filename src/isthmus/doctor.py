"""Is this machine ready to take part? Each check says what was seen and, where it is not right, how to mend it.

    checks = examine_machine() + examine_domain(Path("books"), kit=Path("books.zip")) + examine_backbone("gru4rec")
    [check for check in checks if not check.well]

Nothing is changed and nothing is sent anywhere, but for one request to the coordinator that a kit names.
"""

import datetime as dt
import email.utils
import http.client
import os
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import isthmus
from isthmus.clients.backbone_check import LINES, examine_lines
from isthmus.clients.engines import engine_for
from isthmus.config import BackboneConfig, DomainCompute, DomainConfig, load_domain
from isthmus.custom_backbone import load_maker, make_backbone, require_installed
from isthmus.errors import IsthmusError
from isthmus.privacy.custody import key_path
from isthmus.privacy.kit import CA, read_kit
from isthmus.privacy.policy import FILE
from isthmus.privacy.program import backbone_hash, code_hash
from isthmus.server.deploy.certs import show_certificates
from isthmus.server.deploy.proxy import find_caddy
from isthmus.server.deploy.settings import ServerConfig, load_server
from isthmus.supervision import running_pid

LEAST_DISK = 2**30
"""Bytes that should be free: a ledger on a full disk refuses everything."""
LEAST_DAYS = 30
MOST_SECONDS = 60.0
"""By which two clocks may differ: a node signs the time of its requests."""

_FEATURES = 384  # of the packaged encoder

_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One look at one thing.

    Attributes:
        name: Of the thing.
        well: Whether it is as it should be.
        seen: What was found, in words.
        mend: What to do, where it is not well.
    """

    name: str
    well: bool
    seen: str
    mend: str = ""


def examine_machine() -> list[Check]:
    """What every part needs: versions, links, switches, disk."""
    return [*_versions(), _links(), _switches(), _disk("disk", Path(tempfile.gettempdir()))]


def examine_server(file: Path) -> list[Check]:
    """What a coordinator needs: settings, certificates, ports, the proxy, permissions."""
    try:
        config = load_server(file)
    except IsthmusError as error:
        return [Check(name="server.toml", well=False, seen=str(error), mend="mend the file as it says")]
    up = running_pid(config.state_folder)
    return [
        Check(name="server.toml", well=True, seen=f"public on {config.bind} port {config.port}"),
        *_certificates(config),
        _proxy(),
        *(
            _port(name, host, port, up)
            for name, host, port in (
                ("port", config.bind, config.port),
                ("loopback_port", "127.0.0.1", config.loopback_port),
            )
        ),
        _closed("state folder", config.state_folder),
        _disk("disk of the state", config.state_folder),
    ]


def examine_domain(folder: Path, *, kit: Path | None = None) -> list[Check]:
    """What a business unit needs: its files, who can read them, and, with a kit, the way to the coordinator."""
    try:
        config = load_domain(folder)
    except IsthmusError as error:
        return [Check(name="domain.toml", well=False, seen=str(error), mend="mend the file as it says")]
    checks = [
        Check(name="domain.toml", well=True, seen=f"domain {config.name}"),
        *_tables(config),
        _policy(config),
        _closed("domain folder", config.folder),
        _closed("ledger key", key_path(config.ledger_path)),
        _disk("disk of the ledger", config.ledger_path.parent),
    ]
    return checks + ([] if kit is None else _kit(kit, config))


def examine_backbone(name: str) -> list[Check]:
    """Whether a custom backbone is installed, what a policy pins it by, and whether it keeps to its protocol."""
    config = BackboneConfig.model_construct(module=name)
    try:
        require_installed(config)
        pin = _pin(name)  # before its code runs
        found = examine_lines(load_maker(name), features=_FEATURES, config=config, compute=DomainCompute())
        engine = engine_for(make_backbone(_FEATURES, config), DomainCompute())
    except IsthmusError as error:
        mend = "install the package that has it, or mend what it says"
        return [Check(name=f"backbone {name}", well=False, seen=str(error), mend=mend)]
    return [
        Check(name=f"backbone {name}", well=True, seen=f"{_FEATURES} features, default shape, by {engine.__name__}"),
        pin,
        *(
            Check(name=f"{name}: {line}", well=not broken, seen=broken or LINES[line], mend=f"must be: {LINES[line]}")
            for line, broken in found.items()
        ),
    ]


def _pin(name: str) -> Check:
    """What a policy names it by, if no other version is to run."""
    try:
        seen = f"{name}@{backbone_hash(name)}"
    except IsthmusError as error:
        seen = f"none: {error}"
    return Check(name=f"{name} for `allow.backbones`", well=True, seen=seen)


def _versions() -> list[Check]:
    """Every package that this version asks for, by its own words."""
    wrong = []
    for text in metadata.requires("isthmus") or ():
        asked = Requirement(text)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(asked.name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not asked.specifier.contains(found.partition("+")[0], prereleases=True):
            wrong.append(f"{asked.name} {found}, needed {asked.specifier or 'any'}")
    seen = f"isthmus {isthmus.__version__}, program {code_hash()[:16]}, flwr {metadata.version('flwr')}"
    mend = "pip install --constraint constraints.txt isthmus"
    return [Check(name="versions", well=not wrong, seen="; ".join(wrong) or seen, mend=mend)]


def _links() -> Check:
    root = Path(isthmus.__file__).parent
    missing = [
        role for role in ("server", "clients", "strategies", "privacy") if not (root / role / "__init__.py").exists()
    ]
    seen = f"without {', '.join(missing)}" if missing else "the four role folders are there"
    return Check(name="links", well=not missing, seen=seen, mend="clone with git config core.symlinks true")


def _switches() -> Check:
    wrong = [f"{name}={os.environ.get(name)}" for name, value in _SWITCHES.items() if os.environ.get(name) != value]
    mend = "export " + " ".join(f"{name}={value}" for name, value in _SWITCHES.items())
    return Check(name="telemetry", well=not wrong, seen="; ".join(wrong) or "nothing phones home", mend=mend)


def _disk(name: str, folder: Path) -> Check:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    seen = f"{free / 2**30:.1f} GiB free at {folder}"
    return Check(
        name=name, well=free >= LEAST_DISK, seen=seen, mend="make room: a ledger on a full disk refuses everything"
    )


def _certificates(config: ServerConfig) -> list[Check]:
    now = dt.datetime.now(dt.UTC)
    try:
        found = show_certificates(config.certificates_folder)
    except IsthmusError as error:
        return [Check(name="certificates", well=False, seen=str(error), mend="isthmus certs init")]
    return [
        Check(
            name=f"certificate of {one.subject}",
            well=one.days_left(now) > LEAST_DAYS,
            seen=f"{one.file} ends in {one.days_left(now):.0f} days",
            mend="isthmus certs renew (or replace-ca), then SIGHUP to `isthmus server up`",
        )
        for one in found
    ]


def _proxy() -> Check:
    try:
        return Check(name="proxy", well=True, seen=find_caddy())
    except IsthmusError as error:
        return Check(name="proxy", well=False, seen=str(error), mend="pip install 'isthmus[deploy]'")


def _port(name: str, host: str, port: int, up: int | None) -> Check:
    if up is not None:
        return Check(name=name, well=True, seen=f"{port}, held by the server that is up (process {up})")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        mend = f"end what listens there (`ss -ltnp`), or change `{name}` in server.toml"
        return Check(name=name, well=False, seen=f"{port} on {host}: {error.strerror}", mend=mend)
    return Check(name=name, well=True, seen=f"{port} on {host} is free")


def _closed(name: str, path: Path) -> Check:
    if not path.exists():
        return Check(name=name, well=True, seen=f"{path} is not there yet")
    mode = stat.S_IMODE(path.stat().st_mode)
    mend = f"chmod {'700' if path.is_dir() else '600'} {path}"
    return Check(name=name, well=not mode & 0o077, seen=f"{path} has mode {mode:03o}", mend=mend)


def _tables(config: DomainConfig) -> Iterable[Check]:
    for name, path in (("interactions", config.interactions_path), ("items", config.items_path)):
        well = os.access(path, os.R_OK)
        mend = f"put the table there, or change `{name}.path` in domain.toml; `isthmus domain check` reads it"
        yield Check(name=name, well=well, seen=f"{path} can{'' if well else 'not'} be read", mend=mend)


def _policy(config: DomainConfig) -> Check:
    there = (config.folder / FILE).exists()
    seen = (
        "there is one"
        if there
        else "there is none: the limits are those of domain.toml, and nobody has signed for them"
    )
    return Check(name=FILE, well=there, seen=seen, mend="write one: docs/policy.md")


def _kit(path: Path, config: DomainConfig) -> list[Check]:
    try:
        kit, files = read_kit(path)
    except IsthmusError as error:
        return [Check(name="kit", well=False, seen=str(error), mend="ask the coordinator for another one")]
    same = kit.program == code_hash() and kit.domain == config.name
    seen = f"for {kit.domain}, isthmus {kit.isthmus}, program {kit.program[:16]}"
    return [
        Check(
            name="kit", well=same, seen=seen, mend=f"this is {config.name}, program {code_hash()[:16]}; use the same"
        ),
        *_coordinator(kit.address, files[CA]),
    ]


def _coordinator(address: str, authority: bytes) -> list[Check]:
    """Whether the public port answers, as whom the kit says, and what time it is there."""
    host, _, port = address.rpartition(":")
    try:
        context = ssl.create_default_context(cadata=authority.decode("ascii"))
        connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=10, context=context)
        connection.request("GET", "/")
        answer = connection.getresponse()
        there = email.utils.parsedate_to_datetime(answer.headers["Date"])
        connection.close()
    except (OSError, ValueError, TypeError, http.client.HTTPException) as error:
        mend = "is the server up, the name right, the port open, and the kit the newest?"
        return [Check(name="coordinator", well=False, seen=f"{address}: {error}", mend=mend)]
    off = abs((dt.datetime.now(dt.UTC) - there).total_seconds())
    return [
        Check(name="coordinator", well=True, seen=f"{address} answers, under the authority of the kit"),
        Check(
            name="clock",
            well=off <= MOST_SECONDS,
            seen=f"{off:.0f} s from the coordinator's",
            mend="set the clock (`timedatectl set-ntp true`): a node signs the time of its requests",
        ),
    ]
