"""`report.html`: one file, no network, no script, for a phone, a desk and paper.

    render_report(result, "run/report.html")

The prose is in `report.html` (a Jinja2 template), the looks in `report.css`; this file gathers what the
template shows and computes nothing but groupings and sums. Every string of a result is untrusted: it is
escaped, and control characters are made visible. The page forbids itself everything but its own inline
style by a content security policy.
"""

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from isthmus.report import numbers
from isthmus.report.figures import epsilon_figure, methods_figure, transfer_figure, utility_figure
from isthmus.report.result import DomainResult, Result, write_atomically
from isthmus.report.words import METHODS, Verdict, counted, headline, not_private, shipped, started_from, verdict

KINDS = {
    "update": "Model update, clipped and noised",
    "metric": "Evaluation, noised",
    "catalogue": "Statistics of public item texts",
}
"""What left a domain, by kind of release; another kind is shown by its own name."""

MOST_DRAWN = 24
"""Domains of a page with figures: two for each take 0.3 s to draw, and nobody looks at a thousand. Tables hold all."""


@dataclass(frozen=True, kw_only=True)
class ReleaseGroup:
    """All releases of one kind by one domain.

    Attributes:
        what: The kind, in words.
        rounds: Its rounds, as ranges; empty for releases before the first round only.
        count: Number of releases.
        epsilon_after: Epsilon spent once the last of them had left.
    """

    what: str
    rounds: str
    count: int
    epsilon_after: float


@dataclass(frozen=True, kw_only=True)
class Missed:
    """Rounds without a part of one domain, for one reason.

    Attributes:
        domain: Name of the domain.
        rounds: The rounds, as ranges.
        status: `refused`, `budget exhausted` or `error`.
        reason: In the domain's or the server's words.
    """

    domain: str
    rounds: str
    status: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DomainView:
    """One domain as the page shows it.

    Attributes:
        name: Of the domain.
        data: Its part of the result.
        verdict: Whether transfer helps.
        releases: What left it, by kind.
        methods_svg: Figure of every method, or empty (also where there are too many domains to draw each).
        epsilon_svg: Figure of epsilon against rounds, or empty.
    """

    name: str
    data: DomainResult
    verdict: Verdict
    releases: tuple[ReleaseGroup, ...]
    methods_svg: Markup
    epsilon_svg: Markup


def render_report(result: Result, path: str | Path) -> None:
    """Write `report.html` atomically; the same result gives the same bytes.

    Raises:
        RunError: If the file cannot be written.
    """
    write_atomically(render_page(result).encode(), path)


def render_page(result: Result) -> str:
    """The page as text."""
    folder = resources.files("isthmus.report")
    # Jinja's default would drop undefined names silently; autoescape is what makes untrusted names harmless.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        name: getattr(numbers, name)
        for name in ("score", "signed", "epsilon", "delta", "factor", "plural", "size", "duration")
    }
    template = environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
    epsilons = [domain.epsilon for domain in result.domains.values()]
    deltas = [domain.delta for domain in result.domains.values()]
    drawn = len(result.domains) <= MOST_DRAWN
    return template.render(
        result=result,
        federation=result.federation,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        headline=headline(result),
        not_private=not_private(result),
        started_from=started_from(result),
        shipped=shipped(result),
        counted=counted(result),
        methods=METHODS,
        domains=tuple(_view(name, result, index, drawn=drawn) for index, name in enumerate(result.domains)),
        drawn=drawn,
        transfer_svg=_figure(transfer_figure(result, "transfer") if drawn else ""),
        utility_svg=_figure(utility_figure(result, "utility")),
        missed=_missed(result),
        largest_epsilon=float(numbers.epsilon(max(epsilons))),
        largest_delta=max(deltas),
        sum_epsilon=sum(epsilons),
        sum_delta=sum(deltas),
        group_delta=_group_delta(result),
    )


def _view(name: str, result: Result, index: int, *, drawn: bool) -> DomainView:
    """One domain's view; figures are named by its index, since names are untrusted."""
    domain = result.domains[name]
    return DomainView(
        name=name,
        data=domain,
        verdict=verdict(domain),
        releases=_grouped(domain),
        methods_svg=_figure(methods_figure(name, domain, f"methods{index}") if drawn else ""),
        epsilon_svg=_figure(epsilon_figure(name, result, f"epsilon{index}") if drawn else ""),
    )


def _grouped(domain: DomainResult) -> tuple[ReleaseGroup, ...]:
    """Releases by kind, in the order in which the kinds first left."""
    groups = []
    for kind in dict.fromkeys(release.kind for release in domain.releases):
        members = [release for release in domain.releases if release.kind == kind]
        groups.append(
            ReleaseGroup(
                what=KINDS.get(kind, kind),
                rounds=numbers.rounds([release.round for release in members if release.round]),
                count=len(members),
                epsilon_after=members[-1].epsilon_after,
            )
        )
    return tuple(groups)


def _missed(result: Result) -> tuple[Missed, ...]:
    """Rounds in which a domain had no part, one entry for each domain, status and reason."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for record in result.federation.history:
        for name, part in record.domains.items():
            if part.status != "ok":
                found.setdefault((name, part.status, part.reason or "no reason given"), []).append(record.round)
    return tuple(
        Missed(domain=name, rounds=numbers.rounds(taken), status=status, reason=reason)
        for (name, status, reason), taken in found.items()
    )


def _group_delta(result: Result) -> float:
    """Largest delta for two users of one domain at twice its epsilon: (1 + exp(epsilon)) delta, at most 1."""
    return max(
        min(1.0, (1 + math.exp(min(domain.epsilon, 700.0))) * domain.delta) for domain in result.domains.values()
    )


def _figure(svg: str) -> Markup:
    """A figure of ours, to be put into the page as it is."""
    return Markup(svg)  # noqa: S704 - text inside it is escaped by the XML writer


def finalize(value: Any) -> Any:
    """Make control characters of untrusted strings visible; Jinja escapes them afterwards."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return numbers.visible(value)
    return value
