"""Pre-training in the open: on public histories alone, and a federation that starts from what comes of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.commands import run
from tests.simulation.conftest import Factory
from tests.starts import arrays_of, start_from, write_start

from isthmus.backbone import Backbone, learned_axes, shared_parameters
from isthmus.backbone_file import load_backbone
from isthmus.clients.data import load_domain_data
from isthmus.config import StartedFrom, load_domain, load_federation
from isthmus.demo import DOMAINS, DemoDomain, _write_domain
from isthmus.errors import ConfigError, DataError, Refused
from isthmus.packing import arrays_digest
from isthmus.privacy.ledger import Ledger
from isthmus.records import Kind, RoundRequest, recipe_of
from isthmus.report.result import read_result
from isthmus.server.checkpoint import RunState, load_checkpoint
from isthmus.simulation import pretraining
from isthmus.simulation.derived import derive
from isthmus.simulation.pretraining import pretrain
from isthmus.simulation.run import Watcher

POLICY = 'approved_by = "us"\napproved_on = 2026-11-27\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n[allow]\n'


class Silent(Watcher):
    """Says nothing."""


def isthmus(*words: object, code: int = 0) -> str:
    """Run a command in a process of its own; everything that it says."""
    done = run(*words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def declare_public(folder: Path) -> None:
    """In a domain's own file."""
    file = folder / "domain.toml"
    file.write_text(file.read_text().replace("[interactions]\n", "[interactions]\npublic = true\n"))


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A federation of one public domain, a small part of the demo, whose planted drift no text tells."""
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    like = next(domain for domain in DOMAINS if domain.name == "music")
    small = DemoDomain(name="music", users=400, items=48, forms=like.forms, kinds=like.kinds)
    _write_domain(tmp_path / "open" / "music", small, np.random.default_rng(0))
    declare_public(tmp_path / "open" / "music")
    file = tmp_path / "open" / "public.toml"
    file.write_text(
        'name = "open"\ndomains = ["music"]\nseed = 3\n\n[features]\nencoder = "hash:64"\n\n'
        "[backbone]\nwidth = 8\nlayers = 1\nheads = 2\nfeedforward = 8\npositions = 8\n\n"
        '[training]\ntrain = "all"\nrivals = 40\n'
    )
    return file


def state_of(out: Path, file: Path) -> RunState:
    """The checkpoint of a run."""
    run = json.loads((out / "run.json").read_text())["run"]
    federation = load_federation(file)
    state = load_checkpoint(out / "checkpoint.safetensors", run=run, digest=federation.digest())
    assert state is not None
    return state


def test_what_is_learned_in_the_open_is_written_with_where_it_is_from(public: Path, tmp_path: Path) -> None:
    """Above the text prior on what its domains keep back; named, counted; the same seed gives the same bytes."""
    origin = pretrain(public, out=tmp_path / "a.safetensors", passes=4, watcher=Silent())
    assert origin.gain > 0.01
    assert 1 <= origin.passes <= 4
    data = load_domain_data(load_domain(public.parent / "music"))
    assert [(one.name, one.users, one.fingerprint) for one in origin.domains] == [
        ("music", len(data.users), data.fingerprint.hex())
    ]
    shipped = load_backbone(tmp_path / "a.safetensors")
    assert shipped.origin == origin
    assert learned_axes(shipped.backbone)
    pretrain(public, out=tmp_path / "b.safetensors", passes=4, watcher=Silent())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_only_what_the_recipe_trains_moves(public: Path, tmp_path: Path) -> None:
    """Under `head` one matrix; every other parameter has its first value, to the bit."""
    public.write_text(public.read_text().replace('train = "all"', 'train = "head"'))
    pretrain(public, out=tmp_path / "a.safetensors", passes=8, watcher=Silent())
    shipped = load_backbone(tmp_path / "a.safetensors")
    torch.manual_seed(3)
    fresh = shared_parameters(Backbone(64, load_federation(public).backbone.shape))
    moved = [name for name, one in shared_parameters(shipped.backbone).items() if not torch.equal(one, fresh[name])]
    assert moved == ["head.weight"]


def test_what_learned_nothing_is_not_written(public: Path, tmp_path: Path) -> None:
    """How far back a history matters, in one pass of four small steps: nothing is above the text prior."""
    public.write_text(public.read_text().replace('train = "all"\nrivals = 40', 'train = "recency"'))
    with pytest.raises(Refused, match="no backbone was above the text prior on the validation items of music"):
        pretrain(public, out=tmp_path / "a.safetensors", passes=1, watcher=Silent())
    assert not (tmp_path / "a.safetensors").exists()


def test_a_domain_that_does_not_say_it_is_public_is_refused_before_a_table_is_opened(
    public: Path, tmp_path: Path
) -> None:
    """Also beside a public one; the tables, which are gone, are not missed."""
    shutil.copytree(public.parent / "music", public.parent / "books")
    file = public.parent / "books" / "domain.toml"
    file.write_text(file.read_text().replace('name = "music"', 'name = "books"').replace("public = true\n", "", 1))
    public.write_text(public.read_text().replace('["music"]', '["music", "books"]'))
    for table in (*public.parent.glob("*/*.csv"), *public.parent.glob("*/*.parquet")):
        table.unlink()
    with pytest.raises(ConfigError, match=r"books/domain.toml: the histories of books are not declared public"):
        pretrain(public, out=tmp_path / "a.safetensors", passes=1, watcher=Silent())
    assert not (tmp_path / "a.safetensors").exists()


def test_without_the_check_the_private_table_would_be_opened(
    public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: the same case, and the table is missed."""
    file = public.parent / "music" / "domain.toml"
    file.write_text(file.read_text().replace("public = true\n", "", 1))
    for table in (*public.parent.glob("*/*.csv"), *public.parent.glob("*/*.parquet")):
        table.unlink()
    with pytest.raises(ConfigError, match="not declared public"):
        pretrain(public, out=tmp_path / "a.safetensors", passes=1, watcher=Silent())
    monkeypatch.setattr(pretraining, "_require_public", lambda domain: None)
    with pytest.raises(DataError):
        pretrain(public, out=tmp_path / "a.safetensors", passes=1, watcher=Silent())


def test_a_study_starts_from_the_same_backbone(federation: Factory, tmp_path: Path) -> None:
    """A derived federation lies elsewhere and names the same file."""
    file = federation()
    write_start(file.parent / "start.safetensors", file, axes=True)
    start_from(file, "start.safetensors")
    original = load_federation(file)
    domains = [load_domain(folder) for folder in original.domain_folders()]
    copy = load_federation(derive(original, domains, to=tmp_path / "elsewhere" / "copy"))
    assert copy.start_path == original.start_path
    assert copy.started_from() == original.started_from()


@pytest.mark.parametrize("rule", ["seeded = false", "least_noise = 0.1"])
def test_a_policy_that_wants_noise_outweighs_the_declaration(public: Path, tmp_path: Path, rule: str) -> None:
    """The two files contradict each other: nothing is trained."""
    (public.parent / "music" / "policy.toml").write_text(POLICY + rule + "\n")
    with pytest.raises(Refused, match="declares its histories public and its policy.toml wants noise"):
        pretrain(public, out=tmp_path / "a.safetensors", passes=1, watcher=Silent())


@pytest.mark.slow
def test_from_the_open_to_a_federation_in_real_processes(public: Path, federation: Factory, tmp_path: Path) -> None:
    """`pretrain`, `simulate`, resumed with more rounds; what was public is said by result, report, ledger and audit."""
    said = isthmus("pretrain", public, "--out", tmp_path / "federation" / "start.safetensors", code=2)
    assert "must be a file in a folder that is there" in said
    file, out = federation(), tmp_path / "out"
    start = file.parent / "start.safetensors"
    assert "trained in the open on 4" in isthmus("pretrain", public, "--out", start, "--passes", 2)
    start_from(file, Path("start.safetensors"))  # relative to the federation file
    said = isthmus("simulate", file, "--out", out, "--rounds", 2)
    assert "in the open" in " ".join(said.split())
    first = state_of(out, file)
    isthmus("simulate", file, "--out", out)
    assert state_of(out, file).round == 4
    # The axes are those that were learned in.
    begun = load_backbone(start)
    assert np.array_equal(first.whitening["matrix"], begun.whitening.matrix)
    # Who was in the open, everywhere.
    result = read_result(out / "result.json")
    assert result.federation.start is not None
    assert [(one.name, one.users) for one in result.federation.start.domains] == [("music", 400)]
    assert "trained in the open, without noise, on 400 users of music" in (out / "report.html").read_text()
    audit = isthmus("audit", out)
    assert "began with a backbone" in audit
    assert "trained without noise on 400 users of music" in audit
    isthmus("verify", out / "ledgers" / "books.db", "--heads", out / "heads.db")
    shipped = load_backbone(out / "backbone.safetensors")
    assert shipped.origin is None
    assert shipped.start == load_federation(file).started_from()
    assert isthmus("recommend", "--run", out, "--domain", "books", "--user", "u000")
    # Another start is another run; it is refused, and the folder is left alone.
    shutil.copy(start, tmp_path / "moved.safetensors")
    write_start(start, file, axes=True)
    assert "holds a run of another configuration" in isthmus("simulate", file, "--out", out, code=2)
    # The same content from another place is the same run.
    file.write_text(file.read_text().replace('"start.safetensors"', f'"{tmp_path / "moved.safetensors"}"'))
    isthmus("simulate", file, "--out", out)


def test_the_first_request_is_about_the_start_and_an_auditor_can_see_it(federation: Factory, tmp_path: Path) -> None:
    """The ledger's digest of round 1 can be made again from the start, the federation file and the run's id."""
    file, out = federation(), tmp_path / "out"
    start = write_start(file.parent / "start.safetensors", file, axes=True)
    start_from(file, file.parent / "start.safetensors")
    isthmus("simulate", file, "--out", out, "--rounds", 1)
    said = load_federation(file)
    run = json.loads((out / "run.json").read_text())["run"]
    recipe = recipe_of(said, arrays_digest(start.whitening.arrays()).hex())
    expected = RoundRequest(run=run, round=1, recipe=recipe, arrays=arrays_of(start))
    other = RoundRequest(run=run, round=1, recipe=recipe, arrays={k: v + 1 for k, v in arrays_of(start).items()})
    ledger = Ledger(out / "ledgers" / "books.db")
    (entry,) = [one for one in ledger.entries() if one.kind == Kind.UPDATE]
    ledger.close()
    assert entry.request == expected.digest(Kind.UPDATE)
    assert entry.request != other.digest(Kind.UPDATE)


def test_a_start_that_knows_no_axes_is_used_in_the_federations_own(federation: Factory, tmp_path: Path) -> None:
    """Its ten numbers are begun with, its whitening is not: it is that of other people's texts."""
    file = federation()
    plain = tmp_path / "plain"
    isthmus("simulate", file, "--out", plain, "--rounds", 1)
    pooled = state_of(plain, file).whitening
    start = write_start(file.parent / "start.safetensors", file, axes=False)
    start_from(file, Path("start.safetensors"))
    isthmus("simulate", file, "--out", tmp_path / "out", "--rounds", 1)
    state = state_of(tmp_path / "out", file)
    assert np.array_equal(state.whitening["matrix"], pooled["matrix"])
    assert not np.array_equal(state.whitening["matrix"], start.whitening.matrix)
    # Nothing was evaluated in one round, so what is shipped is the start, and the result says so.
    assert all(np.array_equal(array, state.best[name]) for name, array in arrays_of(start).items())
    result = read_result(tmp_path / "out" / "result.json")
    assert result.federation.start is not None
    assert result.federation.start.shipped
    assert "No evaluation was released" in (tmp_path / "out" / "report.html").read_text()
    assert result.federation.start.digest == StartedFrom.model_validate(load_federation(file).started_from()).digest
