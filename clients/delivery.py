"""What a run ended with, as the coordinator handed it over: kept beside the ledger until a head is fitted on it.

    keep_delivered(delivered_path(ledger, "books"), shipped, recipe, run="r1")
    delivered = load_delivered(delivered_path(ledger, "books"), policy)

The latest one only: a backbone is public within its federation, and a head that serves has its own copy.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from isthmus.backbone_file import ShippedBackbone, load_backbone, save_backbone
from isthmus.durable import write_durably
from isthmus.errors import RunError
from isthmus.privacy.policy import Policy
from isthmus.records import Recipe


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """One run's end.

    Attributes:
        run: Of the federation.
        shipped: Its backbone.
        recipe: That it was trained under.
    """

    run: str
    shipped: ShippedBackbone
    recipe: Recipe


def delivered_path(ledger: Path, name: str) -> Path:
    """Folder for a domain, given where its ledger lies."""
    return ledger.parent / "delivered" / name


def keep_delivered(folder: Path, shipped: ShippedBackbone, recipe: Recipe, *, run: str) -> None:
    """Write it, durably, in the place of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / "run.json"
    about.unlink(missing_ok=True)  # until the end, there is none
    save_backbone(folder / "backbone.safetensors", shipped)
    write_durably(about, json.dumps({"run": run, "recipe": recipe.model_dump(mode="json")}, indent=1).encode())


def load_delivered(folder: Path, policy: Policy) -> Delivered:
    """Read it.

    Args:
        folder: Of the domain.
        policy: Of the domain, as it is now: it may have changed since the run.

    Raises:
        RunError: If there is none that is whole.
        PolicyRefused: If it is a custom backbone that the policy does not allow; none of its code was run.
    """
    about = folder / "run.json"
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        recipe = Recipe.model_validate_json(json.dumps(said["recipe"]))
        run = str(said["run"])
    except FileNotFoundError:
        raise RunError(f"{folder}: no run has ended with this domain in it; take part in one first") from None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise RunError(f"{about}: cannot be read: {error}") from None
    policy.check_backbone(recipe.backbone.module)  # by which the domain trains alone
    shipped = load_backbone(folder / "backbone.safetensors", admit=policy.check_backbone)
    return Delivered(run=run, shipped=shipped, recipe=recipe)
