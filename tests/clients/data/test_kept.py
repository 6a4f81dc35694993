"""Kept histories: the second opening parses nothing, and nothing is trusted for lying there."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from isthmus.clients.data import DomainData, kept, open_domain_data
from isthmus.config import DomainConfig, Split
from isthmus.errors import DataError


def mapped(data: DomainData) -> bool:
    """Whether the histories are mapped from a file."""
    return isinstance(data.train.items.base, np.memmap)


def assert_same(found: DomainData, expected: DomainData) -> None:
    """Everything but where it lies."""
    assert found.users == tuple(expected.users)
    assert found.catalogue == expected.catalogue
    assert (found.fingerprint, found.report) == (expected.fingerprint, expected.report)
    for name in ("train", "before_test"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.items.tolist() == other.items.tolist()
        assert one.offsets.tolist() == other.offsets.tolist()
        assert (one.items.dtype, one.offsets.dtype) == (np.int32, np.int64)
    assert found.validation.tolist() == expected.validation.tolist()
    assert found.test.tolist() == expected.test.tolist()


def opened_without_parsing(config: DomainConfig, monkeypatch: pytest.MonkeyPatch) -> DomainData:
    """An opening that would fail if it parsed the interaction table."""
    with monkeypatch.context() as patch:
        patch.setattr(kept, "load_domain_data", lambda _: pytest.fail("the tables were parsed"))
        return open_domain_data(config)


def folder_of(config: DomainConfig) -> Path:
    """Where the arrays of the one kept state lie."""
    (folder,) = (config.folder / kept.FOLDER).iterdir()
    return folder


def test_the_second_opening_gives_the_same_data_and_parses_no_events(toy, monkeypatch) -> None:
    """From the first opening on the arrays are mapped, and read only."""
    expected, config = toy.load(), toy.config()
    first = open_domain_data(config)
    second = opened_without_parsing(config, monkeypatch)
    for data in (first, second):
        assert_same(data, expected)
        assert mapped(data)
        assert not data.train.items.flags.writeable
    assert second.users.index("bob") == 2
    assert "eve" not in second.users


def test_only_the_domains_own_user_can_read_what_is_kept(toy) -> None:
    """Whatever the process's mask: 0700 and 0600, of this user."""
    before = os.umask(0)
    try:
        open_domain_data(toy.config())
    finally:
        os.umask(before)
    root = toy.folder / kept.FOLDER
    paths = [root, *root.rglob("*")]
    assert len(paths) > 8
    for path in paths:
        found = path.lstat()
        assert found.st_uid == os.geteuid()
        assert stat.S_IMODE(found.st_mode) == (0o700 if path.is_dir() else 0o600)


def test_changed_tables_or_settings_are_read_again_and_the_old_state_is_gone(toy) -> None:
    """An event more, another split, another catalogue: never the arrays of before; one state is kept."""
    open_domain_data(toy.config())
    toy.write("events.csv", (toy.folder / "events.csv").read_text() + "eve,a,7\n")
    assert_same(open_domain_data(toy.config()), toy.load())
    assert_same(open_domain_data(toy.config(split=Split(max_history=2))), toy.load(split=Split(max_history=2)))
    toy.write("items.csv", (toy.folder / "items.csv").read_text() + "0,New,new\n")
    assert_same(open_domain_data(toy.config()), toy.load())
    assert len(list((toy.folder / kept.FOLDER).iterdir())) == 1


def test_a_table_changed_within_its_old_size_and_time_is_noticed(toy) -> None:
    """Content counts, not what the file system says about it."""
    path = toy.folder / "events.csv"
    open_domain_data(toy.config())
    times = path.stat()
    path.write_text(path.read_text().replace("ann,a,10", "ann,d,10"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert_same(open_domain_data(toy.config()), toy.load())


def spoil_array(folder: Path) -> None:
    """One bit of one item."""
    path = folder / "train-items.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def cut_array(folder: Path) -> None:
    """A write that was broken off."""
    path = folder / "test.npy"
    path.write_bytes(path.read_bytes()[:-2])


def open_to_others(folder: Path) -> None:
    """Another user could have written into it."""
    folder.chmod(0o770)


def open_root_to_others(folder: Path) -> None:
    """Likewise, one level up."""
    folder.parent.chmod(0o755)


def open_file_to_others(folder: Path) -> None:
    """Likewise, one array."""
    (folder / "test.npy").chmod(0o644)


def link_array(folder: Path) -> None:
    """An array that lies somewhere else."""
    path = folder / "test.npy"
    path.rename(folder.parent.parent / "elsewhere.npy")
    path.symlink_to(folder.parent.parent / "elsewhere.npy")


def link_folder(folder: Path) -> None:
    """A folder that lies somewhere else."""
    elsewhere = folder.parent.parent / "elsewhere"
    folder.parent.rename(elsewhere)
    folder.parent.symlink_to(elsewhere)


def other_key(folder: Path) -> None:
    """Arrays of another data set under this one's name."""
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(about | {"key": "0" * 64}))


def no_json(folder: Path) -> None:
    """Not even readable."""
    (folder / "about.json").write_text("[]")


def lost_array(folder: Path) -> None:
    """Deleted by hand."""
    (folder / "user-ends.npy").unlink()


SPOILERS = [
    spoil_array,
    cut_array,
    open_to_others,
    open_root_to_others,
    open_file_to_others,
    link_array,
    link_folder,
    other_key,
    no_json,
    lost_array,
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_what_is_broken_or_foreign_is_made_again(toy, monkeypatch, spoil: Callable[[Path], None]) -> None:
    """The tables are parsed once more, and the next opening maps what that left."""
    config = toy.config()
    open_domain_data(config)
    spoil(folder_of(config))
    parsed: list[DomainConfig] = []
    load = kept.load_domain_data
    monkeypatch.setattr(kept, "load_domain_data", lambda config: parsed.append(config) or load(config))
    assert_same(open_domain_data(config), toy.load())
    assert len(parsed) == 1
    assert not (toy.folder / kept.FOLDER).is_symlink()
    assert mapped(open_domain_data(config))
    assert len(parsed) == 1


def test_arrays_of_another_user_are_not_used(toy, monkeypatch) -> None:
    """As if somebody else had put them there."""
    config = toy.config()
    open_domain_data(config)
    me = os.geteuid()
    monkeypatch.setattr(kept.os, "geteuid", lambda: me + 1)
    assert kept._read(toy.folder / kept.FOLDER, kept._key(config)) is None


def test_where_nothing_can_be_written_the_histories_stay_in_memory(toy, monkeypatch, caplog) -> None:
    """A full or read-only disk is a warning that says where, and no reason not to open."""

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.tempfile, "mkdtemp", full)
    data = open_domain_data(toy.config())
    assert_same(data, toy.load())
    assert not mapped(data)
    assert "No space left on device" in caplog.text
    assert list((toy.folder / kept.FOLDER).iterdir()) == []


def test_tables_that_change_while_they_are_read_are_not_kept(toy, monkeypatch) -> None:
    """The arrays would be of other bytes than their key says."""
    load = kept.load_domain_data

    def late(config: DomainConfig) -> DomainData:
        data = load(config)
        toy.write("events.csv", (toy.folder / "events.csv").read_text() + "eve,a,7\n")
        return data

    monkeypatch.setattr(kept, "load_domain_data", late)
    assert not mapped(open_domain_data(toy.config()))
    assert not (toy.folder / kept.FOLDER).exists()


def test_a_table_that_is_not_there_is_refused_as_ever(toy) -> None:
    """The reader's sentence, not the cache's."""
    open_domain_data(toy.config())
    (toy.folder / "events.csv").unlink()
    with pytest.raises(DataError, match=r"events\.csv: no such file"):
        open_domain_data(toy.config())


def test_the_report_comes_back_whole(toy) -> None:
    """Counts and notes, types included."""
    expected = toy.load("user,item,timestamp\nann,a,1\nann,zzz,2\n,a,3\nann,a,1\nann,b,soon\n").report
    open_domain_data(toy.config())
    assert asdict(open_domain_data(toy.config()).report) == asdict(expected)


# Mutants: what each check above must notice.


def test_a_reader_that_looks_at_no_owner_is_noticed(toy, monkeypatch) -> None:
    """Arrays that others could have written would be used."""
    monkeypatch.setattr(kept, "_require_private", lambda path, _: path.lstat())
    with pytest.raises(AssertionError):
        test_what_is_broken_or_foreign_is_made_again(toy, monkeypatch, open_to_others)


def test_a_reader_that_compares_no_digest_is_noticed(toy, monkeypatch) -> None:
    """Changed arrays, and arrays of changed tables, would be used."""
    monkeypatch.setattr(kept, "_digest", lambda _: "")
    with pytest.raises(AssertionError):
        test_what_is_broken_or_foreign_is_made_again(toy, monkeypatch, spoil_array)
    with pytest.raises(AssertionError):
        test_a_table_changed_within_its_old_size_and_time_is_noticed(toy)


def test_a_writer_that_leaves_the_mode_to_the_mask_is_noticed(toy, monkeypatch) -> None:
    """Others could read the arrays."""
    monkeypatch.setattr(kept, "_opened", lambda path: path.open("wb"))
    with pytest.raises(AssertionError):
        test_only_the_domains_own_user_can_read_what_is_kept(toy)
