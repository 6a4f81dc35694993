"""Verbs on books: `isthmus audit`, `isthmus verify`, `isthmus budget`.

They need neither torch nor flwr, `isthmus audit --empirical` apart, and import what they need when they are called.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.console import stderr, stdout
from isthmus.cli.data import Json
from isthmus.cli.verdicts import print_verified
from isthmus.errors import ConfigError, RunError

if TYPE_CHECKING:
    from isthmus.privacy.audit import Sources
    from isthmus.report.audit import Empirical

Heads = Annotated[
    list[Path] | None, typer.Option(help="A coordinator's log, to hold ledgers against; may be repeated.")
]
Trusted = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        help="Public key of a domain, or of an auditor, known from elsewhere, in hex or in a file; may be "
        "repeated. Every ledger must then be signed under one of them.",
    ),
]
Coordinators = Annotated[
    list[str] | None,
    typer.Option(
        "--coordinator-key",
        help="The same for coordinators: every log of heads and every receipt must then be signed under one of them.",
    ),
]
Delta = Annotated[float | None, typer.Option(help="State epsilon at this delta; each policy's own where absent.")]


def audit(  # noqa: PLR0913, PLR0917 - options
    ledgers: Annotated[list[Path], typer.Argument()],
    empirical: Annotated[
        bool,
        typer.Option(
            "--empirical",
            help="Attack the installed program as well, with made-up users: canaries, planted users, membership "
            "inference. Takes a minute or two on one core.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the signed audit instead of a summary.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the signed audit, JSON, to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file; it needs no network.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Write an A4 document to this file.")] = None,
    heads: Heads = None,
    trusted: Trusted = None,
    coordinators: Coordinators = None,
    delta: Delta = None,
    auditor_key: Annotated[
        Path | None, typer.Option(help="Sealed key file that signs the audit; made on first use.")
    ] = None,
) -> None:
    """Say what was spent, on whom, over all runs, and whether the books can be believed.

    LEDGERS is one or more ledgers (ledger.db), domain folders, run folders or federation folders. Exit 0: nothing
    found; 1: a finding; 2: wrong use.

    --empirical attacks the policy and the backbone of the domain or federation in those folders (of several domains,
    the one with the least noise), and a built-in policy where there is none. Each attack proves a lower bound on
    epsilon; one above the claim is a finding, as is any other check that fails.
    """
    from isthmus.privacy.audit import auditor_keys, make_audit, sign  # noqa: PLC0415 - takes seconds to import
    from isthmus.report.audit import to_text  # noqa: PLC0415
    from isthmus.report.audit_terminal import print_audit  # noqa: PLC0415
    from isthmus.report.result import write_atomically  # noqa: PLC0415

    sources = _sources(ledgers, heads)
    sources.require_ledgers()  # before minutes are spent on attacks
    keys, others = _keys(trusted, "--key"), _keys(coordinators, "--coordinator-key")
    proven = _attacked(ledgers) if empirical else ()
    found = make_audit(sources, trusted=keys, coordinators=others, delta=delta, empirical=proven)
    if as_json or out:
        text = to_text(sign(found, auditor_keys(auditor_key)))
        if out:
            write_atomically(text.encode(), out)
        if as_json:
            stdout.file.write(text)
    if html:
        from isthmus.report.audit_page import render_audit  # noqa: PLC0415 - brings jinja2 and matplotlib

        render_audit(found, html)
    if pdf:
        from isthmus.report.audit_pdf import write_pdf  # noqa: PLC0415 - brings reportlab

        write_pdf(found, pdf)
    if not as_json:
        print_audit(found, stdout)
        for kind, path in (("signed audit", out), ("page", html), ("document", pdf)):
            if path:
                stdout.print(f"{kind}: {path}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if found.findings else 0)


def verify(  # noqa: PLR0913, PLR0917 - options
    files: Annotated[list[Path], typer.Argument()],
    as_json: Json = False,
    heads: Heads = None,
    trusted: Trusted = None,
    coordinators: Coordinators = None,
    delta: Delta = None,
) -> None:
    """Check files without trusting who made them: chain, signatures, receipts, form, and epsilon from the entries.

    FILES is one or more ledgers, coordinators' logs, signed audits (JSON), or folders that hold ledgers. Needs
    nothing but the files, the public keys and dp-accounting. Exit 0: all sound; 1: a finding; 2: wrong use.
    """
    from isthmus.privacy.audit.verification import verify_files  # noqa: PLC0415 - takes seconds to import

    verified = verify_files(
        files,
        heads=heads or (),
        trusted=_keys(trusted, "--key"),
        coordinators=_keys(coordinators, "--coordinator-key"),
        delta=delta,
    )
    if as_json:
        stdout.print_json(json.dumps([one.to_dict() for one in verified]))
    else:
        print_verified(verified, stdout)
    raise typer.Exit(0 if all(one.sound for one in verified) else 1)


def budget(
    ledgers: Annotated[list[Path], typer.Argument()],
    as_json: Json = False,
    delta: Delta = None,
) -> None:
    """Print one line per data set, for scripts: name, spent, left, limit, delta, more rounds, path.

    LEDGERS is one or more ledgers or folders, as for `isthmus audit`. Columns are separated by tabs; `-` stands for
    what is not known, `inf` for an epsilon that cannot be proven. Spent is rounded up and left down. At another
    --delta than the policy's there is no limit, and nothing left of it. More rounds: how many like the last one still
    fit, by the policy. Exit 1: a ledger cannot be believed.
    """
    from isthmus.privacy.audit.budgets import budget_lines  # noqa: PLC0415 - takes seconds to import

    lines, findings = budget_lines(_sources(ledgers, None), delta=delta)
    if as_json:
        stdout.print_json(json.dumps([line.to_dict() for line in lines]))
    else:
        for line in lines:
            stdout.file.write(f"{line.text()}\n")
    for path, finding in findings:
        stderr.print(f"{path}: line {finding.line}: {finding.text}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1 if findings else 0)


def _attacked(paths: list[Path]) -> "tuple[Empirical, ...]":
    """Attack what the paths stand for, with progress on stderr."""
    try:
        from isthmus.clients.audit import attacks, target_of  # noqa: PLC0415 - brings torch
    except ModuleNotFoundError as error:
        raise RunError(
            f"--empirical runs the training code, and {error.name!r} is not installed. Leave the option out, or "
            f"install all of Isthmus: pip install isthmus"
        ) from None
    from isthmus.report import attack_words  # noqa: PLC0415
    from isthmus.report.audit import Empirical  # noqa: PLC0415

    proven = []
    with target_of(paths) as target:
        _progress(f"attacking the program with made-up users: {target.what}")
        planned = attacks(target)
        for number, attack in enumerate(planned, start=1):
            _progress(f"attack {number} of {len(planned)}, {attack.name}: {attack.about}")
            with stderr.status(f"attack {number} of {len(planned)}"):
                evidence = attack.run()
            proven.append(Empirical.of(evidence.to_dict(), attacked=target.what))
            _progress(f"  {attack_words.proven(proven[-1])}")
    return tuple(proven)


def _progress(text: str) -> None:
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def _sources(ledgers: list[Path], heads: list[Path] | None) -> "Sources":
    from isthmus.privacy.audit import read_sources  # noqa: PLC0415 - takes seconds to import

    return read_sources(ledgers, heads=heads or ())


def _keys(given: list[str] | None, option: str) -> frozenset[bytes]:
    return frozenset(_key(each, option) for each in given or ())


def _key(given: str, option: str) -> bytes:
    """A public key from 64 hex digits, from a file that holds them, or from a sealed key file's open part."""
    text, path = given, Path(given)
    if len(given) != 64 and path.is_file():
        try:
            text = path.read_text(encoding="ascii").strip()
            if text.startswith("{"):
                text = str(json.loads(text)["public"])
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{path}: holds no public key: {error!r:.100}") from None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(f"{option}: a public key is 64 hex digits, or a file that holds them; got {given[:80]!r}")
    return key
