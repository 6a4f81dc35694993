"""The business unit's own rules: what may leave, how often, for whom, whatever anybody asks for.

    policy = load_policy(domain)                                   # policy.toml, or what domain.toml implies
    policy.check_plan(plan, clip=1.0, private=True)                # PolicyRefused: rule, value asked, limit
    policy.check_request(kind="update", layers=names, coordinator=key)

`policy.toml` lies beside `domain.toml` and limits what that file, a coordinator or a program may do. Where there
is none, the limits are those of `domain.toml`: its epsilon and delta over all runs, and nothing further; the
audit says so. Whatever is in force is written into the ledger before the first charge under it.
"""

import datetime as dt
import fnmatch
import json
import os
import re
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from isthmus.config import DomainConfig
from isthmus.errors import ConfigError, PolicyRefused
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.entries import Limits
from isthmus.privacy.lines import LONGEST_DOCUMENT
from isthmus.privacy.plan import DpSgdPlan
from isthmus.privacy.program import backbone_hash, code_hash
from isthmus.settings import Section, read_settings

FILE = "policy.toml"

Hashes = Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(strict=False)]


def _one_line(text: str) -> str:
    """What goes into reports and onto terminals."""
    if not text.isprintable():
        raise ValueError("must be one line of visible characters")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_line)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Kinds = Annotated[tuple[Literal["catalogue", "update", "metric"], ...], Field(strict=False)]


_PINNED = re.compile(r"([a-z0-9][a-z0-9_-]{0,62})@([0-9a-f]{64})")


def _name_or_pin(entry: str) -> str:
    if "@" in entry and not _PINNED.fullmatch(entry):
        raise ValueError("must be a name, or NAME@HASH with 64 hex digits, as `isthmus doctor --backbone NAME` says it")
    return entry


def _pinned_or_not(entries: tuple[str, ...]) -> tuple[str, ...]:
    """A name beside its own pin would make the pin mean nothing."""
    for entry in entries:
        name, at, _ = entry.partition("@")
        if at and name in entries:
            raise ValueError(f"must not name {name!r} with a hash and without one; leave out the one without")
    return entries


Backbones = Annotated[
    tuple[Annotated[Name, AfterValidator(_name_or_pin)], ...], Field(strict=False), AfterValidator(_pinned_or_not)
]


def _is_empty(names: tuple[str, ...]) -> bool:
    return not names


class Lifetime(Section):
    """What may be spent on one user's history, over everything that is ever released.

    Attributes:
        epsilon: Over all runs.
        delta: Over all runs.
        run_epsilon: In one run, at the same delta; no limit of its own where absent.
    """

    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    run_epsilon: Annotated[float, Field(gt=0, le=100)] | None = None


class Allowed(Section):
    """What may be done at all. An absent rule allows, but for `backbones`.

    Attributes:
        least_noise: Smallest noise multiplier of a noisy step.
        least_metric_noise: Smallest noise multiplier of a noisy evaluation.
        largest_clip: Largest clipping norm.
        kinds: Kinds of release.
        layers: Names of parameters that an update may hold; `*` stands for anything.
        coordinators: Public keys of who may ask; anybody where absent.
        programs: Hashes of the programs that may run; any where absent. `isthmus.privacy.program` tells this one's.
        seeded: Whether runs whose noise can be repeated, which are not private, may use this data.
        backbones: Names of custom backbones, code of somebody else's that runs beside this data, each as it is or
            `@` and the hash of its package; none but the built-in one where absent.
    """

    least_noise: Annotated[float, Field(ge=0)] = 0.0
    least_metric_noise: Annotated[float, Field(ge=0)] = 0.0
    largest_clip: Annotated[float, Field(gt=0)] | None = None
    kinds: Kinds = ("catalogue", "update", "metric")
    layers: Names = ("*",)
    coordinators: Hashes | None = None
    programs: Hashes | None = None
    seeded: bool = True
    backbones: Annotated[Backbones, Field(exclude_if=_is_empty)] = ()

    def forbidden(self, layers: Iterable[str]) -> list[str]:
        """Those names of parameters that no pattern in `layers` matches."""
        return [name for name in layers if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.layers)]


class People(Section):
    """Whether one person may be a user of several domains; what the audit adds up per person.

    Attributes:
        overlap: False only where it is known that nobody is in two domains.
        k_max: In how many domains one person is at most; all of them where absent.
    """

    overlap: bool
    k_max: Annotated[int, Field(ge=1, le=10_000)] | None = None

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if not self.overlap and self.k_max not in {None, 1}:
            raise ValueError(f"without overlap a person is in 1 domain, got k_max {self.k_max}")
        return self


class Policy(Section):
    """The rules of one business unit for one data set.

    Attributes:
        approved_by: Who answers for them.
        approved_on: Since when.
        budget: Lifetime limits.
        allow: Everything else.
        people: Whether people may be in several domains; not declared where absent.
    """

    approved_by: Name
    approved_on: dt.date
    budget: Lifetime
    allow: Allowed = Allowed()
    people: People | None = None

    @property
    def limits(self) -> Limits:
        """What every charge must fit into."""
        budget = self.budget
        run = None if budget.run_epsilon is None else PrivacyBudget(budget.run_epsilon, budget.delta)
        return Limits(lifetime=PrivacyBudget(budget.epsilon, budget.delta), run=run)

    def text(self) -> str:
        """Canonical JSON, for the ledger."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def check_plan(self, plan: DpSgdPlan, *, clip: float, private: bool) -> None:
        """Refuse to train as planned where a rule is against it.

        Raises:
            PolicyRefused: With the rule, what was asked and the limit.
        """
        allow, noise = self.allow, plan.noise_multiplier
        if noise < allow.least_noise:
            raise PolicyRefused("least_noise", f"noise multiplier {noise:g}", f"at least {allow.least_noise:g}")
        metric = plan.config.metric_noise_multiplier
        if plan.config.evaluations and metric is not None and metric < allow.least_metric_noise:
            limit = f"at least {allow.least_metric_noise:g}"
            raise PolicyRefused("least_metric_noise", f"noise multiplier {metric:g}", limit)
        if allow.largest_clip is not None and clip > allow.largest_clip:
            raise PolicyRefused("largest_clip", f"clip {clip:g}", f"at most {allow.largest_clip:g}")
        if not private and not allow.seeded:
            raise PolicyRefused("seeded", "noise that can be repeated", "private runs only")
        if allow.programs is not None and code_hash() not in allow.programs:
            raise PolicyRefused("programs", f"program {code_hash()}", _listed(allow.programs))

    def check_request(self, *, kind: str, layers: Iterable[str], coordinator: str) -> None:
        """Refuse a request where a rule is against it.

        Args:
            kind: Of release.
            layers: Names of the parameters that the answer would hold.
            coordinator: Public key of who signed the request, hex; empty if nobody did.

        Raises:
            PolicyRefused: With the rule, what was asked and the limit.
        """
        allow = self.allow
        if kind not in allow.kinds:
            raise PolicyRefused("kinds", f"release {kind}", _listed(allow.kinds))
        for layer in allow.forbidden(layers):
            raise PolicyRefused("layers", f"parameter {layer}", _listed(allow.layers))
        self.check_coordinator(coordinator)

    def check_backbone(self, module: str | None) -> None:
        """Refuse a custom backbone that is not allowed by name, or whose files are not those that its pin is of.

        The built-in one (None) is always allowed. None of a custom one's code is run.

        Raises:
            PolicyRefused: With the rule, what was asked and the limit.
            ConfigError: If it is pinned, and not installed or without a hash.
        """
        allowed = self.allow.backbones
        if module is None or module in allowed:
            return
        pinned = [entry for entry in allowed if entry.startswith(f"{module}@")]
        if not pinned:
            raise PolicyRefused(
                "backbones", f"custom backbone {module}", _listed(allowed) if allowed else "only the built-in one"
            )
        found = f"{module}@{backbone_hash(module)}"
        if found not in pinned:
            otherwise = "Install the package as it was approved"
            raise PolicyRefused("backbones", f"custom backbone {found}", _listed(pinned), otherwise=otherwise)

    def check_coordinator(self, coordinator: str) -> None:
        """Refuse whoever may not ask.

        Raises:
            PolicyRefused: With the rule, who asked and who may.
        """
        allow = self.allow
        if allow.coordinators is not None and coordinator not in allow.coordinators:
            who = f"coordinator {coordinator}" if coordinator else "a request that nobody signed"
            raise PolicyRefused("coordinators", who, _listed(allow.coordinators))


def load_policy(domain: DomainConfig) -> Policy:
    """The policy in force for a domain.

    Raises:
        ConfigError: If there is a `policy.toml` and anything in it is wrong.
    """
    file = domain.folder / FILE
    if os.path.lexists(file):  # a link that leads nowhere is not the absence of rules
        policy = read_settings(file, Policy)
        if len(policy.text()) > LONGEST_DOCUMENT:
            raise ConfigError(
                f"{file}: its rules are {len(policy.text())} characters, and a ledger takes {LONGEST_DOCUMENT}; "
                f"shorten its lists, with `*` in names of layers"
            )
        return policy
    implied = Lifetime(epsilon=domain.privacy.epsilon, delta=domain.privacy.delta)
    return Policy(approved_by="nobody: implied by domain.toml", approved_on=dt.date(1970, 1, 1), budget=implied)


def _listed(values: Iterable[str]) -> str:
    shown = list(values)
    return "only " + ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
