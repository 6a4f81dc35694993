"""Import: a domain folder that loads, with the same data and the same findings, or nothing at all."""

import dataclasses
import gzip
import tomllib

import polars as pl
import pytest

from isthmus.clients.data import ImportColumns, import_domain, load_domain_data, propose_privacy
from isthmus.config import Interactions, Items, Split, TableFormat, load_domain
from isthmus.errors import ConfigError, DataError, IsthmusError

DIRTY = """user,item,timestamp,kind
007,a,3,buy
007,b,1,buy
,a,1,buy
007,zzz,1,buy
007,c,never,buy
007,d,4,view
007,d,2.5,buy
007,a,3,buy
"""


def import_toy(toy, **changes):
    """Import the toy domain's files into the folder `out`."""
    arguments = {
        "name": "toy",
        "interactions": toy.folder / "events.csv",
        "items": toy.folder / "items.csv",
        "target": toy.folder / "made" / "out",
        "public_catalogue": True,
        "privacy": propose_privacy(epsilon=8.0, delta=1e-6, expected_users=1000, clip=1.0),
        "columns": ImportColumns(timestamp="timestamp"),
    }
    return import_domain(**{**arguments, **changes})


def findings(report):
    """A report without its sentences, which name lines of different files."""
    return {**report.to_dict(), "notes": None}


def test_an_imported_domain_has_the_data_and_the_findings_of_its_source(toy) -> None:
    """Rows are copied as they are: the same repairs are counted afterwards, and the fingerprint is the same."""
    toy.write("events.csv", DIRTY)
    keys = {"timestamp": "timestamp", "event": "kind", "keep_events": ("buy",)}
    source = toy.load(**keys, items={"text": "{title}: {category}"})
    config = import_toy(toy, columns=ImportColumns(**keys, text="{title}: {category}"))
    made = load_domain_data(config)
    assert made.fingerprint == source.fingerprint
    assert findings(made.report) == findings(source.report)
    assert made.report.rows_with_bad_timestamp == made.report.events_of_other_types == 1
    assert made.catalogue == source.catalogue
    assert made.users == ("007",)
    assert config == load_domain(toy.folder / "made" / "out")


@pytest.mark.parametrize("layout", ["parquet", "tsv.gz", "inter", "sequence"])
def test_every_layout_can_be_imported(toy, layout) -> None:
    """Formats and column names of the source do not show in the new folder."""
    path = toy.folder / f"source.{layout}"
    frame = pl.DataFrame({"uid": ["u", "u", "v"], "mid": ["b", "a", "c"], "at": [1.5, 2.0, 3.0]})
    columns = ImportColumns(user="uid", item="mid", timestamp="at")
    if layout == "parquet":
        frame.write_parquet(path)
    elif layout == "tsv.gz":
        path.write_bytes(gzip.compress(frame.write_csv(separator="\t").encode()))
    elif layout == "inter":
        path.write_text("user_id:token\titem_id:token\ttimestamp:float\nu\tb\t1.5\nv\tc\t3\nu\ta\t2\n")
        columns = ImportColumns()
    else:
        path.write_text("u\tb a\nv\tc\n")
        columns = ImportColumns(interactions_format=TableFormat.SEQUENCE)
    config = import_toy(toy, interactions=path, columns=columns)
    data = load_domain_data(config)
    assert data.users == ("u", "v")
    assert [data.train.row(user).tolist() for user in range(2)] == [[1, 0], [2]]
    assert (config.interactions.user, config.interactions.item) == ("user", "item")
    assert (config.interactions.timestamp is None) == (layout == "sequence")


def test_column_names_of_the_item_table_are_kept_and_its_title_is_the_default_text(toy) -> None:
    """Only the columns that the domain names are copied."""
    toy.write("items.csv", "mid,name,price\na,Apple,1\nb,Bread,2\nc,Cake,3\nd,Dill,4\n")
    columns = ImportColumns(timestamp="timestamp", item_id="mid", title="name")
    config = import_toy(toy, columns=columns)
    assert pl.read_parquet(config.items_path).columns == ["mid", "name"]
    assert load_domain_data(config).catalogue.texts == ("Apple", "Bread", "Cake", "Dill")


def test_the_written_file_states_every_privacy_value_with_its_meaning(toy) -> None:
    """Nothing that decides a guarantee is left to a default that nobody reads."""
    policy = propose_privacy(epsilon=3.5, delta=1e-7, expected_users=10_000, clip=0.5)
    config = import_toy(toy, privacy=policy, split=Split(max_history=20))
    text = (config.folder / "domain.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["privacy"] == policy.model_dump()
    assert tomllib.loads(text)["split"]["max_history"] == 20
    for line in text.partition("[privacy]\n")[2].splitlines():
        assert "  # " in line
    assert config.privacy == policy


def test_odd_characters_survive_the_file(toy) -> None:
    """Quotes, backslashes, control characters and other scripts in names are written as TOML reads them."""
    name = 'na"me\\ \x7f\t\u6771'
    pl.DataFrame({"item_id": ["a"], name: ["Apple"]}).write_parquet(toy.folder / "i.parquet")
    config = import_toy(toy, items=toy.folder / "i.parquet", columns=ImportColumns(timestamp="timestamp", title=name))
    assert config.items.title == name
    assert load_domain_data(config).catalogue.texts == ("Apple",)


def test_a_proposal_follows_from_public_constants_alone() -> None:
    """Rate x expected users is the divisor, so that the noise is calibrated for the batch that is drawn."""
    for users in (1, 7, 300, 100_000):
        policy = propose_privacy(epsilon=8.0, delta=1e-9, expected_users=users, clip=1.0, rounds=3)
        assert policy.sample_rate * users == pytest.approx(policy.expected_batch)
        assert 1 <= policy.expected_batch <= 4096
        assert policy.rounds == 3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"expected_users": 0}, "expected_users must be at least 1, got 0"),
        ({"delta": 1e-2}, r"delta must be below 1 / expected_users = 0\.001, got 0\.01"),
        ({"epsilon": 0.0}, r"epsilon: .*greater than 0, got 0\.0"),
        ({"clip": float("nan")}, "clip: .*got nan"),
        ({"rounds": 0}, "rounds: .*got 0"),
    ],
)
def test_a_proposal_out_of_range_is_refused(changes, match) -> None:
    """The key, the rule and the value are in the message."""
    public = {"epsilon": 8.0, "delta": 1e-6, "expected_users": 1000, "clip": 1.0}
    with pytest.raises(ConfigError, match=match):
        propose_privacy(**{**public, **changes})


def test_an_existing_folder_is_never_overwritten(toy) -> None:
    """Not even an empty one."""
    target = toy.folder / "there"
    target.mkdir()
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        import_toy(toy, target=target)
    assert list(target.iterdir()) == []


def test_a_broken_off_import_is_pointed_out(toy) -> None:
    """A half-written folder is not taken for a domain and not deleted unasked."""
    partial = toy.folder / "made" / "out.partial"
    partial.mkdir(parents=True)
    with pytest.raises(ConfigError, match="left behind by an import"):
        import_toy(toy)
    assert partial.is_dir()


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"columns": ImportColumns(user="usr")}, DataError, "no column 'usr'.*Did you mean 'user'"),
        ({"columns": ImportColumns(title="titel")}, DataError, "no column 'titel'.*Did you mean 'title'"),
        ({"columns": ImportColumns(keep_events=("buy",))}, ConfigError, "keep_events needs `event`"),
        ({"columns": ImportColumns(text="{title")}, ConfigError, "items.text"),
        ({"columns": ImportColumns(interactions_format=TableFormat.SEQUENCE)}, DataError, "has no tab"),
        ({"name": "No Name"}, ConfigError, "name: .*'No Name'"),
        ({"public_catalogue": False}, ConfigError, "items.public must be true"),
    ],
)
def test_a_refused_import_leaves_nothing_behind(toy, changes, error, match) -> None:
    """The source is checked before the first byte is written."""
    with pytest.raises(IsthmusError, match=match) as refused:
        import_toy(toy, **changes)
    assert isinstance(refused.value, error)
    assert not (toy.folder / "made").exists()


def test_a_target_that_cannot_be_made_is_refused(toy) -> None:
    """A file in the way is named with the system's reason."""
    with pytest.raises(ConfigError, match=r"out\.partial: cannot be made: Not a directory"):
        import_toy(toy, target=toy.folder / "events.csv" / "out")


def test_import_columns_cover_the_keys_of_a_domain_file() -> None:
    """A key that a domain file has for reading its tables can be said at import."""
    said = {field.name for field in dataclasses.fields(ImportColumns)}
    events = {"interactions_format" if key == "format" else key for key in Interactions.model_fields}
    things = {{"format": "items_format", "id": "item_id"}.get(key, key) for key in Items.model_fields}
    assert said == (events | things) - {"path", "public"}
