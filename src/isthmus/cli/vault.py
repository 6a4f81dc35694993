"""Verbs of a business unit: `isthmus vault` answers a federation's questions, `isthmus fit` uses what came of it."""

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isthmus.cli.console import stderr, stdout
from isthmus.cli.data import Json
from isthmus.errors import ConfigError


def vault(  # noqa: PLR0913, PLR0917 - options
    domain: Annotated[Path, typer.Argument()],
    socket: Annotated[
        Path | None, typer.Option(help="Unix socket to listen at; vault.sock in the domain's folder where absent.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Group that may use the socket, besides the owner.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT instead of a socket; needs the three below.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The vault's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    clients_ca: Annotated[Path | None, typer.Option(help="Authority that signs clients' certificates, PEM.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger, instead of the one beside the data.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Make noise repeatable, for tests. NOT private; needs --ledger.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Torch threads.", min=1)] = 1,
) -> None:
    """Answer a federation's questions about one domain, within its policy, until stopped.

    DOMAIN is a domain folder, or the domain.toml in it. Whoever may use the socket may ask; what leaves is what the
    policy and the ledger allow. Stop it with Ctrl-C or SIGTERM; started again, it goes on with its ledger.
    """
    from isthmus.clients.serving import TlsPort, UnixSocket, serve  # noqa: PLC0415 - these take seconds to import
    from isthmus.clients.vault import open_vault  # noqa: PLC0415
    from isthmus.config import load_domain  # noqa: PLC0415

    config = load_domain(domain)
    files = (tls_cert, tls_key, clients_ca)
    where: UnixSocket | TlsPort
    if listen is None:
        if any(files):
            raise ConfigError("--tls-cert, --tls-key and --clients-ca belong to --listen HOST:PORT")
        where = UnixSocket(path=socket or config.folder / "vault.sock", group=group)
    elif tls_cert is None or tls_key is None or clients_ca is None or socket is not None:
        raise ConfigError("--listen needs --tls-cert, --tls-key and --clients-ca, and no --socket")
    else:
        where = TlsPort(address=listen, certificate=tls_cert, key=tls_key, clients=clients_ca)
    if seed is not None and ledger is None:
        raise ConfigError("--seed makes noise that can be repeated: keep its books apart, with --ledger FILE")
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    opened = open_vault(config, ledger=ledger, seed=seed, threads=threads)
    spent = f"epsilon {opened.epsilon():.3f} of {opened.budget.epsilon:g} is spent (delta {opened.budget.delta:g})"
    note = "" if opened.private else "; NOT PRIVATE: its noise can be repeated"
    _say(f"vault of {opened.name}: loading its tables; {spent}{note}")
    serve(opened, where, stopped=stopped, ready=lambda address: _say(f"vault of {opened.name}: listening at {address}"))
    _say(f"vault of {config.name}: stopped")


def _say(text: str) -> None:
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def fit(
    domain: Annotated[Path, typer.Argument()],
    out: Annotated[
        Path | None, typer.Option(help="Folder to serve from; `serving` in the domain's where absent.")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger, instead of the one beside the data.")] = None,
    threads: Annotated[int, typer.Option(help="Torch threads.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Fit the private head of a domain on the backbone that its last run ended with; nothing of it leaves.

    DOMAIN is a domain folder, or the domain.toml in it. Afterwards `isthmus recommend --run OUT` serves its users.
    The figures are raw, of the domain's own test items: not to be published.
    """
    from isthmus.clients.fitting import fit_delivered  # noqa: PLC0415 - takes seconds to import
    from isthmus.config import load_domain  # noqa: PLC0415
    from isthmus.report.words import METHODS  # noqa: PLC0415

    config = load_domain(domain)
    folder = out or config.folder / "serving"
    fitted = fit_delivered(config, out=folder, ledger=ledger, threads=threads)
    figures = {
        method.value: {"hr@10": score.hr, "ndcg@10": score.ndcg, "mrr": score.mrr, "ndcg@10_ci95": score.ndcg_ci95}
        for method, score in fitted.scores.items()
    }
    if as_json:
        verdict = {"domain": config.name, "run": fitted.run, "verdict": fitted.head.verdict.value, "test": figures}
        stdout.print_json(json.dumps(verdict))
        return
    table = Table(box=None)
    for column in ("method", "HR@10", "NDCG@10", "95% interval", "MRR"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, score in fitted.scores.items():
        low, high = score.ndcg_ci95
        interval = f"[{low:.4f}, {high:.4f}]"
        table.add_row(METHODS[method.value], f"{score.hr:.4f}", f"{score.ndcg:.4f}", interval, f"{score.mrr:.4f}")
    stdout.print(table)
    stdout.print(f"verdict: {fitted.head.verdict.value}; served from {folder}", markup=False, highlight=False)
