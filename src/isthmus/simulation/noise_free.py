"""The reference run without noise: what the same federation would reach if it protected nobody.

    shipped = run_noise_free(file, seed=0, rounds=10, out=folder, listener=print)

**Nothing in it is private, and it cannot be accounted for**: no epsilon bounds it. So it never goes through the gate.
There is no release, no charge and no ledger; the run's folder holds a checkpoint, a backbone and heads, and no books
that could be read as "nothing was spent". It exists in a simulation only, on one machine that holds all data anyway:
the vault that a business unit runs is another class, and no request, federation file or run configuration leads here.

Clipping, batches, rounding to int8, rounds, aggregation and the choice of the shipped round are those of every run.

A business unit's policy can forbid it: `seeded = false`, or any `least_noise` above 0 (ADR 20).
"""

import functools
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from isthmus.backbone_file import ShippedBackbone, save_backbone
from isthmus.clients.admission import require_admitted
from isthmus.clients.vault import Vault
from isthmus.config import DomainConfig, FederationConfig, load_domain, load_federation, seeded_run
from isthmus.durable import write_durably
from isthmus.errors import PolicyRefused, Refused
from isthmus.features import default_cache_dir
from isthmus.grid import InProcessGrid
from isthmus.privacy.gate import Release
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.noise import Floats, Randomness, SeededRandomness
from isthmus.privacy.plan import plan_for
from isthmus.privacy.policy import load_policy
from isthmus.records import Kind, RoundReply, RoundRequest
from isthmus.server.checkpoint import RunState
from isthmus.server.heads import HeadLog
from isthmus.server.loop import Listener, run_rounds
from isthmus.server.shipping import shipped_backbone

MARK = "NOT-PRIVATE.json"
"""In the folder of such a run, beside the backbone that must go nowhere."""


class NoNoise:
    """Seeded batches and rounding, and no noise at all."""

    private = False

    def __init__(self, seeded: SeededRandomness) -> None:
        self._seeded = seeded

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:  # noqa: ARG002
        """A copy of the values, whatever noise was asked for."""
        return values.copy()

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """As `Randomness.bernoulli`."""
        return self._seeded.bernoulli(count, probability)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """As `Randomness.uniform`."""
        return self._seeded.uniform(count)


class NoiseFreeDomain(Vault):
    """A domain of a simulation that answers without noise, and therefore without a release.

    Guarantees:
        - Its policy is asked first, with a noise multiplier of 0.
        - It makes no `Release`, and charges no ledger.
    """

    def release(self, kind: Kind, request: RoundRequest) -> Release:
        """Never: what has no noise cannot be paid for.

        Raises:
            Refused: Always.
        """
        raise Refused(f"{self.name}: {kind} of round {request.round} has no noise, so nothing is released")

    def answer(self, kind: Kind, request: RoundRequest) -> RoundReply:
        """The exact figures, in the form of a reply.

        Raises:
            Refused: If the policy is against it, or the request cannot be answered.
        """
        require_allowed(self.config)
        require_admitted(request.recipe, self.policy, self.config.compute)
        shared = self._shared(request)
        layers = shared if kind is Kind.UPDATE else ()
        self.policy.check_request(kind=kind.value, layers=layers, coordinator=request.coordinator)
        payload = self._mechanism(kind, request, shared)()
        return RoundReply(
            domain=self.name,
            run=request.run,
            round=request.round,
            arrays=payload.arrays,
            values=payload.values,
            head=self.head(),
        )

    def receive(self, request: RoundRequest) -> RoundReply:  # noqa: ARG002 - nothing is kept of it
        """What a run ends with lies in the run's folder already."""
        return RoundReply(domain=self.name, run="", round=0, head=self.head())

    def _randomness(self, kind: Kind, request: RoundRequest) -> Randomness:
        return NoNoise(SeededRandomness(self._seed or 0, self.name, request.run, request.round, kind.value))


def require_allowed(domain: DomainConfig) -> None:
    """Refuse a run without noise where the domain's policy is against it.

    Raises:
        PolicyRefused: Naming domain, rule and limit.
    """
    silent = replace(plan_for(domain.privacy), noise_multiplier=0.0)
    try:
        load_policy(domain).check_plan(silent, clip=domain.privacy.clip, private=False)
    except PolicyRefused as refusal:
        raise PolicyRefused(refusal.rule, f"{refusal.asked} ({domain.name}, without noise)", refusal.limit) from None


def run_noise_free(file: Path, *, seed: int, rounds: int, out: Path, listener: Listener) -> ShippedBackbone:
    """Run a federation without noise to its end; stopped and called again, it goes on.

    Args:
        file: Federation file.
        seed: Of first parameters, batches and rounding.
        rounds: Last round.
        out: Folder of the run.
        listener: Told about progress.

    Returns:
        The backbone of the best evaluated round.

    Raises:
        Refused: If a policy is against it; nothing was opened then.
    """
    federation = load_federation(file).model_copy(update={"seed": seed})
    domains = [load_domain(folder) for folder in federation.domain_folders()]
    for domain in domains:
        require_allowed(domain)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(federation.compute.threads)
    said = {"private": False, "noise": "none", "epsilon": None, "seed": seed}
    write_durably(out / MARK, json.dumps(said, indent=1).encode())
    # The round loop notes where ledgers stand. These are empty, in a folder that goes away, and stay empty.
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        state = _rounds(federation, domains, rounds=rounds, out=out, books=Path(folder), listener=listener)
    shipped = shipped_backbone(state, federation)
    save_backbone(out / "backbone.safetensors", shipped)
    return shipped


def _rounds(  # noqa: PLR0913 - keyword-only
    federation: FederationConfig,
    domains: Sequence[DomainConfig],
    *,
    rounds: int,
    out: Path,
    books: Path,
    listener: Listener,
) -> RunState:
    """The round loop of every run, over domains that add no noise."""
    vaults = [
        NoiseFreeDomain(
            domain,
            ledger=Ledger(books / f"{domain.name}.db", name=domain.name),
            seed=federation.seed,
            cache=default_cache_dir(),
            threads=federation.compute.threads,
        )
        for domain in domains
    ]
    heads = HeadLog(books / "heads.db")
    try:
        with InProcessGrid(_client_app(vaults), nodes=len(vaults), run_config={}) as grid:
            return run_rounds(
                grid,
                federation,
                run=f"{seeded_run(federation)}-noise-free",
                rounds=rounds,
                folder=out,
                heads=heads,
                listener=listener,
            )
    finally:
        heads.close()
        for vault in vaults:
            vault.close()


def _client_app(vaults: Sequence[NoiseFreeDomain]) -> ClientApp:
    """A ClientApp of this run alone, in this process."""
    app = ClientApp()
    app.query(Kind.CATALOGUE.value)(functools.partial(_answer, vaults, Kind.CATALOGUE))
    app.train()(functools.partial(_answer, vaults, Kind.UPDATE))
    app.evaluate()(functools.partial(_answer, vaults, Kind.METRIC))
    app.query("backbone")(functools.partial(_receive, vaults))
    return app


def _answer(vaults: Sequence[NoiseFreeDomain], kind: Kind, message: Message, context: Context) -> Message:
    vault = vaults[int(context.node_config["partition-id"])]
    reply = vault.answer(kind, RoundRequest.from_records(message.content))
    return Message(reply.to_records(), reply_to=message)


def _receive(vaults: Sequence[NoiseFreeDomain], message: Message, context: Context) -> Message:
    vault = vaults[int(context.node_config["partition-id"])]
    return Message(vault.receive(RoundRequest.from_records(message.content)).to_records(), reply_to=message)
