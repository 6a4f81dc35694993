"""The compose file as it is, and what is wrong with a compose file of a federation."""

import json
from pathlib import Path
from typing import Any

import yaml
from compose_spec import PyCompose

ROOT = Path(__file__).parents[2]


def compose() -> dict[str, Any]:
    """Of the project, anchors and merges resolved."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return found


def problems(file: dict[str, Any]) -> list[str]:
    """What breaks a border: between containers and their machine, units and each other, vaults and nodes."""
    found = []
    services: dict[str, dict[str, Any]] = file["services"]
    for name, service in services.items():
        found += [f"{name}: {problem}" for problem in _open_doors(service)]
        if name.endswith("-vault") and service.get("network_mode") != "none":
            found.append(f"{name}: a vault has a network")
        if name != "coordinator" and service.get("ports"):
            found.append(f"{name}: publishes a port")
    units = [name.removesuffix("-vault") for name in services if name.endswith("-vault")]
    return found + _between_units(file) + [problem for unit in units for problem in _within_unit(unit, services)]


def _between_units(file: dict[str, Any]) -> list[str]:
    found = []
    for kind in ("networks", "volumes", "secrets"):
        for thing in file[kind]:
            users = [name for name, service in file["services"].items() if thing in _names(service.get(kind, []))]
            units = {name.rsplit("-", 1)[0] for name in users} - {"coordinator"}
            if len(units) > 1:
                found.append(f"{kind} {thing}: units {', '.join(sorted(units))} share it")
    return found


def _within_unit(unit: str, services: dict[str, dict[str, Any]]) -> list[str]:
    vault, node = services[f"{unit}-vault"], services[f"{unit}-node"]
    found = []
    shared = _names(vault.get("volumes", [])) & _names(node.get("volumes", []))
    if shared != {f"{unit}-socket"}:
        found.append(f"{unit}: its vault shares more than its socket with its node: {sorted(shared)}")
    if vault["user"] == node["user"]:
        found.append(f"{unit}: its vault runs as its node's user")
    return found


def is_valid(file: dict[str, Any]) -> bool:
    """Whether it is a compose file, and names only networks, volumes, secrets and configs that it declares."""
    PyCompose.from_json(json.dumps({key: value for key, value in file.items() if not key.startswith("x-")})).validate()
    return True


def _open_doors(service: dict[str, Any]) -> list[str]:
    user = str(service.get("user", "0")).split(":")[0]
    checks = {
        "its root file system can be written": service.get("read_only") is not True,
        "may gain privileges": "no-new-privileges:true" not in service.get("security_opt", []),
        "keeps capabilities": service.get("cap_drop") != ["ALL"] or bool(service.get("cap_add")),
        "runs as root, or as a name that may be root": not user.isdigit() or int(user) == 0,
        "has no health check": "test" not in service.get("healthcheck", {}),
        "is privileged": bool(service.get("privileged")) or service.get("network_mode") == "host",
        "carries a secret in its environment": any(
            word in key and not str(value).startswith("/run/secrets/")
            for key, value in service.get("environment", {}).items()
            for word in ("KEY", "SECRET", "PASS")
        ),
    }
    return [words for words, wrong in checks.items() if wrong]


def _names(things: list[Any]) -> set[str]:
    """Names of named things in a service's list: long or short form; paths of the machine are none."""
    names = {thing["source"] if isinstance(thing, dict) else str(thing).split(":")[0] for thing in things}
    return {name for name in names if not name.startswith((".", "/"))}
