"""Every command says what it does and ends in an example; no word of help is missing."""

import click
import pytest
import typer

from isthmus.cli.main import app


def commands() -> dict[str, click.Command]:
    """Every command by the words that call it."""
    found: dict[str, click.Command] = {}
    pending = [("isthmus", typer.main.get_command(app))]
    while pending:
        words, command = pending.pop()
        if hasattr(command, "commands"):
            pending.extend((f"{words} {name}", child) for name, child in command.commands.items())
        else:
            found[words] = command
    return dict(sorted(found.items()))


def examples() -> dict[str, str]:
    """The example of every command, as printed."""
    return {words: (command.epilog or "").removeprefix("Example: ") for words, command in commands().items()}


def test_the_expected_verbs_are_there() -> None:
    """A verb cannot vanish from the command line unnoticed."""
    assert list(commands()) == [
        "isthmus audit",
        "isthmus budget",
        "isthmus calibrate",
        "isthmus certs init",
        "isthmus certs node",
        "isthmus certs renew",
        "isthmus certs replace-ca",
        "isthmus certs retire-ca",
        "isthmus certs show",
        "isthmus demo",
        "isthmus doctor",
        "isthmus domain check",
        "isthmus domain import",
        "isthmus evaluate",
        "isthmus fit",
        "isthmus invite",
        "isthmus join",
        "isthmus keys revoke",
        "isthmus keys rotate",
        "isthmus keys show",
        "isthmus leave",
        "isthmus pretrain",
        "isthmus recommend",
        "isthmus server init",
        "isthmus server log",
        "isthmus server nodes add",
        "isthmus server nodes list",
        "isthmus server nodes remove",
        "isthmus server run",
        "isthmus server status",
        "isthmus server stop",
        "isthmus server up",
        "isthmus simulate",
        "isthmus sweep",
        "isthmus vault",
        "isthmus verify",
    ]


@pytest.mark.parametrize("words", list(commands()))
def test_help_says_what_it_does_and_ends_in_an_example(words: str) -> None:
    """Each command has a sentence of help and an example that calls that very command."""
    command = commands()[words]
    assert command.help, words
    assert command.help.strip().endswith("."), words
    assert (command.epilog or "").startswith(f"Example: {words} "), words


@pytest.mark.parametrize("words", list(commands()))
def test_every_parameter_is_explained(words: str) -> None:
    """No option is without help, and every argument is a word of the command's own text."""
    command = commands()[words]
    context = click.Context(command)
    silent = [
        parameter.name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not (parameter.get_help_record(context) or ("", ""))[1].strip()
    ]
    arguments = [parameter.name or "" for parameter in command.params if isinstance(parameter, click.Argument)]
    assert silent == []
    assert [name for name in arguments if f"{name.upper()} is" not in (command.help or "")] == []
