"""A text encoder is fine-tuned by a federation from end to end: real messages, two rounds, and what is served then."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.cli.called import Caller
from tests.conftest import WORDS, TinyFederation
from tests.server.test_loop import Stopped, Vaults, Watch, assert_equal
from tests.simulation.test_sweep import Silent
from tests.tiny_bert import write_tiny_bert

from isthmus.backbone_file import load_backbone
from isthmus.clients.audit.targets import attacks, target_of
from isthmus.config import load_federation
from isthmus.errors import ConfigError
from isthmus.privacy.lines import Charged
from isthmus.privacy.reading import read_ledger
from isthmus.report.result import read_result
from isthmus.server.shipping import shipped_backbone
from isthmus.simulation.evaluate import evaluate
from isthmus.simulation.noise_free import run_noise_free
from isthmus.simulation.scenario_kinds import HeldOut, Usual
from isthmus.strategies.guarded import OK

SEED = 5


@pytest.fixture
def isthmus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Caller:
    """The command."""
    return Caller(monkeypatch, capsys)


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny BERT that knows the words of tiny catalogues: `./bert`, so that a run's noise is the same everywhere."""
    monkeypatch.chdir(tmp_path)
    return write_tiny_bert(tmp_path / "bert", [*WORDS, "books", "games"], spread=0.3)


def tuned(file: Path, encoder: object, train: str = 'train = "text"\nrank = 2\n') -> Path:
    """A federation that fine-tunes an encoder."""
    text = file.read_text().replace('encoder = "hash:64"', f'encoder = "{encoder}"')
    file.write_text(text.replace('train = "all"\nlearning_rate = 0.5\nrivals = 10\n', f"{train}rivals = 10\n"))
    return file


def test_a_federation_fine_tunes_a_text_encoder(
    tiny_federation: TinyFederation, encoder: Path, isthmus: Caller, tmp_path: Path
) -> None:
    """Updates hold U and the weights by age and nothing else, and the encoder stays as it is to the bit.

    The same seed gives the same bytes. What is shipped serves and is fitted; without the encoder, one clear error.
    """
    before = (encoder / "model.safetensors").read_bytes()
    file = tuned(tiny_federation(rounds=2, evaluate_every=1, seed=SEED), "./bert")
    for out in ("a", "b"):
        assert isthmus("simulate", file, "--out", tmp_path / out).code == 0
    run = tmp_path / "a"
    first, second = ((tmp_path / out / "backbone.safetensors").read_bytes() for out in "ab")
    assert first == second
    assert (encoder / "model.safetensors").read_bytes() == before

    # 1. What was released, by the ledger, which names all of it.
    books = read_ledger(run / "ledgers" / "books.db")
    assert (books.findings, books.refusals) == ((), ())
    layers = {f"text.layer.{layer}.{matrix}.up.weight" for layer in (0, 1) for matrix in ("query", "value")}
    updates = [line for line in books.lines if isinstance(line, Charged) and line.kind == "update"]
    assert [set(books.layers[line.layers]) for line in updates] == [layers | {"recency.weight"}] * 2

    # 2. What is shipped: changes, and nothing of the encoder.
    shipped = load_backbone(run / "backbone.safetensors")
    assert shipped.round > 0, "no round was above the prior: the rest would say nothing; choose another seed"
    assert shipped.backbone.text.any
    assert not shipped.backbone.head.weight.any()
    assert not any("word_embeddings" in name for name in load_file(run / "backbone.safetensors"))

    # 3. It serves, here and at a domain.
    recommend = ("recommend", "--run", run, "--domain", "books", "--user", "books-user-003")
    served = isthmus(*recommend)
    assert served.code == 0
    assert "books-" in served.out
    fit = ("fit", file.parent / "books", "--ledger", run / "ledgers" / "books.db", "--out", tmp_path / "serving")
    assert isthmus(*fit).code == 0

    # 4. Not without the encoder.
    shutil.move(encoder, tmp_path / "elsewhere")
    for words in (recommend, fit, ("simulate", file, "--out", tmp_path / "again")):
        said = isthmus(*words)
        assert said.code == 2, words
        assert "'./bert'" in said.err
        assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("strategy", "every", "more"),
    [
        ("fedadam", 1, ""),
        ("fedavg", 1, "average = 0.5"),
        ("fedavg", 1, "domains_per_round = 1"),
        ("leave_one_out", 0, "compare_every = 1"),
    ],
)
def test_a_stopped_run_of_changes_ends_as_one_that_never_was(  # noqa: PLR0917 - a test of every strategy
    tiny_federation: TinyFederation, encoder: Path, tmp_path: Path, strategy: str, every: int, more: str
) -> None:
    """To the bit, whatever the server makes of the updates; and what would be shipped has the changes."""
    file = tuned(tiny_federation(strategy=strategy, evaluate_every=every, rounds=2), "./bert")
    file.write_text(f"{file.read_text()}{more}\n")
    vaults = Vaults(file, tmp_path)
    whole = vaults.start("whole", Watch(), rounds=2)
    told = [each for record in whole.history for each in (record.outcomes, record.evaluations)]
    assert {outcome.status for each in told for outcome in each.values()} == {OK}
    with pytest.raises(Stopped):
        vaults.start("stopped", Watch(1), rounds=2)
    assert_equal(vaults.start("stopped", Watch(), rounds=2), whole)
    assert any(array.any() for name, array in whole.arrays.items() if name.startswith("text."))
    best = whole.average or whole.arrays
    shipped = shipped_backbone(dataclasses.replace(whole, best=best), load_federation(file)).backbone
    for name, parameter in shipped.text.named_parameters():
        np.testing.assert_array_equal(parameter.detach(), best[f"text.{name}"])


def test_the_reference_without_noise_trains_it(tiny_federation: TinyFederation, encoder: Path, tmp_path: Path) -> None:
    """`isthmus sweep --noise-free`: by a vault of its own, and the same trainer."""
    file = tuned(tiny_federation(rounds=1, evaluate_every=1), "./bert")
    shipped = run_noise_free(file, seed=SEED, rounds=1, out=tmp_path / "out", listener=Watch())
    assert shipped.backbone.text is not None
    checkpoint = load_file(tmp_path / "out" / "checkpoint.safetensors")
    assert checkpoint["arrays:text.layer.0.query.up.weight"].any()


def test_a_study_measures_what_a_run_serves(tiny_federation: TinyFederation, encoder: Path, tmp_path: Path) -> None:
    """Histories are read by the changed encoder there, too: the run's own figures, and a newcomer's."""
    file = tuned(tiny_federation(domains={"books": 90, "games": 60}), "./bert")
    study = evaluate(file, out=tmp_path / "usual", scenario=Usual(), seeds=1, watcher=Silent())
    run = tmp_path / "usual" / "run" / "seed-0"
    assert load_backbone(run / "backbone.safetensors").backbone.text.any, "nothing was changed: the rest says nothing"
    result = read_result(run / "result.json")
    for one in study.conditions:
        served = one.methods["federated"].metrics["ndcg@10"].mean
        assert served == pytest.approx(result.domains[one.domain].test.federated.ndcg, rel=1e-5)
    study = evaluate(
        file, out=tmp_path / "new", scenario=HeldOut(domain="games", users=(30,)), seeds=1, watcher=Silent()
    )
    (newcomer,) = study.conditions
    assert newcomer.methods["backbone"].metrics["ndcg@10"].mean != newcomer.methods["text_knn"].metrics["ndcg@10"].mean


@pytest.mark.parametrize(
    ("encoder", "train", "words"),
    [
        ("hash:64", 'train = "text"\nrank = 2\n', "has no weights"),
        ("minilm:int8", 'train = "text"\nrank = 2\n', "in 8 bits"),
        ("minilm", 'train = "text"\n', "needs the `rank`"),
        (
            "minilm",
            'train = "text"\nrank = 2\nalign = "dann"\nalign_weight = 1.0\nalign_domains = ["a", "b"]\n',
            "moves the",
        ),
    ],
)
def test_what_cannot_be_fine_tuned_is_an_error_in_the_file(
    tiny_federation: TinyFederation, encoder: str, train: str, words: str
) -> None:
    """Before anybody is asked."""
    file = tuned(tiny_federation(), encoder, train)
    with pytest.raises(ConfigError, match=words):
        load_federation(file)


def test_other_parts_of_the_file_are_held_against_it(tiny_federation: TinyFederation) -> None:
    """Distillation, a start, and a backbone of somebody else's."""
    file = tuned(tiny_federation(strategy="feddf"), "minilm")
    with pytest.raises(ConfigError, match="have no text"):
        load_federation(file)
    plain = file.read_text().replace("feddf", "fedavg")
    for key, words in (("start", "leave it out"), ("module", "names parts of the built-in backbone")):
        file.write_text(plain.replace("[backbone]", f'[backbone]\n{key} = "a"'))
        with pytest.raises(ConfigError, match=words):
            load_federation(file)


@pytest.mark.parametrize(
    ("rank", "changed", "words"),
    [
        (2, ('"model_type": "bert"', '"model_type": "gpt2"'), "is of type 'gpt2'"),
        (2, ('"model_type": "bert",', ""), "is of type None"),
        (2, ("{", "{{"), "not valid JSON"),
        (17, ("", ""), "`training.rank` is 17, and encoder './bert' is 16 wide"),
    ],
)
def test_an_encoder_that_cannot_be_trained_is_refused_by_name(  # noqa: PLR0917 - fixtures and cases
    tiny_federation: TinyFederation,
    encoder: Path,
    isthmus: Caller,
    tmp_path: Path,
    rank: int,
    changed: tuple[str, str],
    words: str,
) -> None:
    """One error, before a table is opened, a text encoded or anybody asked."""
    config = encoder / "config.json"
    config.write_text(config.read_text().replace(*changed, 1))
    file = tuned(tiny_federation(), "./bert", f'train = "text"\nrank = {rank}\n')
    (file.parent / "books" / "items.csv").unlink()
    said = isthmus("simulate", file, "--out", tmp_path / "run")
    assert said.code == 2
    assert words in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(("rank", "words"), [(0, "greater than or equal to 1"), (257, "less than or equal to 256")])
def test_a_rank_out_of_range_is_an_error_in_the_file(tiny_federation: TinyFederation, rank: int, words: str) -> None:
    """By the bounds of the key."""
    with pytest.raises(ConfigError, match=words):
        load_federation(tuned(tiny_federation(), "minilm", f'train = "text"\nrank = {rank}\n'))


def test_pretraining_refuses_it(tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path) -> None:
    """Exit 2, before a domain is looked at."""
    said = isthmus("pretrain", tuned(tiny_federation(), "minilm"), "--out", tmp_path / "start.safetensors")
    assert said.code == 2
    assert "cannot begin with a changed text encoder" in said.err


def test_an_empirical_audit_refuses_it(tiny_federation: TinyFederation) -> None:
    """It would fine-tune dozens of encoders; the way out is in the error."""
    file = tuned(tiny_federation(domains={"books": 40}), "minilm")
    with target_of([file.parent]) as target, pytest.raises(ConfigError, match="another `train`"):
        attacks(target)


def test_the_defaults_are_those_of_recency(tiny_federation: TinyFederation) -> None:
    """It trains these numbers as well, by the same loss."""
    training = load_federation(tuned(tiny_federation(), "minilm")).training
    assert (training.loss, training.temperature, training.learning_rate) == ("ndcg", 0.03, 5.0)
    assert training.learns_axes
    assert training.rank == 2
