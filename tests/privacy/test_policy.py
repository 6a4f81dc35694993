"""The business unit's rules: read strictly, implied where there are none, and each one refuses with value and limit."""

import dataclasses
import datetime as dt
import json
from pathlib import Path

import pytest
from tests.conftest import TinyDomain

from isthmus.config import load_domain
from isthmus.errors import ConfigError, PolicyRefused
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.plan import DpSgdConfig, DpSgdPlan
from isthmus.privacy.policy import Policy, load_policy
from isthmus.privacy.program import code_hash

LEAST = 'approved_by = "Ada"\napproved_on = 2026-01-31\n\n[budget]\nepsilon = 4\ndelta = 1e-6\n'
KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def domain(tiny_domain: TinyDomain) -> Path:
    """A domain's folder."""
    return tiny_domain()


def policy(domain: Path, more: str = "") -> Policy:
    """The policy in force with this in its file."""
    (domain / "policy.toml").write_text(LEAST + more)
    return load_policy(load_domain(domain))


def plan(*, noise: float = 2.0, evaluations: int = 0, metric_noise: float | None = None) -> DpSgdPlan:
    """A plan with this much noise."""
    config = DpSgdConfig(
        budget=PrivacyBudget(4.0, 1e-6),
        sample_rate=0.5,
        steps=1,
        evaluations=evaluations,
        metric_noise_multiplier=metric_noise,
    )
    return DpSgdPlan(config=config, noise_multiplier=noise)


# Reading.


def test_without_a_file_the_limits_are_those_of_the_domain(domain: Path) -> None:
    """Its epsilon and delta over all runs, everything else allowed, and nobody is said to have approved it."""
    implied = load_policy(load_domain(domain))
    assert implied.limits.lifetime == PrivacyBudget(8.0, 1e-6)
    assert implied.limits.run is None
    assert implied.people is None
    assert implied.approved_by == "nobody: implied by domain.toml"
    implied.check_plan(plan(noise=0.1), clip=1e9, private=False)
    for kind in ("catalogue", "update", "metric"):
        implied.check_request(kind=kind, layers=["anything"], coordinator="")


def test_a_file_says_who_approved_what(domain: Path) -> None:
    """Every key of it, and its text for the ledger is canonical and says it all."""
    read = policy(
        domain,
        "run_epsilon = 2.5\n\n[allow]\nleast_noise = 1\nleast_metric_noise = 5\nlargest_clip = 1.5\n"
        'kinds = ["update"]\nlayers = ["encoder.*"]\n'
        f'coordinators = ["{KEY}"]\nprograms = ["{OTHER}"]\nseeded = false\n\n[people]\noverlap = true\nk_max = 3\n',
    )
    assert (read.approved_by, read.approved_on) == ("Ada", dt.date(2026, 1, 31))
    assert read.limits.lifetime == PrivacyBudget(4.0, 1e-6)
    assert read.limits.run == PrivacyBudget(2.5, 1e-6)
    assert json.loads(read.text()) == {
        "approved_by": "Ada",
        "approved_on": "2026-01-31",
        "budget": {"epsilon": 4.0, "delta": 1e-6, "run_epsilon": 2.5},
        "allow": {
            "least_noise": 1.0,
            "least_metric_noise": 5.0,
            "largest_clip": 1.5,
            "kinds": ["update"],
            "layers": ["encoder.*"],
            "coordinators": [KEY],
            "programs": [OTHER],
            "seeded": False,
        },
        "people": {"overlap": True, "k_max": 3},
    }
    assert read.text().isascii()
    assert read.text() == json.dumps(json.loads(read.text()), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("run_epsilom = 2\n", r"unknown key `budget\.run_epsilom`; did you mean `run_epsilon`\?"),
        ("[alow]\n", r"unknown key `alow`; did you mean `allow`\?"),
        ("[allow]\nleast_noize = 1\n", r"unknown key `allow\.least_noize`; did you mean `least_noise`\?"),
        ("[people]\noverlap = true\nkmax = 2\n", r"unknown key `people\.kmax`; did you mean `k_max`\?"),
        ("run_epsilon = 0\n", r"`budget\.run_epsilon`: .*greater than 0, got 0"),
        ("run_epsilon = 101\n", r"`budget\.run_epsilon`: .*100, got 101"),
        ("run_epsilon = nan\n", r"`budget\.run_epsilon`: .*finite"),
        ('run_epsilon = "2"\n', r"`budget\.run_epsilon`: .*number, got '2'"),
        ("[allow]\nleast_noise = -1\n", r"`allow\.least_noise`: .*0, got -1"),
        ("[allow]\nlargest_clip = 0\n", r"`allow\.largest_clip`: .*greater than 0, got 0"),
        ('[allow]\nkinds = ["updates"]\n', r"`allow\.kinds\.0`: .*'update'.*got 'updates'"),
        ('[allow]\nkinds = "update"\n', r"`allow\.kinds`: .*got 'update'"),
        ('[allow]\ncoordinators = ["AB"]\n', r"`allow\.coordinators\.0`: .*got 'AB'"),
        ('[allow]\nprograms = ["latest"]\n', r"`allow\.programs\.0`: .*got 'latest'"),
        (
            '[allow]\nbackbones = ["gru@ab"]\n',
            r"`allow\.backbones\.0`: .*64 hex digits, .*--backbone NAME.*got 'gru@ab'",
        ),
        (f'[allow]\nbackbones = ["gru@{KEY.upper()}"]\n', r"`allow\.backbones\.0`: .*64 hex digits"),
        (f'[allow]\nbackbones = ["a", "gru@{KEY}0"]\n', r"`allow\.backbones\.1`: .*64 hex digits"),
        (f'[allow]\nbackbones = ["gru @{KEY}"]\n', r"`allow\.backbones\.0`: .*64 hex digits"),
        (f'[allow]\nbackbones = ["@{KEY}"]\n', r"`allow\.backbones\.0`: .*64 hex digits"),
        (f'[allow]\nbackbones = ["gru@{KEY}", "gru"]\n', r"`allow\.backbones`: .*'gru' with a hash and without one"),
        ('[allow]\nlayers = [""]\n', r"`allow\.layers\.0`: .*at least 1 character"),
        ('[allow]\nlayers = ["a\\nb"]\n', r"`allow\.layers\.0`: must be one line of visible characters"),
        ("[allow]\nseeded = 1\n", r"`allow\.seeded`: .*boolean, got 1"),
        ("[people]\noverlap = false\nk_max = 2\n", r"`people`: without overlap a person is in 1 domain, got k_max 2"),
        ("[people]\nk_max = 2\n", r"key `people\.overlap` is missing"),
        ("[people]\noverlap = true\nk_max = 0\n", r"`people\.k_max`: .*1, got 0"),
        ("[budget]\n", "not valid TOML"),
        ('folder = "/"\n', "unknown key"),
    ],
)
def test_anything_wrong_in_a_file_is_said_with_its_key(domain: Path, more: str, said: str) -> None:
    """File, key, rule and value, and the nearest right key."""
    with pytest.raises(ConfigError, match=said) as error:
        policy(domain, more)
    assert "policy.toml" in str(error.value)


@pytest.mark.parametrize("key", ["approved_by", "approved_on", "epsilon", "delta"])
def test_no_rule_is_without_who_answers_for_it(domain: Path, key: str) -> None:
    """Name, date and budget are in every file."""
    (domain / "policy.toml").write_text("".join(line for line in LEAST.splitlines(keepends=True) if key not in line))
    with pytest.raises(ConfigError, match=rf"key `(budget\.)?{key}` is missing"):
        load_policy(load_domain(domain))


@pytest.mark.parametrize("name", ["Ada\\nforged line", "\\u001b[31mAda", "Ada\\u202e"])
def test_a_name_that_could_forge_a_line_in_a_report_is_refused(domain: Path, name: str) -> None:
    """It is printed where people look for who approved what."""
    (domain / "policy.toml").write_text(LEAST.replace("Ada", name))
    with pytest.raises(ConfigError, match="`approved_by`: must be one line of visible characters"):
        load_policy(load_domain(domain))


def test_a_link_that_leads_nowhere_is_not_the_absence_of_rules(domain: Path) -> None:
    """The rules are on a drive that is not there: nothing is allowed, rather than everything."""
    (domain / "policy.toml").symlink_to(domain / "gone.toml")
    with pytest.raises(ConfigError, match=r"policy\.toml: no such file"):
        load_policy(load_domain(domain))


def test_rules_that_no_ledger_could_hold_are_refused_when_they_are_read(domain: Path) -> None:
    """Not in the middle of a run."""
    names = ", ".join(f'"layer-{number}-{"x" * 150}"' for number in range(700))
    with pytest.raises(ConfigError, match="its rules are 1[0-9]{5} characters, and a ledger takes 100000"):
        policy(domain, f"[allow]\nlayers = [{names}]\n")


# Refusing.


def refusal(policy: Policy, **asked: object) -> tuple[str, str, str]:
    """Rule, value and limit of the refusal of a plan or a request."""
    check = policy.check_plan if "plan" in asked else policy.check_request
    with pytest.raises(PolicyRefused) as refused:
        check(**asked)  # type: ignore[arg-type]
    for part in (refused.value.asked, refused.value.limit, refused.value.rule):
        assert part in str(refused.value)
    return refused.value.rule, refused.value.asked, refused.value.limit


def test_noise_below_the_floor_is_refused(domain: Path) -> None:
    """At the floor it passes."""
    read = policy(domain, "[allow]\nleast_noise = 1.5\n")
    read.check_plan(plan(noise=1.5), clip=1.0, private=True)
    assert refusal(read, plan=plan(noise=1.499), clip=1.0, private=True) == (
        "least_noise",
        "noise multiplier 1.499",
        "at least 1.5",
    )


def test_metric_noise_below_the_floor_is_refused(domain: Path) -> None:
    """Where there are evaluations at all."""
    read = policy(domain, "[allow]\nleast_metric_noise = 20\n")
    read.check_plan(plan(evaluations=1, metric_noise=20.0), clip=1.0, private=True)
    read.check_plan(plan(), clip=1.0, private=True)
    assert refusal(read, plan=plan(evaluations=1, metric_noise=19.0), clip=1.0, private=True) == (
        "least_metric_noise",
        "noise multiplier 19",
        "at least 20",
    )


def test_a_clip_above_the_ceiling_is_refused(domain: Path) -> None:
    """At the ceiling it passes."""
    read = policy(domain, "[allow]\nlargest_clip = 1.5\n")
    read.check_plan(plan(), clip=1.5, private=True)
    assert refusal(read, plan=plan(), clip=1.6, private=True) == ("largest_clip", "clip 1.6", "at most 1.5")


def test_noise_that_can_be_repeated_is_refused(domain: Path) -> None:
    """Where the policy says so: simulation-only features may not run on this data."""
    read = policy(domain, "[allow]\nseeded = false\n")
    read.check_plan(plan(), clip=1.0, private=True)
    assert refusal(read, plan=plan(), clip=1.0, private=False)[0] == "seeded"


def test_a_program_that_is_not_allowed_is_refused(domain: Path) -> None:
    """This one's hash among the allowed ones passes."""
    policy(domain, f'[allow]\nprograms = ["{KEY}", "{code_hash()}"]\n').check_plan(plan(), clip=1.0, private=True)
    rule, asked, limit = refusal(
        policy(domain, f'[allow]\nprograms = ["{KEY}"]\n'), plan=plan(), clip=1.0, private=True
    )
    assert (rule, asked, limit) == ("programs", f"program {code_hash()}", f"only {KEY}")


def test_a_kind_of_release_that_is_not_allowed_is_refused(domain: Path) -> None:
    """By name, with those that are."""
    read = policy(domain, '[allow]\nkinds = ["catalogue", "update"]\n')
    read.check_request(kind="update", layers=[], coordinator="")
    assert refusal(read, kind="metric", layers=[], coordinator="") == (
        "kinds",
        "release metric",
        "only catalogue, update",
    )


def test_a_layer_that_is_not_allowed_is_refused(domain: Path) -> None:
    """Of all that an update would hold, the first one that no pattern names."""
    read = policy(domain, '[allow]\nlayers = ["encoder.*", "adaptor.weight"]\n')
    read.check_request(kind="update", layers=["encoder.0.weight", "adaptor.weight"], coordinator="")
    for layer in ("adaptor.bias", "Encoder.0", "xencoder.0", "encoder"):
        assert refusal(read, kind="update", layers=["encoder.0", layer], coordinator="") == (
            "layers",
            f"parameter {layer}",
            "only encoder.*, adaptor.weight",
        )


def test_a_coordinator_that_is_not_allowed_is_refused(domain: Path) -> None:
    """Another one, and nobody."""
    read = policy(domain, f'[allow]\ncoordinators = ["{KEY}"]\n')
    read.check_request(kind="update", layers=[], coordinator=KEY)
    assert refusal(read, kind="update", layers=[], coordinator=OTHER) == (
        "coordinators",
        f"coordinator {OTHER}",
        f"only {KEY}",
    )
    assert refusal(read, kind="update", layers=[], coordinator="")[1] == "a request that nobody signed"


def test_an_empty_list_allows_nothing(domain: Path) -> None:
    """It is not the absence of a rule."""
    read = policy(domain, "[allow]\nkinds = []\nlayers = []\ncoordinators = []\nprograms = []\n")
    assert refusal(read, kind="update", layers=[], coordinator=KEY)[0] == "kinds"
    assert refusal(read, plan=plan(), clip=1.0, private=True)[0] == "programs"
    others = dataclasses.asdict(read.limits)
    assert others["run"] is None


def test_a_long_list_is_cut_in_a_message(domain: Path) -> None:
    """Five of them and a count."""
    names = [f"layer{number}" for number in range(8)]
    read = policy(domain, f"[allow]\nlayers = {json.dumps(names)}\n")
    limit = refusal(read, kind="update", layers=["other"], coordinator="")[2]
    assert limit == "only layer0, layer1, layer2, layer3, layer4 and 3 more"
