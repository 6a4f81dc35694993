"""The compose file is one, its borders hold, and its Dockerfiles and commands are right; no image is built here.

No Docker engine runs where these tests run: what stays untested is the build of the images.
"""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from tests.deployed.compose import ROOT, compose, is_valid, problems

from isthmus.cli.main import app

Change = Callable[[dict[str, Any]], object]

MUTANTS: dict[str, Change] = {
    "a vault has a network": lambda s: s["music-vault"].update(network_mode="bridge"),
    "its root file system can be written": lambda s: s["music-node"].update(read_only=False),
    "may gain privileges": lambda s: s["coordinator"].update(security_opt=[]),
    "keeps capabilities": lambda s: s["coordinator"].update(cap_add=["NET_ADMIN"]),
    "runs as root": lambda s: s["dining-vault"].update(user="0:0"),
    "has no health check": lambda s: s["dining-vault"].pop("healthcheck"),
    "publishes a port": lambda s: s["dining-node"].update(ports=["1:1"]),
    "networks music: units dining, music share it": lambda s: s["dining-node"]["networks"].append("music"),
    "volumes dining-ledger: units dining, music share it": lambda s: s["music-vault"]["volumes"].append(
        "dining-ledger:/x"
    ),
    "secrets dining.key: units dining, music share it": lambda s: s["music-vault"]["secrets"].append("dining.key"),
    "shares more than its socket": lambda s: s["dining-node"]["volumes"].append("dining-ledger:/var/lib/ledger"),
    "runs as its node's user": lambda s: s["dining-vault"].update(user=s["dining-node"]["user"]),
    "carries a secret in its environment": lambda s: s["dining-vault"]["environment"].update({"A_PASS": "12345"}),
}


def test_the_compose_file_is_valid_and_every_border_holds() -> None:
    """By the compose specification, and by what each service may reach."""
    file = compose()
    assert is_valid(file)
    assert problems(file) == []
    units = {name.removesuffix("-vault") for name in file["services"] if name.endswith("-vault")}
    assert set(file["services"]) == {"coordinator"} | {f"{unit}-{part}" for unit in units for part in ("vault", "node")}
    assert len(units) == 3


@pytest.mark.parametrize("words", list(MUTANTS))
def test_a_border_that_was_opened_is_found(words: str) -> None:
    """Each of them, by name."""
    file = copy.deepcopy(compose())
    MUTANTS[words](file["services"])
    assert any(words in problem for problem in problems(file)), problems(file)


def test_a_file_that_names_what_it_does_not_declare_is_not_valid() -> None:
    """A network, a secret and a setting that are not there."""
    for change in ({"networks": ["nowhere"]}, {"secrets": ["nowhere"]}, {"configs": ["nowhere"]}):
        file = copy.deepcopy(compose())
        file["services"]["dining-node"].update(change)
        with pytest.raises(Exception, match="nowhere"):
            is_valid(file)


@pytest.mark.parametrize("name", list(compose()["services"]))
def test_every_command_is_one_that_isthmus_takes(name: str) -> None:
    """Verb and options exist; nothing is run."""
    words = compose()["services"][name]["command"]
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    command.make_context("isthmus", list(words), parent=context)


@pytest.mark.parametrize("file", ["server/Dockerfile", "clients/Dockerfile"])
def test_a_linter_finds_nothing_in_the_dockerfiles(file: str) -> None:
    """With all its rules, and no exception."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint comes with the development extra"
    done = subprocess.run([hadolint, file], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0
