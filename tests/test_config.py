"""A configuration file is taken as it is written, or refused with the file, the key, the rule and the way out."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.conftest import TinyDomain, TinyFederation

from isthmus.config import (
    ComputeConfig,
    StrategyName,
    TrainingConfig,
    load_domain,
    load_federation,
)
from isthmus.errors import ConfigError

Load = Callable[[Path], object]
DANN, BOTH = 'align = "dann"\nalign_weight = 0.1', "align_domains = ['games', 'books']"
ROOT = Path(__file__).parents[1]
ASK = "import sys; from isthmus.config import load_federation; print(load_federation(sys.argv[1]).digest())"


def refusal(load: Load, file: Path, old: str, new: str) -> str:
    """What loading says once `old` in the file reads `new`."""
    text = file.read_text()
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "key", "near"),
    [
        ('name = "books"', 'name = "books"\nprivcay = 1', "privcay", "privacy"),
        (
            'path = "interactions.csv"',
            'path = "interactions.csv"\ntimestmp = "t"',
            "interactions.timestmp",
            "timestamp",
        ),
        ('path = "items.csv"', 'path = "items.csv"\ntitel = "t"', "items.titel", "title"),
        ("[privacy]", "[split]\nmin_event = 4\n[privacy]", "split.min_event", "min_events"),
        ("clip = 1.0", "clip = 1.0\nepsilonn = 9", "privacy.epsilonn", "epsilon"),
    ],
)
def test_an_unknown_key_of_a_domain_names_file_key_and_nearest_key(
    tiny_domain: TinyDomain, old: str, new: str, key: str, near: str
) -> None:
    """At every level of domain.toml."""
    said = refusal(load_domain, tiny_domain() / "domain.toml", old, new)
    assert f"unknown key `{key}`" in said
    assert f"did you mean `{near}`?" in said


@pytest.mark.parametrize(
    ("old", "new", "key", "near"),
    [
        ('name = "tiny"', 'name = "tiny"\nsede = 1', "sede", "seed"),
        ("[features]", "[features]\nencodr = 'x'", "features.encodr", "encoder"),
        ("[backbone]", "[backbone]\nlayer = 1", "backbone.layer", "layers"),
        ("[training]", "[training]\nmomentun = 0.1", "training.momentun", "momentum"),
        ("[strategy]", "[strategy]\nround = 1", "strategy.round", "rounds"),
        ("[evaluation]", "[evaluation]\nmaxusers = 1", "evaluation.maxusers", "max_users"),
        ("[features]", "[compute]\nthread = 1\n[features]", "compute.thread", "threads"),
    ],
)
def test_an_unknown_key_of_a_federation_names_file_key_and_nearest_key(
    tiny_federation: TinyFederation, old: str, new: str, key: str, near: str
) -> None:
    """At every level of the federation file."""
    said = refusal(load_federation, tiny_federation(), old, new)
    assert f"unknown key `{key}`" in said
    assert f"did you mean `{near}`?" in said


@pytest.mark.parametrize("key", ["epsilon", "clip", "metric_noise_multiplier"])
def test_privacy_cannot_be_set_by_the_coordinator(tiny_federation: TinyFederation, key: str) -> None:
    """A federation file has no place for what only the domain may decide."""
    assert "unknown key `privacy`" in refusal(
        load_federation, tiny_federation(), "[features]", f"[privacy]\n{key} = 1\n[features]"
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epsilon = 8.0\n", "", "key `privacy.epsilon` is missing"),
        ("public = true\n", "", "key `items.public` is missing"),
        ('name = "books"\n', "", "key `name` is missing"),
        ('[interactions]\npath = "interactions.csv"\n', "", "key `interactions` is missing"),
        ("epsilon = 8.0", 'epsilon = "8"', "`privacy.epsilon`: Input should be a valid number, got '8'"),
        ("epsilon = 8.0", "epsilon = true", "`privacy.epsilon`: Input should be a valid number, got True"),
        ("epsilon = 8.0", "epsilon = nan", "`privacy.epsilon`: Input should be"),
        ("epsilon = 8.0", "epsilon = inf", "`privacy.epsilon`: Input should be"),
        ("epsilon = 8.0", "epsilon = 0", "greater than 0, got 0"),
        ("delta = 1e-06", "delta = 1.0", "`privacy.delta`: Input should be less than 1, got 1.0"),
        ("clip = 1.0", "clip = -1.0", "`privacy.clip`: Input should be greater than 0, got -1.0"),
        ("sample_rate = 0.5", "sample_rate = 1.5", "less than or equal to 1, got 1.5"),
        ("rounds = 4", "rounds = 4.0", "`privacy.rounds`: Input should be a valid integer, got 4.0"),
        ("rounds = 4", "rounds = true", "`privacy.rounds`: Input should be a valid integer, got True"),
        ("public = true", 'public = "yes"', "`items.public`: Input should be a valid boolean, got 'yes'"),
        ('name = "books"', 'name = "../books"', "`name`: String should match pattern"),
        ('path = "interactions.csv"', 'path = "interactions.csv"\nformat = "xml"', "`interactions.format`"),
        ('path = "interactions.csv"', 'path = "interactions.csv"\nkeep_events = ["buy"]', "keep_events needs `event`"),
        ("[privacy]", '[split]\nkind = "temporal"\n[privacy]', "needs `validation_from` and `test_from`"),
        ("[privacy]", "[split]\ntest_from = 9\n[privacy]", 'belong to kind = "temporal"'),
        (
            "[privacy]",
            '[split]\nkind = "temporal"\nvalidation_from = 9\ntest_from = 9\n[privacy]',
            "validation_from must be before test_from, got 9 and 9",
        ),
        ("[privacy]", "[split]\nmin_events = 2\n[privacy]", "greater than or equal to 3, got 2"),
        ('name = "books"', 'name = "books"\nfolder = "/"', "unknown key `folder`"),
        ("clip = 1.0", "clip = ", "not valid TOML"),
        ("clip = 1.0", "clip = 1.0\nclip = 2.0", "not valid TOML"),
    ],
)
def test_a_wrong_value_of_a_domain_is_named_with_its_rule(
    tiny_domain: TinyDomain, old: str, new: str, words: str
) -> None:
    """Missing, mistyped, out of range, contradictory: file, key, rule and the value seen."""
    assert words in refusal(load_domain, tiny_domain() / "domain.toml", old, new)


def test_what_is_trained_decides_what_it_is_trained_with() -> None:
    """The default recipe is the measured one; everything else has its own, and what a file says counts."""
    measured = {"learning_rate": 5.0, "rivals": 200, "loss": "ndcg", "temperature": 0.03}
    others = {"learning_rate": 1.0, "rivals": 50, "loss": "cross_entropy", "temperature": 0.1}
    for given, expected in [
        ({}, measured),
        ({"train": "recency"}, measured),
        ({"train": "all"}, others),
        ({"train": "all", "loss": "ndcg"}, others | {"loss": "ndcg"}),
        ({"rivals": 9}, measured | {"rivals": 9}),
        ({"loss": "cross_entropy"}, measured | {"loss": "cross_entropy", "temperature": 0.1}),
    ]:
        training = TrainingConfig.model_validate(given)
        assert training.train == given.get("train", "recency")
        assert {name: getattr(training, name) for name in expected} == expected
        assert TrainingConfig.model_validate_json(training.model_dump_json()) == training


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("width = 8", "width = 9", "heads must divide width, got 2 and 9"),
        ('name = "fedavg"', 'name = "fedsgd"', "`strategy.name`"),
        ('domains = ["books", "games"]', "domains = []", "`domains`"),
        ('domains = ["books", "games"]', 'domains = ["books", "books"]', "each domain joins once, got books twice"),
        ("seed = 5", "seed = -1", "`seed`: Input should be greater than or equal to 0, got -1"),
        ("seed = 5", "seed = 9223372036854775808", "`seed`: Input should be less than"),
        ("evaluate_every = 2", "evaluate_every = 2\nweights = {books = -1.0}", "`strategy.weights.books`"),
        ("evaluate_every = 2", "evaluate_every = 2\nweights = {books = inf}", "`strategy.weights.books`"),
        ("learning_rate = 0.5", "learning_rate = 0.0", "`training.learning_rate`: Input should be greater than 0"),
        ("learning_rate = 0.5", "learning_rate = 0.5\nmomentum = 1.0", "`training.momentum`"),
        ("learning_rate = 0.5", 'momentum = 0.5\noptimizer = "adam_bc"', "`momentum` belongs to sgd"),
        ("learning_rate = 0.5", 'optimizer = "adam_bc"', "needs a `learning_rate` of its own, 0.001 for example"),
        (
            "learning_rate = 0.5",
            'optimizer = "adam"',
            "`training.optimizer`: Input should be 'sgd', 'adam_bc' or 'per_",
        ),
        ("learning_rate = 0.5", 'optimizer = "per_fedavg"', "needs an `inner_learning_rate`"),
        ("learning_rate = 0.5", "inner_learning_rate = 0.1", "`inner_learning_rate` belongs to per_fedavg"),
        ('name = "fedavg"', 'name = "reptile"', "needs a `server_learning_rate` in (0, 1]"),
        ('name = "fedavg"', 'name = "reptile"\nserver_learning_rate = 1.5', "needs a `server_learning_rate` in (0, 1]"),
        ("learning_rate = 0.5", 'clipping = "none"', "`training.clipping`: Input should be 'flat' or 'automatic'"),
        ('train = "all"', 'train = "lora"', "needs the `rank` of its factors"),
        ("learning_rate = 0.5", "rank = 4", "`rank` belongs to"),
        ("learning_rate = 0.5", 'augment = "drop"', "`training.augment`"),
        ("evaluate_every = 2", "evaluate_every = 2\naverage = 1.0", "`strategy.average`: Input should be less than 1"),
        ("learning_rate = 0.5", 'align = "mmd"\n', "`training.align`: Input should be 'dann'"),
        ("learning_rate = 0.5", 'align = "dann"', "needs an `align_weight`, of its loss"),
        (
            "learning_rate = 0.5",
            'align = "dann"\nalign_weight = 0.0',
            "`training.align_weight`: Input should be greater",
        ),
        (
            "learning_rate = 0.5",
            'align = "dann"\nalign_weight = 0.1',
            "`align_domains`, the names of all domains that may take",
        ),
        ("learning_rate = 0.5", "align_weight = 0.1", "belong to `align`, which is absent"),
        ("learning_rate = 0.5", 'align_domains = ["a", "b"]', "belong to `align`, which is absent"),
        ("learning_rate = 0.5", f"{DANN}\nalign_domains = ['books']", "`training.align_domains`"),
        ("learning_rate = 0.5", f"{DANN}\nalign_domains = ['books', 'books']", "names each domain once"),
        ('train = "all"', f"{DANN}\n{BOTH}", '`train = "recency"` leaves it as it is; train one of all, ends, lora'),
        ('train = "all"', f'train = "head"\n{DANN}\n{BOTH}', '`train = "head"` leaves it as it is'),
    ],
)
def test_a_wrong_value_of_a_federation_is_named_with_its_rule(
    tiny_federation: TinyFederation, old: str, new: str, words: str
) -> None:
    """The recipe is as strict as the policies."""
    assert words in refusal(load_federation, tiny_federation(), old, new)


@pytest.mark.parametrize("strategy", ["median", "trimmed_mean", "krum"])
def test_alignment_needs_a_strategy_that_hears_every_domain(tiny_federation: TinyFederation, strategy: str) -> None:
    """Of what a domain says of itself it is the only witness, and so the outlier."""
    members = dict.fromkeys(("a", "b", "c", "d", "e"), 20)
    file = tiny_federation(domains=members, strategy=strategy)
    load_federation(file)
    words = refusal(load_federation, file, "rivals = 10", f"rivals = 10\n{DANN}\nalign_domains = {list(members)}")
    assert f'`training.align` needs a mean over domains, and `strategy.name = "{strategy}"` leaves out' in words


def test_a_label_is_the_place_among_sorted_names(tiny_federation: TinyFederation) -> None:
    """However they are written, so that the order in a file is no setting; a file without them says nothing of them."""
    file = tiny_federation()
    plain = load_federation(file)
    assert "align" not in plain.model_dump_json()
    written = file.read_text()
    digests = set()
    for names in (["games", "books"], ["books", "games"]):
        file.write_text(written.replace("rivals = 10", f"rivals = 10\n{DANN}\nalign_domains = {names}"))
        training = load_federation(file).training
        assert training.align_domains == ("books", "games")
        assert training.classes == 2
        assert TrainingConfig.model_validate_json(training.model_dump_json()) == training
        digests.add(load_federation(file).digest())
    assert len(digests) == 1
    assert plain.digest() not in digests


def test_everything_that_is_wrong_is_said_at_once(tiny_domain: TinyDomain) -> None:
    """Two mistakes are two lines, so that nobody fixes them one run at a time."""
    said = refusal(load_domain, tiny_domain() / "domain.toml", "clip = 1.0", "clip = 0.0\nclipp = 1.0")
    assert len(said.splitlines()) == 2
    assert "privacy.clipp" in said
    assert "`privacy.clip`" in said


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    """Absent, a folder without domain.toml, not UTF-8."""
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file.*isthmus demo"):
        load_federation(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"domain\.toml: no such file"):
        load_domain(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_federation(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: cannot be read as UTF-8"):
        load_federation(tmp_path / "latin.toml")


def test_a_loaded_file_is_frozen_and_holds_absolute_paths(
    tiny_federation: TinyFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be set afterwards; a domain is found from wherever the command was started."""
    file = tiny_federation()
    monkeypatch.chdir(file.parent)
    federation = load_federation("federation.toml")
    domain = load_domain("books")
    assert domain == load_domain(file.parent / "books" / "domain.toml")
    for owner, field in ((federation, "seed"), (federation.strategy, "rounds"), (domain.privacy, "epsilon")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, field, 1)
    paths = [*federation.domain_folders(), domain.interactions_path, domain.items_path, domain.ledger_path]
    assert all(path.is_absolute() for path in paths)
    assert paths[0] == paths[2].parent == paths[4].parent == file.parent / "books"
    assert paths[2].is_file()
    assert paths[3].is_file()


def test_whole_numbers_may_stand_for_fractions_but_not_the_reverse(tiny_domain: TinyDomain) -> None:
    """`epsilon = 8` is 8.0: the one coercion that cannot lose anything."""
    file = tiny_domain() / "domain.toml"
    file.write_text(file.read_text().replace("epsilon = 8.0", "epsilon = 8"))
    assert load_domain(file).privacy.epsilon == 8.0


def test_the_digest_ignores_speed_and_place_and_nothing_else(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """The same recipe has the same digest anywhere, on any number of threads; any other change gives another."""
    file = tiny_federation()
    federation = load_federation(file)
    digest = federation.digest()
    moved = tmp_path / "elsewhere.toml"
    moved.write_text("# a comment\n" + file.read_text())
    assert load_federation(moved).digest() == digest
    assert federation.model_copy(update={"compute": ComputeConfig(threads=2)}).digest() == digest
    others = {
        federation.model_copy(update=change).digest()
        for change in (
            {"name": "other"},
            {"seed": 6},
            {"seed": None},
            {"domains": ("books",)},
            {"features": federation.features.model_copy(update={"dim": 8})},
            {"backbone": federation.backbone.model_copy(update={"layers": 2})},
            {"training": federation.training.model_copy(update={"temperature": 0.2})},
            {"strategy": federation.strategy.model_copy(update={"name": StrategyName.FEDADAM})},
            {"evaluation": federation.evaluation.model_copy(update={"bootstrap": 101})},
        )
    }
    assert len(others) == 9
    assert digest not in others


def test_the_digest_is_the_same_in_every_process(tiny_federation: TinyFederation) -> None:
    """It is a hash of the content: another process, with other hash seeds of Python, finds the same one."""
    file = tiny_federation(weights={"books": 2.0, "games": 1.0})
    digests = {load_federation(file).digest()}
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(file)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    (digest,) = digests
    assert len(bytes.fromhex(digest)) == 32
