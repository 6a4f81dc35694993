"""At a business unit, after a run: fit the private head on the backbone that the coordinator handed over.

    fitted = fit_delivered(load_domain("books"), out=Path("books/serving"))
    fitted.scores[Method.FEDERATED].ndcg            # raw; of this domain alone, and not to be published

The folder that it writes is laid out as a simulation's, so `isthmus recommend --run books/serving` serves from it.
Everything in it is fitted without noise and stays in the domain.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from isthmus.backbone_file import save_backbone
from isthmus.clients.delivery import delivered_path, load_delivered
from isthmus.clients.finish import finish_domain, read_by, to_serve
from isthmus.clients.head import Head, Method
from isthmus.clients.trainer import make_training_set
from isthmus.clients.vault import open_vault
from isthmus.config import DomainConfig, EvaluationConfig
from isthmus.durable import write_durably
from isthmus.features import default_cache_dir
from isthmus.metrics import RankingSummary, summarise

_K = 10
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a domain serves from now on, and what it is worth on its own test items; raw.

    Attributes:
        run: That the backbone is from.
        head: What serves.
        scores: Of every method; empty where no user can be tested.
    """

    run: str
    head: Head
    scores: dict[Method, RankingSummary]


def fit_delivered(config: DomainConfig, *, out: Path, ledger: Path | None = None, threads: int = 1) -> Fitted:
    """Fit and save the head of a domain on the latest backbone that was handed to its vault.

    Args:
        config: Of the domain.
        out: Folder to serve from; made if absent.
        ledger: Where its books are; beside its data where absent.
        threads: Torch threads.

    Raises:
        RunError: If no run has ended with this domain in it.
        PolicyRefused: If it ended with a custom backbone that the domain's policy does not allow.
        DataError: If a table cannot be read as declared.
    """
    vault = open_vault(config, ledger=ledger, threads=threads)
    try:
        delivered = load_delivered(delivered_path(vault.ledger.path, vault.name), vault.policy)
        shipped, recipe = delivered.shipped, delivered.recipe
        encoded = vault.encoded(recipe.features.encoder)
        served, named = to_serve(shipped, recipe, encoded)
        evaluation = EvaluationConfig()
        finished = finish_domain(
            vault.data,
            make_training_set(vault.data.train, served.whitening.apply(encoded), named),
            served,
            named,
            evaluation=evaluation,
            seed=_SEED,
            folder=out / "heads" / vault.name,
            shared=read_by(shipped, encoded),
        )
        save_backbone(out / "backbone.safetensors", shipped)
        seat = {
            "folder": str(config.folder),
            "ledger": str(vault.ledger.path.resolve()),
            "seed": None,
            "cache": str(default_cache_dir()),
            "threads": threads,
        }
        write_durably(out / "plan.json", json.dumps({"seats": [seat]}, indent=1).encode())
    finally:
        vault.close()
    scores = {
        method: summarise(ranks, k=_K, resamples=evaluation.bootstrap, seed=_SEED)
        for method, ranks in finished.ranks.items()
    }
    return Fitted(run=delivered.run, head=finished.head, scores=scores)
