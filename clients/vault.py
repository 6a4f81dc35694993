"""The vault: a domain's data, trainer, policy and ledger behind three questions.

    vault = Vault(load_domain("books"), ledger=Ledger("books/ledger.db"))
    release = vault.release(Kind.UPDATE, request)     # or Refused, with the reason

Limits come from the domain's own `domain.toml` and nowhere else: how many steps, how much noise and
which norm are not in a request. The room in the ledger is checked before any table is opened, the
charge is on disk before anything is computed, and the answer is what the gate hands out.
"""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone import Backbone, learned_axes, trained_parameters
from isthmus.backbone_file import ShippedBackbone
from isthmus.clients.admission import require_admitted
from isthmus.clients.alignment import own_label
from isthmus.clients.answers import Answering
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import DomainData, open_domain_data
from isthmus.clients.delivery import delivered_path, keep_delivered
from isthmus.clients.evaluation import noisy_gain, validation_ndcg
from isthmus.clients.local_optimizers import require_whole_pairs
from isthmus.clients.received import Received
from isthmus.clients.requested import requested_backbone
from isthmus.clients.text_tower import history_features, tower_for
from isthmus.clients.trainer import TrainingSet, make_training_set, train_round
from isthmus.config import DomainConfig, FeatureConfig, load_domain
from isthmus.custom_backbone import AnyBackbone
from isthmus.encoding import Arrays, changed, encode
from isthmus.errors import ConfigError, Refused
from isthmus.features import Whitening, default_cache_dir, encode_texts, one_copy, own_axes, text_moments
from isthmus.packing import arrays_digest
from isthmus.privacy.accounting import NOTHING
from isthmus.privacy.entries import Charge
from isthmus.privacy.gate import Gate, Payload, Release
from isthmus.privacy.heads import read_receipt
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.noise import Randomness, SecureRandomness, SeededRandomness
from isthmus.privacy.plan import DpSgdPlan, plan_for
from isthmus.privacy.policy import load_policy
from isthmus.privacy.requests import require_asker
from isthmus.privacy.starts import note_start
from isthmus.records import DELIVERY, Kind, Recipe, RoundRequest

MOST_WHITENINGS, MOST_PARAMETERS = 64, 4
"""Kept of those that were sent along; a run whose own were forgotten sends them again."""


class Vault(Answering):
    """One domain.

    Args:
        config: Its own configuration.
        ledger: Of its data set.
        seed: Makes noise and batches repeatable; such a vault is **not private** and says so in every entry.
        cache: Folder of encoded texts.
        threads: Torch threads for encoding.
    """

    def __init__(
        self,
        config: DomainConfig,
        *,
        ledger: Ledger,
        seed: int | None = None,
        cache: Path | None = None,
        threads: int = 1,
    ) -> None:
        self.config = config
        self.ledger = ledger
        self.policy = load_policy(config)
        self.budget = self.policy.limits.lifetime
        self._seed = seed
        self._cache = cache or default_cache_dir()
        self._threads = threads
        self._gate = Gate(ledger=ledger, limits=self.policy.limits)
        self._whitenings = Received(self._cache / "whitening", most=MOST_WHITENINGS)
        # Not in the cache, which others share: how many of them run at once must not decide what is forgotten here.
        self._parameters = Received(ledger.path.parent / "parameters" / config.name, most=MOST_PARAMETERS)
        self._busy = threading.Lock()
        self._texts: dict[str, NDArray[np.float32]] = {}
        self._training_sets: dict[str, TrainingSet] = {}

    @property
    def name(self) -> str:
        """Of the domain."""
        return self.config.name

    @property
    def private(self) -> bool:
        """Whether the noise cannot be repeated."""
        return self._seed is None

    @functools.cached_property
    def plan(self) -> DpSgdPlan:
        """How much noise the policy needs over its whole horizon."""
        return plan_for(self.config.privacy)

    @functools.cached_property
    def data(self) -> DomainData:
        """The domain's tables; opened at first use, which is after the first check of the ledger."""
        return open_domain_data(self.config)

    def epsilon(self) -> float:
        """Spent so far, over all runs, at the budget's delta."""
        return self.ledger.epsilon(self.budget.delta)

    def release(self, kind: Kind, request: RoundRequest) -> Release:
        """Answer one request.

        Raises:
            BudgetExhausted: If the ledger has no room; no table was opened.
            Refused: If the request breaks a rule of the domain; the ledger says so from then on.
        """
        with self._busy:
            digest, asker = request.digest(kind), ""
            try:
                asker = require_asker(digest, coordinator=request.coordinator, signature=request.signature)
                return self._release(kind, request, digest=digest, asker=asker)
            except Refused as refusal:
                self.ledger.refuse(refusal, run=request.run, round_=request.round, kind=kind.value, coordinator=asker)
                raise

    def _release(self, kind: Kind, request: RoundRequest, *, digest: bytes, asker: str) -> Release:
        # 1. The business unit's rules; nothing of the data is needed to refuse.
        self.policy.check_plan(self.plan, clip=self.config.privacy.clip, private=self.private)
        require_admitted(request.recipe, self.policy, self.config.compute)
        shared = self._shared(request)
        layers = trained_parameters(shared, request.recipe.training.train) if kind is Kind.UPDATE else ()
        self.policy.check_request(kind=kind.value, layers=layers, coordinator=asker)
        clip = self.config.privacy.clip if kind is Kind.UPDATE else None
        event = {
            Kind.CATALOGUE: lambda: NOTHING,
            Kind.UPDATE: lambda: self.plan.update_event(self.config.privacy.steps_per_round),
            Kind.METRIC: lambda: self.plan.metric_event,
        }[kind]()
        compute = self._mechanism(kind, request, shared)
        # 2. Room in the ledger, before any table is opened.
        if not self.ledger.is_charged(request.run, request.round, kind.value):
            what = f"the {kind} of round {request.round}"
            self.ledger.require_room([event], self.policy.limits, run=request.run, what=what)
        # 3. The gate: charge, compute, keep, hand out.
        self.ledger.follow(self.policy.text())
        if kind is Kind.UPDATE and request.recipe.start is not None:
            note_start(self.ledger.chain, run=request.run, start=request.recipe.start)
        charge = Charge(
            dataset=self.data.fingerprint,
            run=request.run,
            round=request.round,
            kind=kind.value,
            request=digest,
            event=event,
            private=self.private,
            coordinator=asker,
            clip=clip,
            layers=layers,
        )
        return self._gate.release(charge, compute)

    def warm_up(self) -> None:
        """Load the tables and calibrate the plan, so that the first question finds them there.

        Raises:
            ConfigError: If the policy's budget is too small for any noise.
            DataError: If a table cannot be read as declared.
        """
        self.policy.check_plan(self.plan, clip=self.config.privacy.clip, private=self.private)
        _ = self.data

    def head(self) -> str:
        """Where the ledger stands, signed, as one line of text."""
        return self.ledger.head().text()

    def keep_receipt(self, text: str) -> None:
        """Keep the coordinator's receipt for an earlier head.

        Raises:
            Refused: If it is none, or its head is not this ledger's; the ledger says so from then on.
        """
        run, round_, coordinator = "", 0, ""
        try:
            try:
                receipt = read_receipt(text)
            except ValueError as error:
                raise Refused(f"the receipt cannot be kept: {error}", rule="receipt") from None
            run, round_, coordinator = receipt.run, receipt.round, receipt.key
            self.ledger.keep_receipt(receipt)
        except Refused as refusal:
            self.ledger.refuse(refusal, run=run, round_=round_, kind="receipt", coordinator=coordinator)
            raise

    def keep_backbone(self, request: RoundRequest) -> None:
        """Keep the backbone that a run ended with, for the private head (`isthmus fit`); nothing is computed with it.

        Raises:
            Refused: If it is not signed by who may ask, is no backbone of its recipe, or this domain gave no update.
        """
        try:
            asker = require_asker(
                request.digest(DELIVERY), coordinator=request.coordinator, signature=request.signature
            )
            self.policy.check_coordinator(asker)
            if not self.ledger.took_part(request.run, Kind.UPDATE.value):  # so that nobody can fill a disk for nothing
                raise Refused(f"this domain gave no update to run {request.run!r:.80}, so it takes no backbone of it")
            whitening = self._whitening(request)
            require_admitted(request.recipe, self.policy, self.config.compute, whitening)
            backbone = requested_backbone(request.recipe, self._shared(request), whitening, domains=0)
        except Refused as refusal:
            self.ledger.refuse(refusal, run=request.run, round_=request.round, kind=DELIVERY)
            raise
        features = request.recipe.features
        shipped = ShippedBackbone(
            backbone=backbone.eval(),
            whitening=whitening,
            features=features,
            round=request.round,
            start=request.recipe.start,
        )
        keep_delivered(delivered_path(self.ledger.path, self.name), shipped, request.recipe, run=request.run)

    def encoded(self, encoder: str, progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """(items, dimensions) of the catalogue's text, unwhitened; from the cache after the first time."""
        if encoder not in self._texts:
            encoded = encode_texts(
                self.data.catalogue.texts,
                encoder,
                cache_dir=self._cache,
                progress=progress,
                threads=self._threads,
            )
            self._texts[encoder] = one_copy(encoded)
        return self._texts[encoder]

    def features(self, config: FeatureConfig, whitening: Whitening) -> NDArray[np.float32]:
        """(items, features) whitened text features of the catalogue."""
        return whitening.apply(self.encoded(config.encoder))

    def training_set(self, recipe: Recipe, whitening: Whitening) -> TrainingSet:
        """What is trained on under a recipe; the same from round to round, so it is kept."""
        key = recipe.model_dump_json()
        if key not in self._training_sets:
            features = one_copy(self.features(recipe.features, whitening))
            tower = tower_for(recipe, self.data.catalogue.texts, whitening)
            label = own_label(recipe.training, self.name)
            made = make_training_set(self.data.train, features, recipe, label=label, tower=tower)
            self._training_sets = {key: made}
        return self._training_sets[key]

    def close(self) -> None:
        """Let go of the ledger."""
        self.ledger.close()

    def _mechanism(self, kind: Kind, request: RoundRequest, shared: Arrays) -> Callable[[], Payload]:
        """What computes the answer; everything that can be refused without data is refused here."""
        if kind is Kind.CATALOGUE:
            if not self.config.items.public:
                raise Refused("the catalogue is not public (`items.public` in domain.toml), so nothing is said of it")
            return functools.partial(self._catalogue, request)
        if kind is Kind.METRIC and not self.config.privacy.evaluations:
            raise Refused("this domain releases no evaluations (`privacy.evaluations` in domain.toml is 0)")
        if kind is Kind.UPDATE:
            require_whole_pairs(request.recipe.training, self.config.privacy)
            if request.reference:
                raise Refused("a reference belongs to an evaluation; an update has none")
        own_label(request.recipe.training, self.name)  # or it cannot take part
        whitening, recipe = self._whitening(request), request.recipe
        require_admitted(recipe, self.policy, self.config.compute, whitening)
        backbone = requested_backbone(recipe, shared, whitening, domains=recipe.training.classes)
        reference = None
        if request.reference:
            others = shared | request.reference
            reference = requested_backbone(recipe, others, whitening, domains=recipe.training.classes)
        self._parameters.keep(request.parameters_digest().hex(), shared)
        randomness = self._randomness(kind, request)
        if kind is Kind.UPDATE:
            return functools.partial(self._train, request, backbone, whitening, randomness)
        return functools.partial(self._evaluate, request, backbone, reference, whitening, randomness)

    def _catalogue(self, request: RoundRequest) -> Payload:
        moments = text_moments(self.encoded(request.recipe.features.encoder))
        arrays = {"mean": moments.mean.astype(np.float32), "second": moments.second.astype(np.float32)}
        return Payload(arrays=arrays, values={"count": float(moments.count)})

    def _train(
        self, request: RoundRequest, backbone: AnyBackbone, whitening: Whitening, randomness: Randomness
    ) -> Payload:
        update = train_round(
            backbone,
            self.training_set(request.recipe, whitening),
            training=request.recipe.training,
            policy=self.config.privacy,
            plan=self.plan,
            proximal_mu=request.proximal_mu,
            randomness=randomness,
            compute=self.config.compute,
        )
        # After the last noise: rounding looks at what may leave anyway.
        encoded = encode(update, request.recipe.training.update_format, randomness.uniform)
        return Payload(arrays=encoded.arrays, values=encoded.scales)

    def _evaluate(
        self,
        request: RoundRequest,
        backbone: AnyBackbone,
        reference: AnyBackbone | None,
        whitening: Whitening,
        randomness: Randomness,
    ) -> Payload:
        encoded = self.encoded(request.recipe.features.encoder)
        features = own = torch.from_numpy(whitening.apply(encoded))
        if reference is None:
            reference = Backbone(features.shape[1], request.recipe.backbone)  # untrained, it is the text prior
            if request.recipe.start is not None and learned_axes(backbone):
                # Axes of others' texts would make the prior worse than what this domain has by itself.
                own = torch.from_numpy(own_axes(whitening, encoded).apply(encoded))
        texts, encoder = self.data.catalogue.texts, request.recipe.features.encoder
        read = functools.partial(history_features, texts=texts, encoder=encoder, whitening=whitening, cache_dir=None)
        gains = validation_ndcg(BackboneScorer(backbone, features, read=read(backbone)), self.data) - validation_ndcg(
            BackboneScorer(reference, own, read=read(reference)), self.data
        )
        return noisy_gain(gains, policy=self.config.privacy, randomness=randomness)

    def _shared(self, request: RoundRequest) -> Arrays:
        """The shared parameters that the request names: sent along, or kept ones and what changed."""
        before = self._parameters.get(request.base) if request.base else {}
        if before is None:
            raise Refused(f"parameters {request.base[:12]} are not known here; send them along")
        after = changed(before, request.sent)
        if request.base and arrays_digest(after).hex() != request.parameters:
            raise Refused(f"what was sent does not make parameters {request.parameters[:12]}; send them along")
        return after

    def _whitening(self, request: RoundRequest) -> Whitening:
        """The whitening that the recipe names: sent along, or kept from an earlier request."""
        digest = request.recipe.whitening
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise Refused(f"the recipe must name its whitening by 64 hex digits, got {digest[:70]!r}")
        arrays = request.whitening or self._whitenings.get(digest)
        if arrays is None:
            raise Refused(f"whitening {digest[:12]} is not known here; send it along")
        if request.whitening:
            if arrays_digest(arrays).hex() != digest or set(arrays) != {"mean", "matrix"}:
                raise Refused("the whitening that came along is not the one that the recipe names")
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise Refused("the whitening that came along is not finite")
            self._whitenings.keep(digest, arrays)
        mean, matrix = arrays["mean"], arrays["matrix"]
        if matrix.ndim != 2 or mean.shape != matrix.shape[:1] or not matrix.size:
            raise Refused(f"a whitening is (dim,) and (dim, kept), got {mean.shape} and {matrix.shape}")
        return Whitening(mean=mean, matrix=matrix)

    def _randomness(self, kind: Kind, request: RoundRequest) -> Randomness:
        if self._seed is None:
            return SecureRandomness()
        return SeededRandomness(self._seed, self.name, request.run, request.round, kind.value)


def open_vault(
    config: DomainConfig,
    *,
    ledger: Path | None = None,
    seed: int | None = None,
    cache: Path | None = None,
    threads: int = 1,
) -> Vault:
    """A domain's vault, its ledger opened.

    Args:
        config: Of the domain.
        ledger: Where its books are; beside its data where absent.
        seed: As for `Vault`.
        cache: As for `Vault`.
        threads: Torch threads.

    Raises:
        ConfigError: If its policy is wrong.
        RunError: If its ledger cannot be used.
    """
    torch.set_num_threads(threads)
    books = Ledger(ledger or config.ledger_path, name=config.name)
    try:
        return Vault(config, ledger=books, seed=seed, cache=cache, threads=threads)
    except ConfigError:
        books.close()
        raise


def open_seat(seat: dict[str, Any]) -> Vault:
    """The vault at one seat of a simulation's plan: a folder, a ledger, and how to run."""
    ledger, cache = Path(seat["ledger"]), Path(seat["cache"])
    config = load_domain(seat["folder"])
    return open_vault(config, ledger=ledger, seed=seat["seed"], cache=cache, threads=seat["threads"])
