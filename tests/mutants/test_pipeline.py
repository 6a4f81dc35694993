"""Mistakes outside the optimizer, each caught by a named check that the real build passes ten times in a row.

Noise, clipping and averaging are in `tests/clients/audit`. Here: who is in a batch, what a sum is divided by, a head
inside the loop, raw metrics and comparisons, forgetful accounting, and charging late.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from tests.clients.sensitivity import (
    EXACT,
    PLAN,
    TRAINING,
    Case,
    Served,
    assert_user_moves_at_most_c,
    make_case,
    policy_of,
)
from tests.conftest import TinyDomain
from torch import Tensor

from isthmus.backbone import Backbone, shared_parameters
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.evaluation import noisy_gain, validation_ndcg
from isthmus.clients.gradients import UserGradients
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.clients.trainer import Batch, TrainingSet, train_round, user_losses
from isthmus.clients.vault import Vault
from isthmus.config import BackboneConfig, FeatureConfig, PrivacyPolicy, TrainingConfig, load_domain
from isthmus.errors import BudgetExhausted, Refused
from isthmus.features import Whitening
from isthmus.packing import arrays_digest
from isthmus.privacy.accounting import Spending, epsilon, gaussian
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.entries import Charge, LedgerEntry, Limits
from isthmus.privacy.gate import _GATE_ONLY, Gate, Payload, Release, _pack, _unpack
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.noise import Floats, Randomness, SecureRandomness
from isthmus.privacy.reading import read_ledger
from isthmus.records import Kind, Recipe, RoundRequest

FALSE_ALARM = 1e-6
"""Chance that a statistical check fails the real build, at most."""


class CheckFailedError(AssertionError):
    """A named check found something."""


# Who is in a batch.


@dataclass
class Watched(SecureRandomness):
    """The real source, seen from outside: which batches a trainer drew; its noise is left out, to be quick."""

    batches: list[NDArray[np.bool_]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Draw and remember."""
        self.batches.append(super().bernoulli(count, probability))
        return self.batches[-1]

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:
        """The values."""
        return values


class FixedSize(Watched):
    """Mutant: every batch has the expected size."""

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """A random subset of that size."""
        batch = np.zeros(count, dtype=bool)
        batch[np.random.default_rng().choice(count, round(count * probability), replace=False)] = True
        self.batches.append(batch)
        return batch


class Shuffled(Watched):
    """Mutant: users take turns, as a data loader that shuffles has it."""

    turn = 0

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """The next part of an epoch."""
        parts = round(1 / probability)
        self.turn += 1
        batch = np.arange(count) % parts == self.turn % parts
        self.batches.append(batch)
        return batch


def check_poisson_sampling(randomness: Watched) -> None:
    """Batches of the real trainer have the binomial's variance, and its users are independent of each other."""
    case, steps = make_case([2, 0, 2, 3, 0, 1, 0, 2], seed=3, single=True), 150
    policy = policy_of(case).model_copy(update={"steps_per_round": steps})
    train_round(
        case.backbone,
        case.users(),
        training=TRAINING.model_copy(update={"learning_rate": 1e-3}),
        policy=policy,
        plan=PLAN,
        proximal_mu=0.0,
        randomness=randomness,
    )
    batches = np.array(randomness.batches, dtype=float)  # (steps, users)
    if batches.shape != (steps, len(case.rows)):
        raise CheckFailedError(f"{steps} steps drew {batches.shape} coins")
    users, rate = len(case.rows), policy.sample_rate
    variance = users * rate * (1 - rate)
    dispersion = float(np.square(batches.sum(axis=1) - users * rate).sum() / variance)
    between = np.square((batches[1:] - rate) * (batches[:-1] - rate)).sum()  # constant: (1/2)^4 each at rate 1/2
    repeats = float(((batches[1:] - rate) * (batches[:-1] - rate)).sum() / np.sqrt(between))
    for name, value, low, high in (
        ("spread of the batch size", dispersion, *stats.chi2.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], steps)),
        ("repeat from step to step", repeats, *stats.norm.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4])),
    ):
        if not low <= value <= high:
            raise CheckFailedError(f"{name}: {value:.3g}, expected {low:.3g} to {high:.3g}")


# What a sum is divided by.


class LengthDivisor(PrivateOptimizer):
    """Mutant: divides by the number of users that it saw."""

    def accumulate(self, gradients: UserGradients) -> None:
        """Count, then clip."""
        self.expected_batch_size = max(len(gradients.norms()), 1)
        super().accumulate(gradients)


def check_public_divisor(optimizer: type[PrivateOptimizer]) -> None:
    """Users who have nothing to learn from change nothing, however many there are."""
    mechanism, few = Served(optimizer=optimizer), make_case([4, 6, 3], seed=5)
    many = dataclasses.replace(few, rows=(*few.rows, *[()] * 9), chosen=(True,) * (len(few.rows) + 9))
    apart = float((mechanism(few) - mechanism(many)).norm()) / few.clip
    if apart > EXACT:
        raise CheckFailedError(f"nine users without events change the sum by {apart:.3g} C")


# A head inside the loop.

EVERYBODY = 8


def losses_under_a_head(backbone: Backbone, users: TrainingSet, batch: Batch, training: TrainingConfig) -> Tensor:
    """Mutant: only users whose every item is popular count, by a popularity that was fitted on everybody."""
    counts = np.bincount(users.histories.items, minlength=len(users.features))
    popular = [bool((counts[row[row > 0].numpy()] >= EVERYBODY).all()) for row in batch.history]
    return user_losses(backbone, users, batch, training) * torch.tensor(popular)


def check_no_state_without_dp(losses: Callable[[Backbone, TrainingSet, Batch, float], Tensor]) -> None:
    """Removing one user moves the sum by at most C: what was fitted on everybody cannot reach it."""
    for seed in range(4):
        mechanism, case = Served(losses=losses), alike(seed)
        try:
            assert_user_moves_at_most_c(mechanism, case, tolerance=EXACT)
        except AssertionError as error:
            raise CheckFailedError(str(error)) from None


def alike(seed: int) -> Case:
    """So many users of one history that whoever leaves makes its items unpopular for the others."""
    case = make_case([5], seed=seed)
    return dataclasses.replace(case, rows=case.rows * EVERYBODY, chosen=(True,) * EVERYBODY)


# Raw metrics.


def raw_gain(gains: NDArray[np.float64], *, policy: PrivacyPolicy, randomness: SecureRandomness) -> Payload:
    """Mutant: says how noisy it would be."""
    noisy = noisy_gain(gains, policy=policy, randomness=randomness)
    return Payload(
        values={
            "gain": float(gains.sum()),
            "users": float(len(gains)),
            "noise_stddev": noisy.values["noise_stddev"],
        }
    )


def check_noisy_metrics(release: Callable[..., Payload]) -> None:
    """What is released scatters, over many releases of the same figures, as the standard deviation beside it says."""
    gains, policy = np.linspace(-0.2, 0.4, 50), policy_of(make_case([3], seed=1))
    found = [release(gains, policy=policy, randomness=SecureRandomness()).values for _ in range(300)]
    for name, exact in (("gain", gains.sum()), ("users", len(gains))):
        scaled = [(values[name] - exact) / values["noise_stddev"] for values in found]
        spread, (low, high) = (
            float(np.square(scaled).sum()),
            stats.chi2.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], 300),
        )
        if not low <= spread <= high:
            raise CheckFailedError(f"{name}: scatter {spread / 300:.3g} of what is claimed")


# Raw comparisons.

COMPARED = 30


class ComparesRaw(Vault):
    """Mutant: what one domain's updates do to its users leaves as it is."""

    def _evaluate(
        self,
        request: RoundRequest,
        backbone: Backbone,
        reference: Backbone | None,
        whitening: Whitening,
        randomness: Randomness,
    ) -> Payload:
        """As it is, where there is a reference."""
        if reference is None:
            return super()._evaluate(request, backbone, reference, whitening, randomness)
        features = torch.from_numpy(self.features(request.recipe.features, whitening))
        ours, theirs = (validation_ndcg(BackboneScorer(each, features), self.data) for each in (backbone, reference))
        return raw_gain(ours - theirs, policy=self.config.privacy, randomness=SecureRandomness())


def check_noisy_comparisons(kind: type[Vault], folder: Path) -> None:
    """A vault's answers to one comparison, asked in many rounds, scatter as the deviation beside them says."""
    least = {"rounds": 1, "evaluations": COMPARED, "metric_noise_multiplier": 60.0}
    config = load_domain(TinyDomain(folder)(users=12, privacy=least))
    shape = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=6)
    axes = {"mean": np.zeros(64, np.float32), "matrix": np.eye(64, 8, dtype=np.float32)}
    recipe = Recipe(
        features=FeatureConfig(encoder="hash:64"),
        backbone=shape,
        training=TRAINING,
        whitening=arrays_digest(axes).hex(),
    )
    shared = {name: each.detach().numpy().copy() for name, each in shared_parameters(Backbone(8, shape)).items()}
    other = np.random.default_rng(1).normal(size=shared["head.weight"].shape).astype(np.float32)
    vault = kind(config, ledger=Ledger(config.ledger_path), cache=folder / "cache")
    try:
        found = []
        for round_ in range(1, COMPARED + 1):
            request = RoundRequest(
                run="r", round=round_, recipe=recipe, arrays=shared, whitening=axes, reference={"head.weight": other}
            )
            found.append(vault.release(Kind.METRIC, request).payload.values)
    finally:
        vault.close()
    low, high = stats.chi2.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], COMPARED / 2)
    for name in ("gain", "users"):
        scaled = np.array([values[name] / values["noise_stddev"] for values in found])
        spread = float(np.square(scaled[::2] - scaled[1::2]).sum() / 2)  # what is exact is in both
        if not low <= spread <= high:
            raise CheckFailedError(f"{name}: scatter {spread / (COMPARED / 2):.3g} of what is claimed")


# Forgetful accounting.

EVENT, DELTA = gaussian(4.0), 1e-5


def charge_of(round_: int) -> Charge:
    """A charge of one round."""
    return Charge(
        dataset=b"data", run="run", round=round_, kind="update", request=b"request", event=EVENT, private=True
    )


class Forgetful(Ledger):
    """Mutant: each round starts a new accountant."""

    def charge(self, charge: Charge, limits: Limits) -> LedgerEntry:
        """Forget, then charge."""
        self._spent = Spending()
        self._spent_by_run.clear()
        return super().charge(charge, limits)


def check_accountant_lives_across_rounds(kind: type[Ledger], folder: Path) -> None:
    """A budget for three rounds pays for three rounds and not for a fourth."""
    ledger = kind(folder / "ledger.db", name="books")
    limits = Limits(lifetime=PrivacyBudget(epsilon([EVENT] * 3, DELTA), DELTA))
    try:
        for round_ in range(3):
            ledger.charge(charge_of(round_), limits)
        with pytest.raises(BudgetExhausted):
            ledger.charge(charge_of(3), limits)
    except pytest.fail.Exception:
        raise CheckFailedError("a fourth round was paid from a budget for three") from None
    finally:
        ledger.close()


# Charging late.


class LateGate(Gate):
    """Mutant: charges what it has released."""

    def release(self, charge: Charge, compute: Callable[[], Payload]) -> Release:
        """Compute first."""
        packed = _pack(compute())
        entry = self.ledger.charge(charge, self.limits)
        return Release(_unpack(self.ledger.keep_release(entry, packed)), entry, made_by=_GATE_ONLY)


@dataclass
class Looks:
    """A mechanism that looks into the books, as another reader would, while it computes."""

    ledger: Path
    seen: list[int] = field(default_factory=list)

    def __call__(self) -> Payload:
        """How many charges there are."""
        self.seen.append(len(read_ledger(self.ledger).entries))
        return Payload(values={"count": 1.0})


def check_charged_before_computed(kind: type[Gate], folder: Path) -> None:
    """While a release is computed, its charge is on disk already."""
    ledger = Ledger(folder / "ledger.db", name="books")
    try:
        gate = kind(ledger=ledger, limits=Limits(lifetime=PrivacyBudget(50.0, DELTA)))
        looks = Looks(ledger.path)
        for round_ in range(2):
            gate.release(charge_of(round_), looks)
    finally:
        ledger.close()
    if looks.seen != [1, 2]:
        raise CheckFailedError(f"charges on disk while computing: {looks.seen}, expected [1, 2]")


# Other parameters than were named.


class TrustingGate(Gate):
    """Mutant: hands out whatever was computed."""

    def release(self, charge: Charge, compute: Callable[[], Payload]) -> Release:
        """Charge, compute, and do not look."""
        entry = self.ledger.charge(charge, self.limits)
        return Release(_unpack(self.ledger.keep_release(entry, _pack(compute()))), entry, made_by=_GATE_ONLY)


def check_what_leaves_was_named(kind: type[Gate], folder: Path) -> None:
    """A release holds the parameters that its charge names, or it does not leave, now or later."""
    ledger = Ledger(folder / "ledger.db", name="books")
    names = ("adaptor.weight", "norm.bias")
    try:
        gate = kind(ledger=ledger, limits=Limits(lifetime=PrivacyBudget(50.0, DELTA)))
        for round_, held in enumerate((names, (*names, "secret"), names[:1], ())):
            charge = dataclasses.replace(charge_of(round_), layers=names)
            arrays = {name: np.zeros(2, np.float32) for name in held}
            refusals = 0
            for _ in range(2):
                try:
                    gate.release(charge, lambda arrays=arrays: Payload(arrays=arrays))  # type: ignore[misc]
                except Refused:
                    refusals += 1
            if refusals != (0 if held == names else 2):
                raise CheckFailedError(f"{held} left where {names} was charged for")
        if [entry.withheld != "" for entry in read_ledger(ledger.path).entries] != [False, True, True, True]:
            raise CheckFailedError("what may not leave is not on record as withheld")
    finally:
        ledger.close()


IN_PLACE: dict[str, Callable[[Path], None]] = {
    "sampling is Poisson": lambda _: check_poisson_sampling(Watched()),
    "the divisor is public": lambda _: check_public_divisor(PrivateOptimizer),
    "no head in the loop": lambda _: check_no_state_without_dp(user_losses),
    "metrics are noisy": lambda _: check_noisy_metrics(noisy_gain),
    "comparisons are noisy": lambda folder: check_noisy_comparisons(Vault, folder),
    "the accountant lives across rounds": lambda folder: check_accountant_lives_across_rounds(Ledger, folder),
    "charged before computed": lambda folder: check_charged_before_computed(Gate, folder),
    "what leaves was named": lambda folder: check_what_leaves_was_named(Gate, folder),
}
MUTANTS: dict[str, Callable[[Path], None]] = {
    "sampling fixed": lambda _: check_poisson_sampling(FixedSize()),
    "sampling by shuffling": lambda _: check_poisson_sampling(Shuffled()),
    "divisor from the data": lambda _: check_public_divisor(LengthDivisor),
    "head trained without DP inside the loop": lambda _: check_no_state_without_dp(losses_under_a_head),
    "metrics released raw": lambda _: check_noisy_metrics(raw_gain),
    "comparisons released raw": lambda folder: check_noisy_comparisons(ComparesRaw, folder),
    "accountant reset per round": lambda folder: check_accountant_lives_across_rounds(Forgetful, folder),
    "other parameters released than named": lambda folder: check_what_leaves_was_named(TrustingGate, folder),
    "ledger charged after release": lambda folder: check_charged_before_computed(LateGate, folder),
}


@pytest.mark.parametrize("check", IN_PLACE)
def test_the_real_build_passes_ten_times_in_a_row(check: str, tmp_path: Path) -> None:
    """Fresh randomness each time."""
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        IN_PLACE[check](folder)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_mutant_is_caught(mutant: str, tmp_path: Path) -> None:
    """By the check that the real build passes, for the reason it is there."""
    with pytest.raises(CheckFailedError):
        MUTANTS[mutant](tmp_path)
