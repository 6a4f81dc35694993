"""Check a simulation before any table is opened.

    simulation = prepare("demo/federation.toml", out="isthmus-run", backend="in-process")

Configuration, run folder and the room in every ledger: what cannot run is refused here, when nothing has been
read, trained or charged yet.
"""

import json
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from isthmus.clients.backbone_check import require_protocol
from isthmus.config import DomainConfig, FederationConfig, load_domain, load_federation, seeded_run
from isthmus.custom_backbone import require_installed
from isthmus.durable import write_durably
from isthmus.errors import BudgetExhausted, ConfigError, PolicyRefused, Refused, RunError
from isthmus.features import encoder_dim
from isthmus.features.tuned import text_shape
from isthmus.privacy.entries import LedgerEntry
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.plan import plan_for
from isthmus.privacy.policy import load_policy
from isthmus.records import Kind
from isthmus.simulation.open_files import allow_open_files
from isthmus.simulation.parallel import ray_note

Backend = Literal["in-process", "ray"]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A run that was checked and may start.

    Attributes:
        file: Federation file.
        federation: What it says, with the run's seed.
        domains: In the file's order.
        out: Run folder.
        run: Id of the run.
        rounds: Last round.
        backend: What carries the messages.
        notes: What its user should know before it starts, a line each.
    """

    file: Path
    federation: FederationConfig
    domains: tuple[DomainConfig, ...]
    out: Path
    run: str
    rounds: int
    backend: Backend
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> Path:
        """Which vault sits at which partition."""
        return self.out / "plan.json"

    @property
    def private(self) -> bool:
        """Whether the noise cannot be repeated."""
        return self.federation.seed is None

    def ledger_path(self, domain: DomainConfig) -> Path:
        """Where a domain's spending is written down in this run."""
        return domain.ledger_path if self.private else self.out / "ledgers" / f"{domain.name}.db"

    @property
    def heads_path(self) -> Path:
        """Where the coordinator notes how far every ledger was."""
        return self.file.parent / "heads.db" if self.private else self.out / "heads.db"


def prepare(
    file: str | Path, *, out: str | Path, rounds: int | None = None, seed: int | None = None, backend: Backend
) -> Simulation:
    """Check a run before any table is opened: configuration, run folder, and room in every ledger.

    Args:
        file: Federation file.
        out: Run folder; made if absent, continued if it holds the same run.
        rounds: Instead of the file's.
        seed: Instead of the file's.
        backend: `in-process`, or `ray` for many cores.

    Raises:
        ConfigError: If a file is wrong, a custom backbone is not installed here or breaks its protocol, or a text
            encoder that is to be trained is not here or is no BERT.
        RunError: If the folder holds another run, or this machine allows too few open files for so many domains.
        BudgetExhausted: If the whole run does not fit into what is left of a domain's budget.
        Refused: If a domain's policy is against the run. Each refusal is in the ledger of the domain that it is about.
    """
    federation = load_federation(file)
    require_installed(federation.backbone)
    text_shape(federation.features, federation.training)  # or its encoder cannot be trained
    if seed is not None:
        federation = federation.model_copy(update={"seed": seed})
    if rounds is not None and rounds < 1:
        raise ConfigError(f"a run needs at least 1 round, got {rounds}")
    domains = tuple(load_domain(folder) for folder in federation.domain_folders())
    names = [domain.name for domain in domains]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{file}: two folders hold a domain named {', '.join(twice)}; names must differ")
    unknown = sorted(set(federation.strategy.weights) - set(names))
    if unknown:
        raise ConfigError(f"{file}: `strategy.weights` names {', '.join(unknown)}; domains are {', '.join(names)}")
    if listed := federation.training.align_domains:
        missing = sorted(set(names) - set(listed))
        if missing:
            raise ConfigError(f"{file}: `training.align_domains` lacks {', '.join(missing)}; name every domain in it")
    allow_open_files(len(domains))
    folder = Path(out).resolve()
    simulation = Simulation(
        file=Path(file).resolve(),
        federation=federation,
        domains=domains,
        out=folder,
        run=_run_id(folder, federation, domains),
        rounds=rounds or federation.strategy.rounds,
        backend=backend,
    )
    notes = _require_room(simulation)
    if federation.backbone.module is not None:
        features = federation.features.dim or encoder_dim(federation.features.encoder)
        for domain in domains:
            require_protocol(federation.backbone.shape, features, domain.compute)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    backend_note = ray_note(federation, domains, rounds=simulation.rounds, backend=backend, cores=cores)
    return replace(simulation, notes=(*notes, backend_note) if backend_note else tuple(notes))


def _run_id(out: Path, federation: FederationConfig, domains: tuple[DomainConfig, ...]) -> str:
    """The id of the run in this folder: an earlier process's if it is the same run, else a new one."""
    about = {
        "federation": federation.digest(),
        "domains": {domain.name: domain.model_dump(mode="json") for domain in domains},
        "seed": federation.seed,
    }
    file = out / "run.json"
    if file.exists():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            same, run = known["about"] == json.loads(json.dumps(about)), str(known["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file}: cannot be read: {error}. Use another --out folder.") from None
        if not same:
            raise RunError(
                f"{out} holds a run of another configuration or seed. Continue it with what it was started with, "
                f"or use another --out folder."
            )
        return run
    run = uuid.uuid4().hex if federation.seed is None else seeded_run(federation)
    write_durably(file, json.dumps({"run": run, "about": about}, indent=1).encode())
    return run


def _require_room(simulation: Simulation) -> list[str]:
    """Refuse a run that would overspend anywhere, before any table is opened; what else the ledgers have to say."""
    every = simulation.federation.strategy.evaluate_every
    problems, exhausted, notes = [], False, []
    for domain in simulation.domains:
        policy, path = domain.privacy, simulation.ledger_path(domain)
        plan, rules = plan_for(policy), load_policy(domain)
        ledger = Ledger(path, name=domain.name)
        try:
            rules.check_plan(plan, clip=policy.clip, private=simulation.private)
            rules.check_backbone(simulation.federation.backbone.module)
            asked = [
                *((Kind.UPDATE, n, plan.update_event(policy.steps_per_round)) for n in range(1, simulation.rounds + 1)),
                *(
                    (Kind.METRIC, n, plan.metric_event)
                    for n in range(every, simulation.rounds + 1, every or 1)
                    if every
                ),
            ]
            notes += [f"{domain.name}: {_unsent(entry, simulation.run)}" for entry in ledger.unsent()]
            missing = [event for kind, n, event in asked if not ledger.is_charged(simulation.run, n, kind.value)]
            ledger.require_room(
                missing,
                rules.limits,
                run=simulation.run,
                what=f"{simulation.rounds} rounds (the policy was planned for {policy.rounds})",
            )
        except (BudgetExhausted, PolicyRefused) as error:
            ledger.refuse(error, run=simulation.run, round_=0, kind="run")
            problems.append(f"{domain.name}: {error}")
            exhausted = exhausted or isinstance(error, BudgetExhausted)
        finally:
            ledger.close()
    if problems:
        raise (BudgetExhausted if exhausted else Refused)("\n".join(problems))
    return notes


def _unsent(entry: LedgerEntry, run: str) -> str:
    """What an earlier process left behind, in words."""
    what = f"the {entry.kind} of round {entry.round} of run {entry.run} was charged on {entry.time} and never sent"
    if entry.run == run:
        return f"{what}; it is worked on again under the charge that was paid"
    return f"{what}; it stays charged"
