"""A domain folder made from files that came from elsewhere.

    privacy = propose_privacy(epsilon=8.0, delta=1e-6, expected_users=5_000, clip=1.0)
    config = import_domain(
        name="films", interactions=Path("ratings.csv.gz"), items=Path("movies.tsv"), target=Path("domains/films"),
        columns=ImportColumns(user="uid", item="mid", timestamp="ts"), public_catalogue=True, privacy=privacy,
    )

The source files are loaded first, so a file that cannot be used is refused before anything is written. Then rows
are copied as they are (ids as text, times as UTC date-times, an unreadable time as null): the repairs happen, and are
counted, each time the domain is loaded, and the same numbers come out. Nothing about privacy has a default: the
caller says what may be spent and how many users are *publicly* expected.
"""

import contextlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
from pydantic import ValidationError

from isthmus.clients.data.catalogue import template_columns
from isthmus.clients.data.clock import to_microseconds
from isthmus.clients.data.domain import load_domain_data
from isthmus.clients.data.events import Columns, open_interactions
from isthmus.clients.data.tables import Table, open_table
from isthmus.config import DomainConfig, Interactions, Items, PrivacyPolicy, Split, TableFormat, load_domain
from isthmus.errors import ConfigError
from isthmus.settings import toml_value

_LARGEST_BATCH = 4096  # users; beyond this a step costs more time than the lower noise is worth


@dataclass(frozen=True, kw_only=True)
class ImportColumns:
    """How the source files are laid out; None takes the default of domain.toml for that layout.

    Attributes:
        interactions_format: Layout of the interaction file; must be said for a sequence file.
        items_format: Layout of the item file.
        user: Column of user ids.
        item: Column of item ids in the interaction file.
        timestamp: Column of times; without one the file's order is the order of time.
        event: Column of event types.
        keep_events: Event types that count.
        item_id: Column of item ids in the item file.
        title: Column shown to people.
        text: Template of an item's text, column names in braces; "{<title column>}" when None.
    """

    interactions_format: TableFormat | None = None
    items_format: TableFormat | None = None
    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    event: str | None = None
    keep_events: tuple[str, ...] | None = None
    item_id: str | None = None
    title: str | None = None
    text: str | None = None


def propose_privacy(  # noqa: PLR0913 - keyword-only, one for each thing that must be said
    *,
    epsilon: float,
    delta: float,
    expected_users: int,
    clip: float,
    rounds: int = 10,
    steps_per_round: int = 2,
    evaluations: int = 2,
    metric_noise_multiplier: float = 20.0,
) -> PrivacyPolicy:
    """A privacy policy from public constants alone; no data is looked at.

    A batch holds a quarter of the expected users, at most 4,096; the rate and the divisor follow from that.

    Args:
        epsilon: Limit over all runs on the data set.
        delta: Probability of failure over all runs; below 1 / expected_users.
        expected_users: A public figure for how many users the domain has, never the count in the file.
        clip: L2 norm to which one user's gradient is clipped.
        rounds: Rounds to calibrate for.
        steps_per_round: Noisy steps in a round.
        evaluations: Noisy evaluations that may be released.
        metric_noise_multiplier: Noise standard deviation of an evaluation / its L2 sensitivity.

    Raises:
        ConfigError: If a value is out of its range.
    """
    if expected_users < 1:
        raise ConfigError(f"expected_users must be at least 1, got {expected_users}")
    if delta >= 1 / expected_users:
        raise ConfigError(
            f"delta must be below 1 / expected_users = {1 / expected_users:.2g}, got {delta:g}: at that value a whole "
            "user may leak by chance. 1e-6 is a usual choice."
        )
    batch = min(max(expected_users / 4, 1.0), float(_LARGEST_BATCH))
    try:
        return PrivacyPolicy(
            epsilon=epsilon,
            delta=delta,
            clip=clip,
            sample_rate=batch / expected_users,
            expected_batch=batch,
            steps_per_round=steps_per_round,
            rounds=rounds,
            evaluations=evaluations,
            metric_noise_multiplier=metric_noise_multiplier,
        )
    except ValidationError as error:
        raise _explained(error) from None


def import_domain(  # noqa: PLR0913 - keyword-only, one for each thing that must be said
    *,
    name: str,
    interactions: Path,
    items: Path,
    target: Path,
    public_catalogue: bool,
    privacy: PrivacyPolicy,
    columns: ImportColumns | None = None,
    split: Split | None = None,
) -> DomainConfig:
    """Make a domain folder: `interactions.parquet`, `items.parquet` and a commented `domain.toml`.

    Args:
        name: Of the domain.
        interactions: File of events, any layout that a domain can read.
        items: File of items, likewise.
        target: Folder to make; it must not exist.
        public_catalogue: The caller's word that the item table is public.
        privacy: What may be spent; see `propose_privacy`.
        columns: How the files are laid out.
        split: Split rule; leave-one-out when None.

    Returns:
        The configuration of the new folder, as `load_domain` reads it.

    Raises:
        ConfigError: If the folder exists or a name is wrong.
        DataError: If a file cannot be used. Nothing is written then.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already and is not overwritten. Choose another folder, or remove it.")
    said = columns or ImportColumns()
    try:
        source = DomainConfig(
            name=name,
            interactions=_interactions(interactions, said),
            items=_items(items, said, public=public_catalogue),
            split=split or Split(),
            privacy=privacy,
            folder=interactions.resolve().parent,
        )
    except ValidationError as error:
        raise _explained(error) from None
    load_domain_data(source)
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{partial}: left behind by an import that was broken off. Remove it.") from None
    except OSError as error:
        raise ConfigError(f"{partial}: cannot be made: {error.strerror}") from None
    try:
        copied = _copy(source, partial)
        (partial / "domain.toml").write_text(_toml(copied), encoding="utf-8")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return load_domain(target)


def _interactions(path: Path, said: ImportColumns) -> Interactions:
    """The [interactions] section that reads a source file where it lies."""
    values = {
        "format": said.interactions_format,
        "user": said.user,
        "item": said.item,
        "timestamp": said.timestamp,
        "event": said.event,
        "keep_events": said.keep_events,
    }
    return Interactions.model_validate({"path": str(path.resolve()), **_given(values)})


def _items(path: Path, said: ImportColumns, *, public: bool) -> Items:
    """The [items] section that reads a source file where it lies."""
    text = said.text
    if text is None and said.title is not None:
        text = f"{{{said.title}}}"
    values = {"format": said.items_format, "id": said.item_id, "title": said.title, "text": text}
    return Items.model_validate({"path": str(path.resolve()), "public": public, **_given(values)})


def _given(values: Mapping[str, object]) -> dict[str, object]:
    """Only what was said, so that the defaults of the layout apply to the rest."""
    return {key: value for key, value in values.items() if value is not None}


def _explained(error: ValidationError) -> ConfigError:
    """A refusal of the configuration model as a sentence for the user."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    return ConfigError(f"{key}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}")


def _copy(source: DomainConfig, folder: Path) -> DomainConfig:
    """Write both tables and return the configuration that reads them there."""
    interactions = copy_interactions(source, folder)
    said = source.items
    wanted = list(dict.fromkeys([said.id, said.title, *template_columns(said.text)]))
    table = open_table(source.items_path, declared=said.format).read({name: name for name in wanted})
    pl.DataFrame({name: table.ids(name) if name == said.id else table.text(name) for name in wanted}).write_parquet(
        folder / "items.parquet"
    )
    items = {"path": "items.parquet", "id": said.id, "title": said.title, "text": said.text, "public": said.public}
    return DomainConfig(
        name=source.name,
        interactions=interactions,
        items=Items.model_validate(items),
        split=source.split,
        privacy=source.privacy,
        folder=folder,
    )


def copy_interactions(
    source: DomainConfig, folder: Path, *, without_users: Collection[str] = (), without_items: Collection[str] = ()
) -> Interactions:
    """Write a domain's events to `interactions.parquet`, as they are but for those of some users or items.

    Args:
        source: The domain.
        folder: Where to; it must exist.
        without_users: Ids of users of whom nothing is written.
        without_items: Ids of items of which no event is written.

    Returns:
        The section of domain.toml that reads the copy.
    """
    pieces, names, _ = open_interactions(source)
    users, items = pl.Series(list(without_users), dtype=pl.String), pl.Series(list(without_items), dtype=pl.String)
    with contextlib.ExitStack() as opened:
        writer = None
        for piece in pieces:
            frame = _copied(piece, names)
            frame = frame.filter(~(frame["user"].is_in(users.implode()) | frame["item"].is_in(items.implode())))
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            if writer is None:
                writer = opened.enter_context(pq.ParquetWriter(folder / "interactions.parquet", table.schema))
            writer.write_table(table)
    values = {
        "path": "interactions.parquet",
        **{column: column for column in ("user", "item")},
        **({} if names.timestamp is None else {"timestamp": "timestamp"}),
        **({} if names.event is None else {"event": "event"}),
        **_given({"keep_events": source.interactions.keep_events}),
    }
    return Interactions.model_validate(values)


def _copied(piece: Table, names: Columns) -> pl.DataFrame:
    """Rows under the names of a domain folder."""
    frame = pl.DataFrame({"user": piece.ids(names.user), "item": piece.ids(names.item)})
    if names.timestamp is not None:
        micro = to_microseconds(piece.frame[names.timestamp])
        frame = frame.with_columns(micro.cast(pl.Datetime("us", "UTC")).alias("timestamp"))
    if names.event is not None:
        frame = frame.with_columns(piece.ids(names.event).alias("event"))
    return frame


_COMMENTS = {
    "interactions": "Who did what. Private: this table never leaves the domain.",
    "items": "The catalogue. Public: text features are computed from it and their moments leave the domain.",
    "split": "Which events train, validate and test.",
    "privacy": "What may be spent on these users over all runs, and public constants of the training.\n"
    "# None of these may be derived from the data: an exact user count must not leak.",
    "epsilon": "limit over all runs on this data set",
    "delta": "probability of failure, over all runs",
    "clip": "L2 norm of one user's gradient after clipping",
    "sample_rate": "probability that a user is in a batch",
    "expected_batch": "divisor of a summed gradient, in users: a constant, never a count",
    "steps_per_round": "noisy steps in one round",
    "rounds": "rounds for which the noise is calibrated",
    "evaluations": "noisy evaluations that may be released",
    "metric_noise_multiplier": "noise of an evaluation / its sensitivity",
    "min_events": "a user with fewer events trains only",
    "max_history": "latest events of a user that are used",
    "text": "column names in braces; only the columns named here were imported",
}


def _toml(config: DomainConfig) -> str:
    """The configuration as a commented domain.toml."""
    lines = [f"name = {toml_value(config.name)}"]
    for section in ("interactions", "items", "split", "privacy"):
        lines += ["", f"# {_COMMENTS[section]}", f"[{section}]"]
        values = getattr(config, section).model_dump(mode="json", exclude_none=True)
        for key, value in values.items():
            comment = f"  # {_COMMENTS[key]}" if key in _COMMENTS else ""
            lines.append(f"{key} = {toml_value(value)}{comment}")
    return "\n".join(lines) + "\n"
