"""Whether many cores pay: the work of a round, estimated before anything is opened, against what Ray takes to start.

    print(ray_note(federation, domains, rounds=10, backend="ray", cores=8))

The estimate reads configuration only: users in an expected batch, steps, parameters and positions. It knows no
histories shorter than a backbone's positions, so it is an upper bound of the training (of a text encoder, for texts of
a usual length), and says nothing of private heads, which are fitted in this process after the last round whatever the
backend.
"""

from collections.abc import Sequence

from isthmus.config import DomainConfig, FederationConfig
from isthmus.custom_backbone import make_backbone
from isthmus.features import encoder_dim
from isthmus.features.tuned import text_shape

_EACH = 0.9e-9
"""CPU-seconds of one parameter's gradient for one user at one position; 0.85e-9 to 0.97e-9 in four shapes of backbone
(84,800 to 300,416 parameters, 20 and 50 positions), on one core of an AMD EPYC, 2026-11-27, with Opacus' hooks: for
the book-keeping engine, which takes less, an upper bound."""

_EACH_OF_TEXT = 8e-11
"""The same of one weight in the layers of a text encoder, for one token: 0.10 CPU-seconds went into a user with five
texts of 24 tokens in the mean, through the 10.6 million of MiniLM (docs/experiments.md, 2026-11-27)."""
_TOKENS = 24  # of a text, for want of anything better: the estimate opens no table

RAY_START = 20.0
"""Seconds that Ray and its workers take before the first answer; 43 were measured on two cores that six others used."""

_WORTH_SAYING = 60.0  # seconds that another backend must save before an in-process run speaks of it


def work_of(federation: FederationConfig, domains: Sequence[DomainConfig]) -> list[float]:
    """CPU-seconds that one round of training takes in each domain, at most, on one core."""
    features = federation.features.dim or encoder_dim(federation.features.encoder)
    backbone = make_backbone(features, federation.backbone.shape)
    each = _EACH * sum(parameter.numel() for parameter in backbone.parameters())
    text = text_shape(federation.features, federation.training)
    if text is not None:
        each += _EACH_OF_TEXT * 12 * text.layers * text.width**2 * _TOKENS  # 12: four of attention, eight between
    return [
        each
        * min(federation.backbone.positions, domain.split.max_history)
        * domain.privacy.expected_batch
        * domain.privacy.steps_per_round
        for domain in domains
    ]


def shares(work: Sequence[float], workers: int) -> list[list[int]]:
    """Which domains each worker answers for: the heaviest first, each to whoever has least to do so far.

    Reference: Graham, "Bounds on Multiprocessing Timing Anomalies", 1969: at most 4/3 of the best division.

    >>> shares([1.0, 5.0, 3.0, 3.0], workers=2)
    [[1, 0], [2, 3]]
    """
    taken: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for domain in sorted(range(len(work)), key=lambda one: -work[one]):
        least = min(range(workers), key=load.__getitem__)
        taken[least].append(domain)
        load[least] += work[domain]
    return taken


def ray_note(
    federation: FederationConfig, domains: Sequence[DomainConfig], *, rounds: int, backend: str, cores: int
) -> str:
    """What to know about the backend before a run, in a sentence; empty where an in-process run has nothing to gain.

    Args:
        federation: The recipe.
        domains: Its domains.
        rounds: Of the run.
        backend: That was asked for.
        cores: That a process may use here.
    """
    work = work_of(federation, domains)
    workers = min(len(work), cores)
    alone = sum(work)
    together = max(sum(work[domain] for domain in share) for share in shares(work, workers))
    saved = rounds * (alone - together)
    about = f"a round is up to {_seconds(alone)} of training on one core, {_seconds(together)} on {workers}"
    if backend == "ray":
        verdict = "it pays" if saved > RAY_START else "in-process is likely faster here"
        return (
            f"ray: {about}; {rounds} rounds save up to {_seconds(saved)}, and Ray takes some {RAY_START:.0f} s to "
            f"start: {verdict}"
        )
    if saved - RAY_START > _WORTH_SAYING:
        return f"{about}; `--backend ray` would save up to {_seconds(saved - RAY_START)}"
    return ""


def _seconds(figure: float) -> str:
    """A duration in words that claim no more than an estimate knows."""
    if figure < 120:
        return f"{figure:.1f} s" if figure < 10 else f"{figure:.0f} s"
    return f"{figure / 60:.0f} min"
