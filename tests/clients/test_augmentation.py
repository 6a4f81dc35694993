"""A view is made of one user's history and draws alone, gives no event away, and is what CL4SRec says."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.clients.sensitivity import SHAPE, TRAINING, make_case, user_gradient
from tests.clients.test_trainer import Drawn, flat, run_round

from isthmus.clients.augmentation import augmented, draw_views
from isthmus.clients.batches import Batch
from isthmus.clients.trainer import TrainingSet, make_batch, user_losses
from isthmus.config import Augment, Trained, TrainingConfig
from isthmus.privacy.noise import SeededRandomness

REAL = [Augment.CROP, Augment.MASK, Augment.REORDER]
LENGTHS = [6, 3, 0, 9, 1, 2, 5, 4]
DRAWS = 40


def set_up(seed: int = 1) -> tuple[TrainingSet, Batch]:
    """Users and their batch."""
    users = make_case(LENGTHS, seed=seed).users()
    return users, make_batch(users, np.arange(len(LENGTHS)), positions=SHAPE.positions, losses=TRAINING.positions)


def draws_of(number: int) -> NDArray[np.float64]:
    """A draw for each user."""
    return draw_views(SeededRandomness(number), Augment.CROP, users=len(LENGTHS), positions=SHAPE.positions)


def targets(users: TrainingSet, batch: Batch, row: int) -> dict[int, int]:
    """The item that each position with a loss has to tell, by position."""
    places = np.flatnonzero(batch.weight[row].numpy() > 0)
    events = batch.event[row, places]
    own = batch.rivals.items[events, batch.rivals.place[events]]
    return dict(zip(places.tolist(), own.tolist(), strict=True))


@pytest.mark.parametrize("augment", REAL)
def test_a_user_is_shown_and_asked_only_what_is_its_own(augment: Augment) -> None:
    """Items and events of a view are those of the history; weights sum to 1 or 0; nothing asked is given away."""
    users, batch = set_up()
    changed = 0
    for number in range(DRAWS):
        view = augmented(batch, augment, draws_of(number))
        for row, length in enumerate(batch.lengths.tolist()):
            assert float(view.weight[row].sum()) == pytest.approx(1.0) or not view.weight[row].any()
            before, now = batch.history[row, :length].tolist(), view.history[row, :length].tolist()
            assert set(now) <= {*before, 0}
            asked = targets(users, batch, row)
            for place, target in targets(users, view, row).items():
                assert target in asked.values()
                first = next(at for at in asked if batch.event[row, at] == view.event[row, place])
                assert set(now[: place + 1]) <= set(before[: first + 1]), "an item that came later is shown"
            changed += now != before
    assert changed or augment is Augment.MASK


def test_a_crop_is_a_contiguous_part_of_six_tenths() -> None:
    """Of n items, floor(0.6 n), at least two; every place is as likely; loss stays with its event."""
    _, batch = set_up()
    starts = set()
    for number in range(DRAWS):
        view = augmented(batch, Augment.CROP, draws_of(number))
        for row, length in enumerate(batch.lengths.tolist()):
            if length:
                kept = max(int(0.6 * (length + 1)), 2) - 1
                before = batch.history[row, :length].tolist()
                part = view.history[row, :kept].tolist()
                fits = [at for at in range(length - kept + 1) if before[at : at + kept] == part]
                assert fits
                assert not view.history[row, kept:].any()
                if length == SHAPE.positions:
                    starts |= set(fits)
    assert starts == set(range(SHAPE.positions - 2 + 1))


def test_a_mask_hides_the_features_of_three_tenths() -> None:
    """Hidden items have zero features for the model, and nothing else of the batch changes."""
    users, batch = set_up()
    view = augmented(batch, Augment.MASK, draws_of(0))
    assert view.hidden is not None
    assert view.hidden.sum(dim=1).tolist() == [int(0.3 * length) for length in batch.lengths]
    assert torch.equal(view.history, batch.history)
    assert torch.equal(view.weight, batch.weight)
    backbone = make_case(LENGTHS, seed=1).backbone
    masked = user_losses(backbone, users, view, TrainingConfig(train=Trained.ALL))
    assert (masked != user_losses(backbone, users, batch, TrainingConfig(train=Trained.ALL))).any()
    blank = torch.cat([users.features, users.features.new_zeros(1, users.features.shape[1])])
    shown = dataclasses.replace(view, hidden=None, history=view.history.masked_fill(view.hidden, len(blank) - 1))
    by_hand = user_losses(
        backbone, dataclasses.replace(users, features=blank), shown, TrainingConfig(train=Trained.ALL)
    )
    torch.testing.assert_close(masked, by_hand)


def test_a_reordered_part_is_six_tenths_and_asks_nothing_that_it_shows() -> None:
    """Outside of the part nothing moves; inside it carries no loss but at its end, where all of it has been seen."""
    _, batch = set_up()
    row = LENGTHS.index(9)
    length, moved = int(batch.lengths[row]), int(0.6 * int(batch.lengths[row]))
    seen = set()
    for number in range(DRAWS):
        view, draws = augmented(batch, Augment.REORDER, draws_of(number)), draws_of(number)
        first = int(draws[row, 0] * (length - moved + 1))
        before, now = batch.history[row].tolist(), view.history[row].tolist()
        assert now[:first] == before[:first]
        assert now[first + moved :] == before[first + moved :]
        assert sorted(now) == sorted(before)
        assert not view.weight[row, first : first + moved - 1].any()
        seen.add(tuple(now))
    assert len(seen) > 5


@pytest.mark.parametrize("augment", REAL)
def test_a_view_depends_on_its_user_alone(augment: Augment) -> None:
    """In another order, in other company: the same view."""
    users, batch = set_up()
    draws = draws_of(3)
    together = augmented(batch, augment, draws)
    chosen = np.array([6, 0, 3])
    alone = make_batch(users, chosen, positions=SHAPE.positions, losses=TRAINING.positions)
    view = augmented(alone, augment, draws[chosen])
    assert torch.equal(view.history, together.history[chosen])
    torch.testing.assert_close(view.weight, together.weight[chosen])


def test_nothing_is_drawn_and_nothing_changes_without_augmentation() -> None:
    """A run of the default recipe needs no draw for it."""
    _, batch = set_up()
    none = draw_views(SeededRandomness(0), Augment.NONE, users=3, positions=5)
    assert none.shape == (3, 0)
    assert augmented(batch, Augment.NONE, none) is batch


def test_a_seeded_round_repeats_and_another_seed_does_not() -> None:
    """Views are the release's own draws."""
    case = make_case([6, 9, 7], seed=4)
    assert float(user_gradient(case, case.rows[1]).norm()) > 0
    training = TRAINING.model_copy(update={"augment": Augment.CROP})
    one, again, other = (update_of(training, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def update_of(training: TrainingConfig, seed: int) -> NDArray[np.float64]:
    """A round without noise whose views have a seed."""
    case = make_case([6, 9, 7], seed=4)
    return flat(run_round(case, Views(case.chosen, SeededRandomness(seed)), training=training))


class Views(Drawn):
    """Seeded draws for views, and no noise."""

    def noisy(self, values, *, stddev, sensitivity):
        """The values."""
        return values

    def uniform(self, count):
        """From the seeded source."""
        return self.source.uniform(count)
