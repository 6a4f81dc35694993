"""Make one backbone of the domains' that predicts what they predict together, without anybody's data.

    arrays = distil(mean, teachers, config=config, trained=names, seed=7)

The mean of parameters does not compute the mean of what they compute: two backbones may say the same with their hidden
units in another order, and the mean of the two says neither. So the server lets every domain's backbone (the shared
parameters and its released update) predict after made-up histories, and moves the mean of parameters until it predicts
their weighted mean. Scores are linear in what a backbone predicts, so that is the mean of scores as well.

A made-up item is a random direction: the public text that is pooled in the whitening has mean 0 and covariance I in its
axes, so these are draws from its released moments. Items of one history have half of their variance in common. Nothing
else is looked at: all of it is post-processing of what was released.

References: Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS
2020 (FedDF); Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014 (squared error of scores).
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor
from torch.nn import functional

from isthmus.backbone import Backbone, load_shared, shared_arrays, shared_parameters, without_classifier
from isthmus.config import BackboneConfig
from isthmus.encoding import Arrays
from isthmus.packing import from_array_record, to_array_record
from isthmus.records import ARRAYS, read_recipe

_HISTORIES, _HELD_OUT = 512, 128
_BATCH, _EPOCHS, _LEARNING_RATE = 64, 5, 1e-3


class FedDF(FedAvg):
    """FedAvg, and ensemble distillation from there.

    Attributes:
        run: Of the federation.
        trained: Names of the shared parameters that move.
    """

    run: str
    trained: tuple[str, ...]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg's; remembers the backbone's shape."""
        self._shape = read_recipe(str(config["recipe"])).backbone
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg's mean, moved until it predicts what the domains' backbones predict together."""
        replies = list(replies)
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        teachers = []
        for message in replies:
            weight = message.content.metric_records["metrics"][self.weighted_by_key]
            teachers.append((float(weight), from_array_record(message.content.array_records[ARRAYS])))  # type: ignore[arg-type]
        # Known to everybody, and the same for a server that lost this round and gets it again.
        seed = int.from_bytes(hashlib.sha256(f"{self.run}\n{server_round}\ndistil".encode()).digest()[:7])
        start = {name: packed.numpy().astype("float32") for name, packed in mean.items()}
        found = distil(start, teachers, config=self._shape, trained=self.trained, seed=seed)
        return to_array_record(found), metrics


def distil(
    start: Arrays,
    teachers: Sequence[tuple[float, Arrays]],
    *,
    config: BackboneConfig,
    trained: Sequence[str],
    seed: int,
) -> Arrays:
    """Parameters that predict what the teachers predict together.

    Args:
        start: Of the student.
        teachers: Weight and parameters of each.
        config: Shape of all of them.
        trained: Names of the parameters that move.
        seed: Of the made-up histories.

    Guarantees:
        - A function of its arguments.
        - On histories that it was not moved by it is nearer to the teachers' mean than `start`, or it is `start`.
        - A domain classifier predicts nothing that is shipped, and stays that of `start`.
    """
    histories = made_up_histories(start["adaptor.weight"].shape[1], config, seed=seed)
    total = sum(weight for weight, _ in teachers)
    target = torch.zeros_like(histories)
    for weight, arrays in teachers:
        with torch.no_grad():
            target += weight / total * _backbone(arrays, config)(histories)
    student = _backbone(start, config)
    parameters = shared_parameters(student)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    moving = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimizer = torch.optim.Adam(moving, lr=_LEARNING_RATE)
    seen, kept = slice(_HELD_OUT, None), slice(_HELD_OUT)
    before = distance(student, histories[kept], target[kept])
    for _ in range(_EPOCHS):
        for some, aim in zip(torch.split(histories[seen], _BATCH), torch.split(target[seen], _BATCH), strict=True):
            optimizer.zero_grad()
            functional.mse_loss(student(some), aim).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    if not distance(student, histories[kept], target[kept]) < before:
        return start
    return start | shared_arrays(student)


def made_up_histories(features: int, config: BackboneConfig, *, seed: int) -> Tensor:
    """(histories, positions, features) of random items, those of a history alike."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn((_HISTORIES, 1, features), generator=generator)
    own = torch.randn((_HISTORIES, config.positions, features), generator=generator)
    return functional.normalize(common + own, dim=-1)


def distance(backbone: Backbone, histories: Tensor, target: Tensor) -> float:
    """Mean squared distance between what a backbone predicts and a target, both (histories, positions, features)."""
    with torch.no_grad():
        return float((backbone(histories) - target).square().sum(dim=-1).mean())


def _backbone(arrays: Arrays, config: BackboneConfig) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        backbone = Backbone(arrays["adaptor.weight"].shape[1], config)
    load_shared(backbone, without_classifier(arrays))
    return backbone
