"""The `isthmus` command.

    isthmus simulate federation.toml --out run

Results go to stdout, progress and errors to stderr. Exit 0: fine; 1: a rule said no (a finding, a budget);
2: wrong use (a file, a value); 130: stopped by Ctrl-C. No traceback for anything a user can cause.
"""

import os
import sys
from typing import Annotated

for _switch, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
    ("HF_HUB_OFFLINE", "1"),
    ("OMP_WAIT_POLICY", "passive"),  # a thread that waits by spinning makes a busy machine ten times slower
):
    os.environ.setdefault(_switch, _value)  # before anything imports them: nothing phones home, nothing is fetched

import typer  # noqa: E402

from isthmus.cli.audit import audit, budget, verify  # noqa: E402
from isthmus.cli.certs import certs_app  # noqa: E402
from isthmus.cli.console import stderr, stdout  # noqa: E402
from isthmus.cli.data import domain_app, write_demo_federation  # noqa: E402
from isthmus.cli.doctor import doctor  # noqa: E402
from isthmus.cli.joining import invite, join, leave  # noqa: E402
from isthmus.cli.keys import keys_app  # noqa: E402
from isthmus.cli.pretraining import pretrain  # noqa: E402
from isthmus.cli.run import calibrate, recommend, simulate  # noqa: E402
from isthmus.cli.server import server_app  # noqa: E402
from isthmus.cli.study import SeveralValues, evaluate, sweep  # noqa: E402
from isthmus.cli.vault import fit, vault  # noqa: E402
from isthmus.errors import IsthmusError  # noqa: E402

app = typer.Typer(
    name="isthmus",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    """Print which version and which program this is, and end."""
    if not asked:
        return
    import isthmus  # noqa: PLC0415 - reads every source file: only where it is asked for
    from isthmus.privacy.program import code_hash  # noqa: PLC0415

    stdout.print(f"isthmus {isthmus.__version__}\nprogram {code_hash()}", highlight=False, soft_wrap=True)
    raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and the hash of the program's source, as ledgers and policies name it, and end.",
        ),
    ] = False,
) -> None:
    """Privacy-preserving federated transfer learning for recommendation."""


app.command("simulate", epilog="Example: isthmus simulate isthmus-demo/federation.toml --out run --rounds 2")(simulate)
app.command(
    "evaluate",
    cls=SeveralValues,
    epilog="Example: isthmus evaluate isthmus-demo/federation.toml --out evaluation --rounds 1 --scenario new-domain "
    "--hold-out social --users 0 64",
)(evaluate)
app.command(
    "sweep",
    cls=SeveralValues,
    epilog="Example: isthmus sweep isthmus-demo/federation.toml --out sweep --rounds 1 --epsilon 4 8",
)(sweep)
app.command("pretrain", epilog="Example: isthmus pretrain public.toml --out backbone.safetensors")(pretrain)
app.command("demo", epilog="Example: isthmus demo isthmus-demo")(write_demo_federation)
app.command("calibrate", epilog="Example: isthmus calibrate isthmus-demo/shopping/domain.toml")(calibrate)
app.command("recommend", epilog="Example: isthmus recommend --run run --domain dining --user dining-person-00003")(
    recommend
)
app.command("audit", epilog="Example: isthmus audit run --html run/audit.html")(audit)
app.command("verify", epilog="Example: isthmus verify run/ledgers/shopping.db --heads run/heads.db")(verify)
app.command("budget", epilog="Example: isthmus budget run")(budget)
app.command("vault", epilog="Example: isthmus vault isthmus-demo/shopping --socket shopping.sock")(vault)
app.command("fit", epilog="Example: isthmus fit isthmus-demo/dining --ledger run/ledgers/dining.db --out serving")(fit)
app.command("invite", epilog="Example: isthmus invite dining")(invite)
app.command("join", epilog="Example: isthmus join dining.zip isthmus-demo/dining")(join)
app.command("leave", epilog="Example: isthmus leave isthmus-demo/dining")(leave)
app.command("doctor", epilog="Example: isthmus doctor --json")(doctor)
app.add_typer(domain_app)
app.add_typer(keys_app)
app.add_typer(certs_app)
app.add_typer(server_app)


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    try:
        app(standalone_mode=True)
    except IsthmusError as error:
        stderr.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        stderr.print("stopped; the same command continues where this one left off", style="yellow")
        sys.exit(130)
