"""The backbone starts as the text prior, looks only back, and is made of what exact per-user clipping can handle."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.backbone import Backbone, shared_parameters
from isthmus.config import BackboneConfig

FEATURES = 6
SHAPE = BackboneConfig(width=8, layers=2, heads=2, feedforward=16, positions=7, prior_items=3, prior_decay=0.6)


def make_backbone(*, trained: bool) -> Backbone:
    """A backbone in float64; a trained one has random parameters everywhere, head and positions included."""
    torch.manual_seed(3)
    backbone = Backbone(FEATURES, SHAPE).double().eval()
    if trained:
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.normal_(std=0.5)
    return backbone


def histories(users: int, positions: int, seed: int = 0) -> Tensor:
    """(users, positions, FEATURES) rows of length 1."""
    rows = np.random.default_rng(seed).normal(size=(users, positions, FEATURES))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=2, keepdims=True))


def brute_prior(history: NDArray[np.float64]) -> NDArray[np.float64]:
    """The text prior by its definition, one position at a time."""
    queries = np.zeros_like(history)
    for user, rows in enumerate(history):
        for now in range(len(rows)):
            total = np.zeros(FEATURES)
            for age in range(min(SHAPE.prior_items, now + 1)):
                total += SHAPE.prior_decay**age * rows[now - age]
            length = np.linalg.norm(total)
            queries[user, now] = total / length if length else 0.0
    return queries


def test_an_untrained_backbone_is_the_text_prior() -> None:
    """Whatever its random start, it returns the decayed sum of the last items, scaled to length 1."""
    history = histories(5, 7)
    backbone = make_backbone(trained=False)
    expected = brute_prior(history.numpy())
    assert torch.equal(backbone(history), backbone.prior(history))
    assert torch.equal(backbone.residual(history), torch.zeros_like(history))
    # 1e-6 is added to a length of at least about 0.2 before dividing by it
    np.testing.assert_allclose(backbone(history).detach().numpy(), expected, atol=1e-5)


def test_the_prior_of_one_item_is_its_direction() -> None:
    """Closed form: after one item of length 1, the query is that item."""
    history = histories(4, 1)
    np.testing.assert_allclose(make_backbone(trained=False)(history).detach(), history, atol=2e-6)


def test_an_empty_history_asks_for_nothing() -> None:
    """Zeros in, zeros out of the prior: no division by zero."""
    assert torch.equal(make_backbone(trained=False)(torch.zeros(2, 3, FEATURES).double()), torch.zeros(2, 3, FEATURES))


def test_later_items_do_not_change_earlier_queries() -> None:
    """Causal, after training too: items from position t on move the queries from t on and no other."""
    backbone, history = make_backbone(trained=True), histories(3, 7)
    before = backbone(history)
    for position in range(1, 7):
        changed = history.clone()
        changed[:, position:] = histories(3, 7 - position, seed=9)
        after = backbone(changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-12)
        assert (after[:, position] - before[:, position]).abs().max() > 1e-3


def test_padding_changes_nothing_before_it() -> None:
    """A short history gives the same queries alone as in a batch of longer ones."""
    backbone, history = make_backbone(trained=True), histories(1, 3)
    padded = torch.cat([history, torch.zeros(1, 4, FEATURES).double()], dim=1)
    batch = torch.cat([padded, histories(4, 7)])
    torch.testing.assert_close(backbone(batch)[:1, :3], backbone(history), rtol=0, atol=1e-12)


def test_users_do_not_see_each_other() -> None:
    """No batch statistics: a user's queries are the same alone and in company."""
    backbone, history = make_backbone(trained=True), histories(4, 5)
    alone = torch.cat([backbone(history[user : user + 1]) for user in range(4)])
    torch.testing.assert_close(backbone(history), alone, rtol=0, atol=1e-12)


def test_no_parameters_are_tied_and_all_are_shared() -> None:
    """Every parameter has memory of its own, is met once, travels under its own name, and can be learned."""
    backbone = make_backbone(trained=True)
    shared = shared_parameters(backbone)
    every = dict(backbone.named_parameters(remove_duplicate=False))
    assert shared.keys() == every.keys() == backbone.state_dict().keys()
    assert len({parameter.data_ptr() for parameter in shared.values()}) == len(shared)
    calls: list[str] = []
    for name, module in backbone.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    backbone(histories(2, 4)).square().sum().backward()
    assert len(calls) == len(set(calls))
    assert {name.rpartition(".")[0] for name in shared} == set(calls)
    for name, parameter in shared.items():
        gradient = parameter.grad
        assert gradient is not None, name
        if not name.endswith("key.bias"):  # softmax does not see a constant added to all keys
            assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("positions", [1, 4, 7])
def test_a_history_may_be_shorter_than_the_position_table(positions: int) -> None:
    """Any length up to the table's works and keeps its shape."""
    assert make_backbone(trained=True)(histories(2, positions)).shape == (2, positions, FEATURES)


def test_what_follows_a_whole_history_is_the_last_row_of_the_residual() -> None:
    """Items embedded once for all, histories of any length, and whatever stands behind them."""
    backbone, items = make_backbone(trained=True), histories(1, 9)[0]
    rows, lengths = (
        torch.randint(0, 9, (5, 7), generator=torch.Generator().manual_seed(4)),
        torch.tensor([1, 7, 3, 5, 2]),
    )
    found = backbone.residual_after(backbone.embed(items)[rows], lengths)
    for user, length in enumerate(lengths.tolist()):
        expected = backbone.residual(items[rows[user : user + 1, :length]])[0, -1]
        torch.testing.assert_close(found[user], expected, rtol=0, atol=1e-12)
