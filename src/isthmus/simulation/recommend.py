"""Serve one user of a finished run: what `isthmus recommend` prints.

    items = recommend_items(Path("run"), domain="dining", user="dining-person-00003", count=10)

Uses the shipped backbone and the domain's private head, with the head's local signals fitted on everything the
domain knows by now. Items that the user had are left out.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from isthmus.backbone_file import load_backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.blend import Signals
from isthmus.clients.data import DomainData, Histories
from isthmus.clients.finish import LOCAL_BACKBONE, read_by
from isthmus.clients.head import load_head
from isthmus.clients.text_tower import shipped_reading
from isthmus.clients.vault import Vault, open_seat
from isthmus.errors import DataError, RunError


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item: Id.
        title: As the catalogue says.
        score: Of the head's blend; only the order means something.
    """

    item: str
    title: str
    score: float


def recommend_items(run: Path, *, domain: str, user: str, count: int) -> list[Recommendation]:
    """Best items for a user, best first.

    Raises:
        RunError: If the folder holds no finished run or no such domain.
        PolicyRefused: If the run's backbone is a custom one that the domain's policy does not allow.
        DataError: If the domain has no such user.
    """
    vault = _vault(run, domain)
    try:
        admit = vault.policy.check_backbone
        shipped = load_backbone(run / "backbone.safetensors", admit=admit)
        data = vault.data
        if user not in data.users:
            near = difflib.get_close_matches(user, data.users, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{domain} has no user {user!r}.{hint}")
        head = load_head(run / "heads" / domain)
        local = load_backbone(run / "heads" / domain / LOCAL_BACKBONE, admit=admit)
        features = vault.features(shipped.features, local.whitening)
        histories = whole_histories(data)
        read = read_by(shipped, vault.encoded(shipped.features.encoder))
        scorer = BackboneScorer(
            shipped.backbone,
            torch.from_numpy(features if read is None else read),
            read=shipped_reading(shipped, data.catalogue.texts),
        )
        signals = Signals.fit(
            histories,
            features=features,
            backbone=scorer,
            local_backbone=BackboneScorer(local.backbone, torch.from_numpy(features)),
        )
        row = data.users.index(user)
        scores = head.scorer(signals).score(histories, np.array([row]))[0]
        scores[histories.row(row)] = -np.inf
        best = np.argsort(-scores, kind="stable")[:count]
        return [
            Recommendation(item=data.catalogue.ids[i], title=data.catalogue.titles[i], score=float(scores[i]))
            for i in best
            if np.isfinite(scores[i])
        ]
    finally:
        vault.close()


def whole_histories(data: DomainData) -> Histories:
    """Everything that training and evaluation kept of each user, the test item included."""
    tested = data.test >= 0
    lengths = data.before_test.lengths() + tested
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.empty(int(offsets[-1]), np.int32)
    last = np.zeros(len(items), np.bool_)
    last[offsets[1:][tested] - 1] = True
    items[~last] = data.before_test.items
    items[last] = data.test[tested]
    return Histories(offsets=offsets, items=items)


def _vault(run: Path, domain: str) -> Vault:
    """The domain's vault, as the run's plan seats it."""
    plan = run / "plan.json"
    try:
        seats = json.loads(plan.read_text(encoding="utf-8"))["seats"]
    except FileNotFoundError:
        raise RunError(f"{run}: no backbone here. Finish a run first: `isthmus simulate`.") from None
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{plan}: not a run folder that can be read: {error}") from None
    names = []
    for seat in seats:
        vault = open_seat(seat)
        if vault.name == domain:
            return vault
        names.append(vault.name)
        vault.close()
    raise RunError(f"{run} has no domain {domain!r}; it has {', '.join(names)}")
