"""A loaded domain: one identity per data set, a complete report, and the published figures of real sets."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isthmus.clients.data import Histories, check_domain, fingerprint, load_domain_data
from isthmus.config import DomainConfig, Interactions, Items, Split, TableFormat, load_domain
from isthmus.errors import DataError

REAL = Path(__file__).parents[3] / ".." / "shared" / "data"
HEADER = "user,item,timestamp\n"


def test_the_parts_of_a_loaded_domain_line_up(toy) -> None:
    """Users, inputs and targets of the toy domain are the ones worked out by hand."""
    data = toy.load()
    assert data.users == ("007", "ann", "bob")
    assert [data.train.row(user).tolist() for user in range(3)] == [[3], [0, 1], [1]]
    assert [data.before_test.row(user).tolist() for user in range(3)] == [[3], [0, 1, 2], [1, 0]]
    assert data.validation.tolist() == [-1, 2, 0]
    assert data.test.tolist() == [-1, 3, 1]
    assert (data.report.users_with_validation_target, data.report.users_with_test_target) == (2, 2)
    assert data.report.repeat_test_targets == 1
    assert check_domain(toy.config()) == data.report


def test_the_report_is_plain_json_with_every_count(toy) -> None:
    """A reader that knows no Python gets the same figures."""
    report = toy.load().report
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["events"] == 8
    assert plain["notes"] == list(report.notes)
    assert set(plain) == set(type(report).__dataclass_fields__)


def test_blank_lines_of_both_files_are_counted(toy) -> None:
    """An empty line is no row and no error."""
    toy.write("items.csv", "item_id,title\n\na,A\n\nb,B\n\n")
    report = toy.load(HEADER + "\nu,a,1\n\nu,b,2\n").report
    assert report.blank_lines == 5
    assert (report.events, report.items) == (2, 2)


def test_what_the_split_leaves_out_is_said(toy) -> None:
    """Short users, cut histories and missing targets each have their sentence."""
    notes = " ".join(toy.load(HEADER + "u,a,1\nv,b,2\nv,c,3\n").report.notes)
    assert "2 users have fewer than 3 events and train only" in notes
    assert "No user has a validation target" in notes
    assert "No user has a test target" in notes
    notes = " ".join(toy.load(HEADER + "u,a,1\nu,b,2\nu,c,3\nu,d,4\nu,a,5\n", split=Split(max_history=2)).report.notes)
    assert "1 events are older than their user's latest 2" in notes


def test_a_temporal_split_that_trains_nothing_is_refused(toy) -> None:
    """The message shows the clock's range and the keys to move."""
    split = Split(kind="temporal", validation_from=0, test_from=20)
    with pytest.raises(DataError, match=r"no event lies before split\.validation_from.*1970-01-01T00:00:40Z"):
        toy.load(split=split)
    late = toy.load(split=Split(kind="temporal", validation_from=10, test_from=30))
    assert late.report.events_after_test == 1  # ann's events at 30 and 40: the first is her target
    assert "1 events at or after test_from are no target and are not used." in late.report.notes
    assert "1 users have no event before validation_from." in late.report.notes


def test_the_fingerprint_ignores_what_is_public_and_how_it_is_split(toy) -> None:
    """Rewording the catalogue, adding an item or changing the split cannot open a fresh budget."""
    before = toy.load().fingerprint
    assert len(before) == 32
    assert toy.load(split=Split(max_history=2, min_events=4)).fingerprint == before
    assert toy.load(items={"text": "{title} {category}"}).fingerprint == before
    path = toy.folder / "items.csv"
    path.write_text(path.read_text().replace("Apple", "Apfel") + "0,New,new\n")
    assert toy.load().fingerprint == before


def test_the_fingerprint_ignores_the_row_order_of_a_table_with_a_clock(toy) -> None:
    """Shuffled rows are the same histories."""
    before = toy.load().fingerprint
    lines = (toy.folder / "events.csv").read_text().splitlines()
    assert toy.load("\n".join([lines[0], *reversed(lines[1:])])).fingerprint == before


@pytest.mark.parametrize(("old", "new"), [("007", "7"), ("ann,d,40", "ann,d,4"), ("bob,a,6", "bob,d,6")])
def test_the_fingerprint_changes_with_any_private_change(toy, old, new) -> None:
    """Another user id, order or item is another data set."""
    before = toy.load().fingerprint
    changed = (toy.folder / "events.csv").read_text().replace(old, new)
    assert toy.load(changed).fingerprint != before


@example({"a": ["x"], "ab": ["x"]}, {"aa": ["x"], "b": ["x"]})
@given(*(st.dictionaries(st.text("ab", min_size=1, max_size=2), st.lists(st.sampled_from("xyz"), min_size=1)),) * 2)
def test_two_data_sets_share_a_fingerprint_only_if_they_are_equal(left, right) -> None:
    """Ids that run together (a, b against ab) are not confused."""
    marks = []
    for data in (left, right):
        users = sorted(data)
        catalogue = ["x", "y", "z"]
        items = np.array([catalogue.index(item) for user in users for item in data[user]], dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum([len(data[user]) for user in users])]).astype(np.int64)
        marks.append(fingerprint(users, catalogue, Histories(offsets=offsets, items=items)))
    assert (marks[0] == marks[1]) == (left == right)


def test_a_domain_folder_loads_from_its_file(toy) -> None:
    """The configuration file and the loader fit together, relative paths included."""
    toy.write(
        "domain.toml",
        'name = "toy"\n[interactions]\npath = "events.csv"\ntimestamp = "timestamp"\n'
        '[items]\npath = "items.csv"\npublic = true\n[privacy]\n'
        + "".join(f"{key} = {value}\n" for key, value in toy.privacy.model_dump().items()),
    )
    assert load_domain_data(load_domain(toy.folder)).fingerprint == toy.load().fingerprint


def real_domain(name, privacy, **interactions):
    """A real set beside the checkout; skips where it is absent."""
    folder = (REAL / name).resolve()
    if not folder.is_dir():
        pytest.skip(f"{name} is not in ../shared/data")
    return DomainConfig(
        name=name,
        interactions=Interactions(**interactions),
        items=Items(path="items.tsv.gz", public=True, text="{title} {category}"),
        privacy=privacy,
        folder=folder,
    )


def lines_of(path):
    """Lines of a gzip text file, as fields."""
    return [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().rstrip("\n").split("\n")]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("amazon18_office", (3231, 3317, 22447, 0)),
        ("amazon18_industrial", (3285, 3541, 22743, 0)),
        ("amazon14_beauty", (22363, 12101, 198502, 1)),
        ("yelp", (30431, 20033, 316354, 0)),
    ],
)
def test_sequence_sets_have_their_published_figures(toy, name, figures) -> None:
    """Users, items in use, events and empty texts are those of the data's own description; rows end as written."""
    config = real_domain(name, toy.privacy, path="seq.tsv.gz", format=TableFormat.SEQUENCE)
    data = load_domain_data(config)
    report = data.report
    used = report.items - report.items_without_events
    assert (report.users, used, report.events, report.items_without_text) == figures
    assert report.rows == report.events
    place = {user: at for at, user in enumerate(data.users)}
    for user, history in lines_of(config.interactions_path):
        expected = history.split()
        at = place[user]
        if data.test[at] < 0:
            assert len(expected) < 3
            continue
        assert data.catalogue.ids[data.test[at]] == expected[-1]
        assert data.catalogue.ids[data.validation[at]] == expected[-2]
        assert [data.catalogue.ids[item] for item in data.before_test.row(at)] == expected[:-1][-50:]


@pytest.mark.realdata
def test_ml_1m_has_its_published_figures(toy) -> None:
    """A million ratings with a clock: counts, and the order that a plain sort gives for one user."""
    config = real_domain("ml_1m", toy.privacy, path="inter.tsv.gz", timestamp="timestamp")
    data = load_domain_data(config)
    report = data.report
    used = report.items - report.items_without_events
    assert (report.users, used, report.events, report.rows) == (6040, 3706, 1_000_209, 1_000_209)
    assert report.users_with_test_target == 6040
    rows = lines_of(config.interactions_path)[1:]
    mine = sorted((row for row in rows if row[0] == "1"), key=lambda row: int(row[3]))
    at = data.users.index("1")
    assert [data.catalogue.ids[item] for item in data.before_test.row(at)] == [row[1] for row in mine[:-1]][-50:]
    assert data.catalogue.ids[data.test[at]] == mine[-1][1]
