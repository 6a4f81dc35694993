"""One user moves the clipped sum by at most C: rule 6 of the design, with mutants that the checks must catch.

The checks are in `sensitivity.py`. They face the real round of training, and then wrong mechanisms, each of which
they have to fail.
"""

import copy
import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from tests.clients.sensitivity import (
    DIM,
    EXACT,
    PLAN,
    SHAPE,
    SINGLE,
    TRAINING,
    Case,
    Mechanism,
    Served,
    Silent,
    assert_matches_brute_force,
    assert_user_moves_at_most_c,
    brute_force,
    make_case,
    policy_of,
)
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import Backbone
from isthmus.clients import trainer
from isthmus.clients.engines import engine_for
from isthmus.clients.gradients import Samples, UserGradients
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.clients.trainer import Batch, TrainingSet, user_losses
from isthmus.config import DomainCompute, EngineName, Precision, TrainingConfig
from isthmus.errors import ConfigError, EngineError


def only(case: Case, user: int) -> Case:
    """A data set of one user."""
    return dataclasses.replace(case, rows=(case.rows[user],), chosen=(True,))


@dataclass(frozen=True)
class Accumulated:
    """The sum inside the optimizer, after the last micro-batch was clipped."""

    engine: EngineName

    def __call__(self, case: Case) -> Tensor:
        """The sum."""
        backbone = copy.deepcopy(case.backbone)
        users = case.users()
        sgd = torch.optim.SGD(backbone.parameters(), lr=1.0)
        optimizer = PrivateOptimizer(sgd, plan=PLAN, policy=policy_of(case), randomness=Silent(case.chosen))
        with engine_for(backbone, DomainCompute(engine=self.engine))(backbone) as engine:
            chosen = np.flatnonzero(case.chosen)
            for some in trainer.micro_batches(np.minimum(users.histories.lengths()[chosen], SHAPE.positions)):
                batch = trainer.make_batch(users, chosen[some], positions=SHAPE.positions, losses=TRAINING.positions)
                losses = functools.partial(user_losses, backbone, users, batch, TRAINING)
                optimizer.accumulate(engine.gradients(losses))
        return torch.cat([parameter.summed_grad.flatten().double() for parameter in optimizer.params])


ENGINES = list(EngineName)
RAGGED = [6, 3, 0, 9, 1, 2, 5, 4, 7, 5]
"""Empty, one event (nothing to predict), shorter and longer than the model's window."""


@pytest.mark.parametrize(
    "make_sum",
    [make(engine=engine) for make in (Accumulated, Served) for engine in ENGINES],
    ids=[f"{what}-{engine}" for what in ("inside", "released") for engine in ENGINES],
)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=0, max_size=7),
    seed=st.integers(0, 10_000),
    single=st.booleans(),
    data=st.data(),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_the_sum_is_the_loop_over_users(
    make_sum: Mechanism, lengths: list[int], seed: int, single: bool, data: st.DataObject
) -> None:
    """Ragged histories, any batch (an empty one too): 1e-10 in float64, 1e-5 in float32."""
    case = make_case(lengths, seed=seed, single=single)
    chosen = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    case = dataclasses.replace(case, chosen=tuple(chosen))
    assert_matches_brute_force(make_sum, case, tolerance=SINGLE if single else EXACT)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_one_user_moves_the_sum_by_at_most_c(single: bool, engine: EngineName) -> None:
    """Every user is removed once; some of them are clipped, so the bound is met with equality."""
    case = make_case(RAGGED, seed=1, single=single)
    assert_user_moves_at_most_c(Served(engine=engine), case, tolerance=SINGLE)
    longest = max(
        float(brute_force(dataclasses.replace(case, rows=(row,), chosen=(True,))).norm()) for row in case.rows
    )
    assert longest == pytest.approx(case.clip, rel=1e-4), "nobody is clipped: the bound was not tried"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 12, 2048])
def test_micro_batches_change_nothing_but_memory(
    monkeypatch: pytest.MonkeyPatch, size: int, engine: EngineName
) -> None:
    """Batches that are larger than what is in memory, one that just fits, and users one at a time."""
    monkeypatch.setattr(trainer, "_MICRO_BATCH", size)
    case = make_case(RAGGED, seed=2)
    assert_matches_brute_force(Accumulated(engine=engine), case, tolerance=EXACT)
    assert_matches_brute_force(Served(engine=engine), case, tolerance=EXACT)
    if size == 12:  # a removed user moves all longer ones into other micro-batches
        assert_user_moves_at_most_c(Served(engine=engine), case, tolerance=EXACT)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lengths", [[], [4, 6], [1, 0, 1]], ids=["no users", "nobody chosen", "nothing to predict"])
def test_an_empty_batch_adds_exactly_zero(lengths: list[int], engine: EngineName) -> None:
    """No user, none that was drawn, or none with anything to learn from: the sum is zero and nothing fails."""
    case = dataclasses.replace(make_case(lengths, seed=3), chosen=tuple(length < 2 for length in lengths))
    assert not Served(engine=engine)(case).any()
    assert not Accumulated(engine=engine)(case).any()


def user_of(case: Case, row: int) -> int:
    """Where a user is in the one micro-batch: the shortest histories come first."""
    lengths = np.minimum([len(one) for one in case.rows], SHAPE.positions)
    return int(np.flatnonzero(np.argsort(lengths, kind="stable") == row)[0])


@dataclass(frozen=True)
class Scaled:
    """The real losses, one user's multiplied: by NaN, by infinity, by far too much."""

    user: int
    factor: float

    def __call__(self, backbone: Backbone, users: TrainingSet, batch: Batch, training: TrainingConfig) -> Tensor:
        """As `user_losses`."""
        losses = user_losses(backbone, users, batch, training)
        factors = np.ones(len(losses))
        factors[self.user] = self.factor
        return losses * torch.from_numpy(factors).to(losses.dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf])
def test_a_user_without_a_usable_gradient_adds_zero_and_spoils_nobody(
    factor: float, single: bool, engine: EngineName
) -> None:
    """NaN and infinity are left out, the others' sum is what it is without that user."""
    case = make_case(RAGGED, seed=4, single=single)
    poisoned = Served(engine=engine, losses=Scaled(user_of(case, 3), factor), tried=False)(case)
    expected = brute_force(case.without(3))
    assert torch.isfinite(poisoned).all()
    assert float((poisoned - expected).norm()) <= (SINGLE if single else EXACT) * float(expected.norm())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("factor", [1e6, 1e20, 1e38, 1e300])
def test_an_enormous_gradient_still_adds_at_most_c(factor: float, single: bool, engine: EngineName) -> None:
    """Finite but huge gradients, where squares overflow in float32, move the sum by at most C."""
    case = make_case(RAGGED, seed=5, single=single)
    moved = Served(engine=engine, losses=Scaled(user_of(case, 3), factor), tried=False)(case) - brute_force(
        case.without(3)
    )
    assert float(moved.norm()) <= case.clip * (1 + 10 * SINGLE)


# What follows is wrong on purpose.


class Forgetful(PrivateOptimizer):
    """Trains every parameter, and forgets the last one in the norm."""

    def accumulate(self, gradients: UserGradients) -> None:
        """Norms before the last layer was there."""
        assert isinstance(gradients, Samples)
        factors = self.clipped(Samples(gradients.samples[:-1]).norms())
        for parameter, total in zip(self.params, gradients.weighted_sum(factors), strict=True):
            parameter.summed_grad += total


class Unclipped(PrivateOptimizer):
    """Sums what it gets."""

    def clipped(self, norms: Tensor) -> Tensor:
        """No clipping."""
        return torch.ones_like(norms)


class LateClipping(PrivateOptimizer):
    """Clips the mean of the batch, not the user."""

    def accumulate(self, gradients: UserGradients) -> None:
        """Average first."""
        users = max(len(gradients.norms()), 1)
        total = gradients.weighted_sum(torch.ones(users))
        norm = torch.cat([part.flatten() for part in total]).norm() / users
        for parameter, part in zip(self.params, total, strict=True):
            parameter.summed_grad += part * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)


class CountingDivisor(PrivateOptimizer):
    """Divides by how many users the batch held."""

    def accumulate(self, gradients: UserGradients) -> None:
        """A count, not the policy's constant."""
        super().accumulate(gradients)
        self.expected_batch_size = max(len(gradients.norms()), 1)


class Unguarded(PrivateOptimizer):
    """Clipping that knows no NaN."""

    def clipped(self, norms: Tensor) -> Tensor:
        """Without ours."""
        factors: Tensor = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        return factors


def in_batch_losses(backbone: Backbone, users: TrainingSet, batch: Batch, training: TrainingConfig) -> Tensor:
    """Next items are told from those of the other users in the batch."""
    query = backbone(users.features[batch.history])
    valid = batch.weight > 0
    target = torch.from_numpy(users.histories.items.astype(np.int64))[batch.event[valid]]
    scores = query[valid] @ users.features[target].T / training.temperature
    loss = functional.cross_entropy(scores, torch.arange(len(target)), reduction="none")
    return loss.new_zeros(valid.shape).masked_scatter(valid, loss * batch.weight[valid]).sum(dim=1)


class TiedBackbone(Backbone):
    """A head that is the adaptor transposed: one matrix, met twice."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(DIM, SHAPE)
        self.double().load_state_dict(backbone.state_dict())
        self.head = nn.Identity()

    def residual(self, history: Tensor) -> Tensor:
        """As the backbone's, with the adaptor's matrix at the end."""
        return super().residual(history) @ self.adaptor.weight


def ghost_sum(case: Case) -> Tensor:
    """Opacus' ghost clipping: norms from a first backward pass, a reweighted second one."""
    backbone, users = copy.deepcopy(case.backbone), case.users()
    hooks = GradSampleHooksFastGradientClipping(backbone, loss_reduction="sum", max_grad_norm=case.clip)
    batch = trainer.make_batch(users, np.flatnonzero(case.chosen), positions=SHAPE.positions, losses=TRAINING.positions)
    losses = user_losses(backbone, users, batch, TRAINING)
    losses.sum().backward(retain_graph=True)
    factor = hooks.get_clipping_coef().detach()
    hooks.disable_hooks()
    backbone.zero_grad()
    (factor * losses).sum().backward()
    hooks.cleanup()
    return torch.cat([parameter.grad.flatten() for parameter in backbone.parameters()])


MUTANTS = {
    "a forgotten layer": Served(engine=EngineName.OPACUS, optimizer=Forgetful),
    "no clipping": Served(optimizer=Unclipped),
    "clipped after averaging": Served(optimizer=LateClipping),
    "in-batch negatives": Served(engine=EngineName.OPACUS, losses=in_batch_losses, tried=False),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_the_checks_catch_a_wrong_mechanism(mutant: Mechanism) -> None:
    """Each mutant is off the loop over users, and lets some user move the sum by more than C."""
    case = make_case([6, 3, 9, 5, 4, 7, 5, 8], seed=6)
    case = dataclasses.replace(case, clip=case.clip / 4)
    with pytest.raises(AssertionError, match="off by"):
        assert_matches_brute_force(mutant, case, tolerance=SINGLE)
    with pytest.raises(AssertionError, match="moves the sum by"):
        assert_user_moves_at_most_c(mutant, case, tolerance=SINGLE)
    assert_matches_brute_force(Served(), case, tolerance=EXACT)
    assert_user_moves_at_most_c(Served(), case, tolerance=EXACT)


def test_the_checks_catch_a_divisor_that_counts_the_batch() -> None:
    """Divided by its own size the sum is not the policy's: an exact count would leave with it."""
    case = make_case(RAGGED, seed=7)
    with pytest.raises(AssertionError, match="off by"):
        assert_matches_brute_force(Served(optimizer=CountingDivisor), case, tolerance=SINGLE)


def test_the_checks_catch_an_optimizer_that_knows_no_nan() -> None:
    """Without our guard one user's NaN is everybody's."""
    case = make_case(RAGGED, seed=4)
    assert torch.isnan(Served(optimizer=Unguarded, losses=Scaled(3, np.nan), tried=False)(case)).all()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_the_checks_catch_ghost_clipping_of_tied_weights() -> None:
    """Ghost norms miss what a tied matrix gets elsewhere: users add more than C. Untied, ghost clipping is exact."""
    untied = make_case([6, 3, 9, 5, 4, 7, 5, 8], seed=8)
    assert_user_moves_at_most_c(ghost_sum, untied, tolerance=SINGLE)
    assert_matches_brute_force(ghost_sum, untied, tolerance=EXACT)
    tied = dataclasses.replace(untied, backbone=TiedBackbone(untied.backbone))
    alone = [float(ghost_sum(only(tied, user)).norm()) / tied.clip for user in range(len(tied.rows))]
    assert 1.01 < max(alone) < 3, "the under-clipping that is known of"
    untried = Served(engine=EngineName.OPACUS, tried=False)
    assert_user_moves_at_most_c(untried, tied, tolerance=SINGLE)  # would train a wrong model, not leak
    with pytest.raises(AssertionError, match="moves the sum by"):
        assert_user_moves_at_most_c(ghost_sum, tied, tolerance=SINGLE)
    with pytest.raises(AssertionError, match="off by"):
        assert_matches_brute_force(ghost_sum, tied, tolerance=SINGLE)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_round_refuses_what_it_cannot_clip(engine: EngineName) -> None:
    """In-batch negatives and a matrix that is tied by hand: an error before the first step, not a wrong sum."""
    case = make_case([6, 3, 9, 5, 4, 7, 5, 8], seed=6)
    with pytest.raises(EngineError, match="cannot be told apart"):
        Served(engine=engine, losses=in_batch_losses)(case)
    with pytest.raises(EngineError, match="cannot be told apart"):
        Served(engine=engine)(dataclasses.replace(case, backbone=TiedBackbone(case.backbone)))


def test_half_precision_moves_the_sum_and_not_the_bound() -> None:
    """Layers multiply in bfloat16: the sum is off by a few percent, and no user adds more than C."""
    case = make_case(RAGGED, seed=1, single=True)
    half = Served(precision=Precision.BFLOAT16)
    error = float((half(case) - brute_force(case)).norm()) / case.clip
    assert 1e-4 < error < 0.2
    alone = [float(half(only(case, user)).norm()) / case.clip for user in range(len(case.rows))]
    assert max(alone) <= 1 + SINGLE
    assert max(alone) > 0.99, "nobody is clipped: the bound was not tried"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gpu_gives_the_same_sum(engine: EngineName) -> None:
    """Float32 there, float64 here."""
    case = make_case(RAGGED, seed=1, single=True)
    assert_matches_brute_force(Served(engine=engine, device="cuda"), case, tolerance=1e-4)
    assert_user_moves_at_most_c(Served(engine=engine, device="cuda"), case, tolerance=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_one_error() -> None:
    """Named, before anything is computed."""
    with pytest.raises(ConfigError, match=r"compute\.device.*there is no cuda here, torch sees 0"):
        Served(device="cuda")(make_case([3, 4], seed=1, single=True))
