"""The vault enforces every rule of policy.toml before any table is opened, and writes each refusal down."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from tests.conftest import TinyDomain

from isthmus.clients.vault import Vault
from isthmus.config import BackboneConfig, FeatureConfig, Trained, load_domain
from isthmus.errors import BudgetExhausted, ConfigError, PolicyRefused, Refused
from isthmus.privacy.chain import now
from isthmus.privacy.heads import make_head, make_receipt
from isthmus.privacy.keys import Keys, fresh_keys
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Charged, RefusedLine
from isthmus.privacy.program import code_hash
from isthmus.privacy.reading import read_ledger
from isthmus.privacy.requests import sign_request
from isthmus.records import Kind, RoundRequest

HEAD = 'approved_by = "Ada"\napproved_on = 2026-01-31\n\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n'
SHAPE = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=6)
FEATURES = FeatureConfig(encoder="hash:64")
COORDINATOR, OTHER = fresh_keys(), fresh_keys()

Opener = Callable[..., Vault]


@pytest.fixture
def open_vault(tiny_domain: TinyDomain, tmp_path: Path) -> Iterator[Opener]:
    """Open the vault of one domain under these rules; again for the same domain under others."""
    folder = tiny_domain(users=24, items=16)
    with ExitStack() as stack:
        yield lambda rules="", head=HEAD, seed=None: stack.enter_context(
            closing(opened(folder, head + rules, seed, tmp_path / "cache"))
        )


def opened(folder: Path, rules: str, seed: int | None, cache: Path) -> Vault:
    """A vault as it is started."""
    (folder / "policy.toml").write_text(rules)
    config = load_domain(folder)
    return Vault(config, ledger=Ledger(config.ledger_path), seed=seed, cache=cache)


def signed(request: RoundRequest, kind: Kind, keys: Keys, *, over: RoundRequest | None = None) -> RoundRequest:
    """The request in a coordinator's name, with its signature over this request or another one."""
    signature = sign_request((over or request).digest(kind), keys)
    return dataclasses.replace(request, coordinator=keys.public.hex(), signature=signature)


def refusals(vault: Vault) -> list[RefusedLine]:
    """As anybody reads them who checks the ledger."""
    books = read_ledger(vault.ledger.path)
    assert books.findings == ()
    return list(books.refusals)


RULES = {
    "least_noise": ("[allow]\nleast_noise = 1000\n", Kind.UPDATE, "noise multiplier ", "at least 1000"),
    "least_metric_noise": (
        "[allow]\nleast_metric_noise = 10.5\n",
        Kind.METRIC,
        "noise multiplier 10",
        "at least 10.5",
    ),
    "largest_clip": ("[allow]\nlargest_clip = 0.9\n", Kind.UPDATE, "clip 1", "at most 0.9"),
    "seeded": ("[allow]\nseeded = false\n", Kind.UPDATE, "noise that can be repeated", "private runs only"),
    "programs": (
        f'[allow]\nprograms = ["{"0" * 64}"]\n',
        Kind.UPDATE,
        f"program {code_hash()}",
        f"only {'0' * 64}",
    ),
    "kinds": ('[allow]\nkinds = ["update", "catalogue"]\n', Kind.METRIC, "release metric", "only update, catalogue"),
    "layers": ('[allow]\nlayers = ["head.*"]\n', Kind.UPDATE, "parameter ", "only head.*"),
    "coordinators": (
        f'[allow]\ncoordinators = ["{COORDINATOR.public.hex()}"]\n',
        Kind.UPDATE,
        "a request that nobody signed",
        f"only {COORDINATOR.public.hex()}",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_refuses_and_is_written_down(open_vault: Opener, request_one: RoundRequest, rule: str) -> None:
    """With the rule, the value asked and the limit; once, however often it is asked; nothing charged, nothing read."""
    rules, kind, value, limit = RULES[rule]
    vault = open_vault(rules, seed=3 if rule == "seeded" else None)
    for _ in range(2):
        with pytest.raises(PolicyRefused, match=f"rule `{rule}` says") as refusal:
            vault.release(kind, request_one)
        assert refusal.value.rule == rule
    (line,) = refusals(vault)
    assert (line.run, line.round, line.kind, line.rule, line.limit) == ("r", 1, kind.value, rule, limit)
    assert line.asked.startswith(value)
    assert list(vault.ledger.entries()) == []
    assert "data" not in vars(vault)


def test_what_the_rules_allow_is_answered(open_vault: Opener, request_one: RoundRequest) -> None:
    """All rules at once, none of them in the way: the entry says under which policy, by which program, for whom."""
    vault = open_vault(
        "run_epsilon = 8.0\n\n[allow]\nleast_noise = 0.1\nleast_metric_noise = 10\nlargest_clip = 1.0\n"
        f'kinds = ["update"]\nlayers = ["*"]\ncoordinators = ["{COORDINATOR.public.hex()}"]\n'
        f'programs = ["{code_hash()}"]\nseeded = false\n\n[people]\noverlap = false\n',
    )
    release = vault.release(Kind.UPDATE, signed(request_one, Kind.UPDATE, COORDINATOR))
    books = read_ledger(vault.ledger.path)
    assert books.findings == ()
    (line,) = (line for line in books.lines if isinstance(line, Charged))
    (policy,) = books.policies
    assert (policy.text, line.policy) == (vault.policy.text(), policy.digest)
    assert (line.clip, books.layers[line.layers]) == (1.0, tuple(sorted(request_one.arrays)))
    assert (line.coordinator, line.code, line.private) == (COORDINATOR.public.hex(), code_hash(), True)
    assert release.entry.seq == line.seq
    assert books.refusals == ()


@pytest.mark.parametrize(
    ("signer", "rule"),
    [("allowed", ""), ("other", "coordinators"), ("nobody", "coordinators"), ("borrowed", "signature")],
)
def test_only_an_allowed_coordinator_gets_an_answer(
    open_vault: Opener, request_one: RoundRequest, signer: str, rule: str
) -> None:
    """The allowed one; not another one, not nobody, and not the allowed one's signature of another request."""
    vault = open_vault(f'[allow]\ncoordinators = ["{COORDINATOR.public.hex()}"]\n')
    request = {
        "allowed": signed(request_one, Kind.UPDATE, COORDINATOR),
        "other": signed(request_one, Kind.UPDATE, OTHER),
        "nobody": request_one,
        "borrowed": signed(request_one, Kind.UPDATE, COORDINATOR, over=dataclasses.replace(request_one, round=2)),
    }[signer]
    if not rule:
        assert vault.release(Kind.UPDATE, request).entry.coordinator == COORDINATOR.public.hex()
        return
    with pytest.raises(Refused) as refusal:
        vault.release(Kind.UPDATE, request)
    assert refusal.value.rule == rule
    assert [line.rule for line in refusals(vault)] == [rule]
    assert list(vault.ledger.entries()) == []
    assert "data" not in vars(vault)


def test_a_signature_is_checked_also_where_anybody_may_ask(open_vault: Opener, request_one: RoundRequest) -> None:
    """Who is written down as having asked did ask."""
    vault = open_vault()
    with pytest.raises(Refused, match="not signed by the coordinator that it names"):
        vault.release(Kind.UPDATE, dataclasses.replace(request_one, coordinator=COORDINATOR.public.hex()))
    assert [line.rule for line in refusals(vault)] == ["signature"]
    assert vault.release(Kind.UPDATE, request_one).entry.coordinator == ""


def test_the_budget_is_the_policys(open_vault: Opener, request_one: RoundRequest) -> None:
    """Less than a round costs: refused with what it would be and the limit, for the lifetime and for a run."""
    vault = open_vault(head=HEAD.replace("8.0", "0.5"))
    with pytest.raises(BudgetExhausted, match="of 0.5 is spent over all runs"):
        vault.release(Kind.UPDATE, request_one)
    vault.close()
    again = open_vault("run_epsilon = 0.5\n")
    with pytest.raises(BudgetExhausted, match="of 0.5 is spent in run 'r'"):
        again.release(Kind.UPDATE, request_one)
    lifetime, run = refusals(again)
    assert (lifetime.rule, run.rule) == ("budget", "run-budget")
    for line in (lifetime, run):
        assert line.limit == "epsilon 0.5 at delta 1e-06"
        assert float(line.asked.removeprefix("epsilon ")) > 0.5
    assert "data" not in vars(again)


def test_a_policy_that_changes_is_written_down_each_time(open_vault: Opener, request_one: RoundRequest) -> None:
    """Tightened, loosened, and back: three lines, and each charge names the one that it was made under."""
    texts = []
    for number, limit in enumerate(("8.0", "7.5", "20.0", "8.0"), start=1):
        vault = open_vault(head=HEAD.replace("8.0", limit))
        texts.append(vault.policy.text())
        vault.release(Kind.METRIC, dataclasses.replace(request_one, round=number))
        vault.release(Kind.METRIC, dataclasses.replace(request_one, round=number, run="again"))
        vault.close()
    books = read_ledger(vault.ledger.path)
    assert books.findings == ()
    assert [line.text for line in books.policies] == texts
    digests = [line.digest for line in books.policies]
    assert digests[0] == digests[3]
    charged = [line.policy for line in books.lines if isinstance(line, Charged)]
    assert charged == [digest for digest in digests for _ in range(2)]


def test_a_rule_that_came_later_holds_for_what_was_asked_before(open_vault: Opener, request_one: RoundRequest) -> None:
    """A release that may not leave any more is not sent again, though it is kept; when the rule goes, it is."""
    first = open_vault()
    entry = first.release(Kind.UPDATE, request_one).entry
    first.close()
    strict = open_vault('[allow]\nkinds = ["catalogue"]\n')
    with pytest.raises(PolicyRefused, match="rule `kinds`"):
        strict.release(Kind.UPDATE, request_one)
    strict.close()
    again = open_vault()
    assert again.release(Kind.UPDATE, request_one).entry.seq == entry.seq


def test_a_broken_policy_opens_no_vault(open_vault: Opener) -> None:
    """A rule that cannot be read is not a rule that does not hold."""
    with pytest.raises(ConfigError, match="unknown key `allow.least_nose`; did you mean `least_noise`"):
        open_vault("[allow]\nleast_nose = 3\n")


def test_an_update_of_a_part_is_charged_as_that_part_and_may_be_all_that_is_allowed(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Under rules that allow the head alone, a recipe that trains it is answered; the ledger names what left."""
    vault = open_vault('[allow]\nlayers = ["head.*"]\n')
    training = request_one.recipe.training.model_copy(update={"train": Trained.HEAD})
    request = dataclasses.replace(request_one, recipe=request_one.recipe.model_copy(update={"training": training}))
    assert list(vault.release(Kind.UPDATE, request).payload.arrays) == ["head.weight"]
    books = read_ledger(vault.ledger.path)
    assert [books.layers[line.layers] for line in books.lines if isinstance(line, Charged)] == [("head.weight",)]
    with pytest.raises(Refused, match="parameter "):
        vault.release(Kind.UPDATE, dataclasses.replace(request_one, round=2))


def test_an_evaluation_is_charged_without_clip_and_layers(open_vault: Opener, request_one: RoundRequest) -> None:
    """It has neither: its own range bounds what one user adds."""
    vault = open_vault("[allow]\nlargest_clip = 1.0\n")
    vault.release(Kind.METRIC, request_one)
    books = read_ledger(vault.ledger.path)
    assert books.findings == ()
    assert [(line.clip, line.layers) for line in books.lines if isinstance(line, Charged)] == [(None, "")]


def test_a_receipt_that_is_refused_is_written_down(open_vault: Opener) -> None:
    """No receipt at all, one for another ledger, for a line that is not there, and one under a stranger's key."""
    vault, stranger = open_vault(), fresh_keys()
    chain = vault.ledger.chain
    last = chain.last()
    heads = {
        "another": make_head("00" * 16, 1, last.digest, chain.keys),
        "absent": make_head(chain.ledger, 99, bytes(32), chain.keys),
        "foreign": make_head(chain.ledger, last.seq, last.digest, stranger),
    }
    texts = {run: make_receipt(head, run=run, round=3, time=now(), keys=COORDINATOR) for run, head in heads.items()}
    for _ in range(2):
        for text in ("no receipt\n", *(receipt.text() for receipt in texts.values())):
            with pytest.raises(Refused) as refusal:
                vault.keep_receipt(text)
            assert refusal.value.rule == "receipt"
    key = COORDINATOR.public.hex()
    found = [(line.run, line.round, line.kind, line.rule, line.coordinator) for line in refusals(vault)]
    assert found == [("", 0, "receipt", "receipt", ""), *((run, 3, "receipt", "receipt", key) for run in heads)]
    good = make_receipt(vault.ledger.head(), run="good", round=3, time=now(), keys=COORDINATOR)
    vault.keep_receipt(good.text())
    assert read_ledger(vault.ledger.path).receipts == (good,)
    assert len(refusals(vault)) == 4


def test_a_hostile_run_name_is_refused_and_written_as_one_line(open_vault: Opener, request_one: RoundRequest) -> None:
    """Whatever else the request says; the record shows the name without what makes it hostile."""
    vault = open_vault()
    hostile = dataclasses.replace(request_one, run="r\n2026-01-31 all is well\x1b[2J\u202e")
    with pytest.raises(Refused) as refusal:
        vault.release(Kind.UPDATE, hostile)
    assert refusal.value.rule == "text"
    assert str(refusal.value).isprintable()
    (line,) = refusals(vault)
    assert line.run == "r 2026-01-31 all is well [2J "
    assert list(vault.ledger.entries()) == []
