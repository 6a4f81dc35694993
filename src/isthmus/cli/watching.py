"""What the terminal shows while a simulation runs: stages, rounds, and epsilon spent and left."""

from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from isthmus.cli.console import stderr
from isthmus.config import DomainConfig
from isthmus.privacy.policy import load_policy
from isthmus.server.checkpoint import RunState
from isthmus.strategies.guarded import OK


class LiveWatcher:
    """Shows a simulation's progress on stderr; one plain line per stage and round where that is no terminal."""

    def __init__(self, domains: tuple[DomainConfig, ...]) -> None:
        # What the vault enforces: policy.toml's, where there is one.
        self._budgets = {domain.name: load_policy(domain).limits.lifetime.epsilon for domain in domains}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=stderr,
        )
        self._live = Live(self._progress, console=stderr, transient=True) if stderr.is_terminal else None
        self._rounds = self._progress.add_task("rounds", total=None, visible=False)
        self._texts = self._progress.add_task("texts", total=None, visible=False)
        self._work = Text("")
        self._table = Table.grid()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def stage(self, what: str) -> None:
        """A new part of the work begins."""
        self._progress.update(self._texts, visible=False)
        self._work = Text(what, style="dim")
        self._show(what)

    def texts(self, done: int, total: int) -> None:
        """Item texts are being encoded."""
        self._progress.update(self._texts, completed=done, total=total, visible=done < total)
        self._show(None)

    def round(self, state: RunState, rounds: int, spent: dict[str, float]) -> None:
        """A round is finished."""
        self._progress.update(self._rounds, completed=state.round, total=rounds, visible=True)
        self._table = self._domains(state, spent)
        last = state.history[-1] if state.history else None
        gain = f", noisy gain over the text prior {last.gain:+.4f}" if last and last.gain is not None else ""
        most = max(spent, key=lambda name: spent[name] / self._budgets[name])
        epsilon = f"epsilon at most {spent[most]:.2f} of {self._budgets[most]:g} ({most})"
        self._show(f"round {state.round} of {rounds}: {epsilon}{gain}")

    def _domains(self, state: RunState, spent: dict[str, float]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("domain", "epsilon spent", "left", "last round"):
            table.add_column(column, justify="left" if column in ("domain", "last round") else "right")
        outcomes = state.history[-1].outcomes if state.history else {}
        for name, epsilon in spent.items():
            outcome = outcomes.get(name)
            status = "" if outcome is None else outcome.status
            style = "" if status in ("", OK) else "yellow"
            table.add_row(name, f"{epsilon:.3f}", f"{self._budgets[name] - epsilon:.3f}", Text(status, style=style))
        return table

    def _show(self, line: str | None) -> None:
        if self._live:
            self._live.update(Group(self._table, self._progress, self._work))
        elif line:
            stderr.print(line, highlight=False, soft_wrap=True)
