"""What a federation file says of how updates become the next backbone, and of which domains are asked for them."""

import enum
from typing import Annotated, Self

from pydantic import Field, model_validator

from isthmus.settings import Section, is_none


class StrategyName(enum.StrEnum):
    """Aggregation strategies."""

    FEDAVG = "fedavg"
    FEDADAM = "fedadam"
    FEDPROX = "fedprox"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"
    KRUM = "krum"
    REPTILE = "reptile"
    FEDDF = "feddf"
    LEAVE_ONE_OUT = "leave_one_out"


_NEEDED = {
    StrategyName.MEDIAN: lambda outliers: 2 * outliers + 1,
    StrategyName.TRIMMED_MEAN: lambda outliers: 2 * outliers + 1,
    StrategyName.KRUM: lambda outliers: 2 * outliers + 3,
}
"""Of the robust ones: updates without which they tolerate no such number of outliers."""


class StrategyConfig(Section):
    """How updates become the next backbone.

    Attributes:
        name: Aggregation rule.
        rounds: Rounds of the run.
        evaluate_every: A noisy evaluation after every so many rounds; 0 for none.
        weights: Declared public weight of each domain; 1 where absent. Never a user count.
        max_update_norm: A reply whose update has a larger L2 norm is refused.
        server_learning_rate: FedAdam's eta; of `reptile`, which has no default, how much of the mean step is taken.
        proximal_mu: FedProx's mu.
        outliers: Of `median`, `trimmed_mean` and `krum`: domains whose updates may be anything that passes validation.
            They count every domain alike, so declared weights are an error beside them.
        average: Decay, from round to round, of the moving average of the shared parameters that is evaluated and
            shipped in their place (De et al., 2022), while training goes on from themselves; 0 for no average.
        domains_per_round: How many domains a round asks for an update; all where absent. They are drawn by their
            weights, so that the updates of those that are drawn count alike.
        temperature: Of the draw: with probability proportional to weight^(1/temperature) (Arivazhagan et al., 2019);
            1 where absent.
        compare_every: Of `leave_one_out`: after every so many rounds the domains are asked what the updates of one of
            them do to the others; not in a round that ends with an ordinary evaluation.
    """

    name: Annotated[StrategyName, Field(strict=False)] = StrategyName.FEDAVG
    rounds: Annotated[int, Field(ge=1)] = 10
    evaluate_every: Annotated[int, Field(ge=0)] = 5
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    max_update_norm: Annotated[float, Field(gt=0)] = 100.0
    server_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    outliers: Annotated[int, Field(ge=1)] | None = None
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    domains_per_round: Annotated[int | None, Field(ge=1, exclude_if=is_none)] = None
    temperature: Annotated[float | None, Field(gt=0, exclude_if=is_none)] = None
    compare_every: Annotated[int | None, Field(ge=1, exclude_if=is_none)] = None

    @property
    def robust(self) -> bool:
        """Whether it leaves out, or outvotes, what differs."""
        return self.name in _NEEDED

    @property
    def needed(self) -> int:
        """Updates without which a round changes nothing."""
        return _NEEDED[self.name](self.outliers or 1) if self.name in _NEEDED else 1

    @model_validator(mode="after")
    def _robust_or_weighted(self) -> Self:
        if self.name in _NEEDED and self.weights:
            raise ValueError(f'`name = "{self.name}"` counts every domain alike; leave `weights` out')
        if self.name not in _NEEDED and self.outliers is not None:
            robust = ", ".join(_NEEDED)
            raise ValueError(f"`outliers` belongs to {robust}; {self.name} tolerates none")
        share = self.server_learning_rate if "server_learning_rate" in self.model_fields_set else 0.0
        if self.name is StrategyName.REPTILE and not 0 < share <= 1:
            raise ValueError(
                '`name = "reptile"` needs a `server_learning_rate` in (0, 1], 0.5 for example: its share of the mean'
            )
        return self

    @model_validator(mode="after")
    def _compared_between(self) -> Self:
        if (self.name is StrategyName.LEAVE_ONE_OUT) != (self.compare_every is not None):
            raise ValueError(
                '`name = "leave_one_out"` needs `compare_every`, 2 for example: each comparison costs the domains an '
                "evaluation"
                if self.compare_every is None
                else f"`compare_every` belongs to leave_one_out; {self.name} compares nothing, so leave it out"
            )
        if self.compare_every and self.evaluate_every and self.compare_every % self.evaluate_every == 0:
            raise ValueError(
                f"with compare_every = {self.compare_every} and evaluate_every = {self.evaluate_every} every "
                f"comparison falls into a round with an ordinary evaluation, and a round has one; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _drawn_in_numbers(self) -> Self:
        if self.temperature is not None and self.domains_per_round is None:
            raise ValueError("`temperature` belongs to `domains_per_round`: without it all domains are asked")
        if self.domains_per_round is not None and self.domains_per_round < self.needed:
            raise ValueError(
                f'`name = "{self.name}"` with {self.outliers or 1} outliers needs {self.needed} updates a round, got '
                f"domains_per_round = {self.domains_per_round}"
            )
        return self
