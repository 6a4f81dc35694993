"""A realistic synthetic result: five domains, ten rounds, one refusal, one exhausted budget.

The figures are made up, with the sizes and spreads of the real sets; nothing is trained.
"""

import json
import math
from typing import Any

import pytest

from isthmus.report.result import Result

ROUNDS = 10
METHODS = ("federated", "local_only", "item_cf", "text_knn", "popularity")
SCORES: dict[str, tuple[float, ...]] = {
    "shopping": (0.0912, 0.0703, 0.0841, 0.0751, 0.0312),
    "music": (0.1184, 0.0977, 0.1142, 0.0862, 0.0651),
    "ads": (0.0643, 0.0498, 0.0571, 0.0588, 0.0402),
    "social": (0.0447, 0.0401, 0.0449, 0.0330, 0.0295),
    "dining": (0.0731, 0.0214, 0.0262, 0.0569, 0.0188),
}
"""NDCG@10 by domain, in the order of `METHODS`."""
GAINS: dict[str, tuple[str, float, float]] = {
    "shopping": ("item_cf", 0.0071, 0.0032),
    "music": ("item_cf", 0.0042, 0.0051),
    "ads": ("text_knn", 0.0055, 0.0029),
    "social": ("item_cf", -0.0002, 0.0012),
    "dining": ("text_knn", 0.0162, 0.0098),
}
"""Best local method, mean gain and half width of its interval, by domain."""
USERS = {"shopping": 4210, "music": 2980, "ads": 6120, "social": 3340, "dining": 140}


def five_domain_content(*, private: bool = False) -> dict[str, Any]:
    """Content of a `result.json`, as a dictionary that a test may change before it builds a `Result`."""
    return {
        "schema_version": 1,
        "isthmus_version": "0.1.0",
        "federation": {
            "name": "demo",
            "rounds": ROUNDS,
            "seconds": 92.4,
            "bytes_up": 16_840_000,
            "bytes_down": 16_920_000,
            "private": private,
            "seed": None if private else 7,
            "backend": "in-process",
            "strategy": "fedavg",
            "encoder": "minilm",
            "parameters": 84_224,
            "digest": "3f9a" * 16,
            "shipped_round": ROUNDS,
            "history": [_round(number) for number in range(1, ROUNDS + 1)],
        },
        "domains": {name: _domain(name) for name in SCORES},
    }


def _epsilon(name: str, after: int) -> float:
    """Epsilon spent after a round: grows like a square root; social started with 5 spent and stops at 8."""
    if name == "social":
        return 5.02 + 2.9 * math.sqrt(min(after, 6) / 6)
    return 0.31 + 7.66 * math.sqrt(after / ROUNDS) if after else 0.0


def _round(number: int) -> dict[str, Any]:
    evaluated = number in {2, 4, 6, 8, 10}
    return {
        "round": number,
        "gain": 0.012 * math.log1p(number) / math.log(11) - 0.004 * (number == 2) if evaluated else None,
        "gain_std": 0.0021 if evaluated else None,
        "update_norm": 0.9 / number,
        "domains": {name: _domain_round(name, number) for name in SCORES},
    }


def _domain_round(name: str, number: int) -> dict[str, Any]:
    status, reason = "ok", None
    if name == "social" and number > 6:
        status, reason = "budget exhausted", "epsilon 7.92 is spent of 8.00; this round needs 0.21"
    if name == "ads" and number == 3:
        status, reason = "refused", "the update was not finite"
    return {"status": status, "reason": reason, "epsilon": _epsilon(name, number)}


def _domain(name: str) -> dict[str, Any]:
    best_local, gain, half_width = GAINS[name]
    charged = 6 if name == "social" else ROUNDS
    spread = 0.9 / math.sqrt(USERS[name]) / 2
    releases = [{"round": 0, "kind": "catalogue", "epsilon_after": _epsilon(name, 0)}]
    for number in range(1, charged + 1):
        releases.append({"round": number, "kind": "update", "epsilon_after": _epsilon(name, number) - 0.02})
        if number % 2 == 0:
            releases.append({"round": number, "kind": "metric", "epsilon_after": _epsilon(name, number)})
    return {
        "users": USERS[name],
        "items": USERS[name] // 2 + 400,
        "events": USERS[name] * 9,
        "test_users": min(4000, USERS[name] - 20),
        "epsilon": _epsilon(name, ROUNDS),
        "epsilon_before": _epsilon(name, 0),
        "delta": 1e-6,
        "budget": 8.0,
        "noise_multiplier": 1.8868,
        "clip": 1.0,
        "sample_rate": 0.05,
        "rounds_charged": charged,
        "releases": releases,
        "test": {
            method: {
                "hr@10": value * 1.9,
                "ndcg@10": value,
                "mrr": value * 0.84,
                "ndcg@10_ci95": [max(0.0, value - spread), value + spread],
            }
            for method, value in zip(METHODS, SCORES[name], strict=True)
        },
        "transfer_gain": {
            "ndcg@10": gain,
            "ci95": [gain - half_width, gain + half_width],
            "best_local": best_local,
        },
        "head": {
            "verdict": "no transfer" if name == "social" else "transfer",
            "weights": {"backbone": 0.0 if name == "social" else 0.55, "item_cf": 0.35, "popularity": 0.1},
        },
        "raw": True,
    }


def build(content: dict[str, Any]) -> Result:
    """A `Result` from the content of a file."""
    return Result.model_validate_json(json.dumps(content))


@pytest.fixture
def content() -> dict[str, Any]:
    """Content of a seeded five-domain run; a test may change it."""
    return five_domain_content()


@pytest.fixture
def seeded() -> Result:
    """A seeded five-domain run."""
    return build(five_domain_content())


@pytest.fixture
def private() -> Result:
    """The same run with secret noise."""
    return build(five_domain_content(private=True))
