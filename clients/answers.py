"""From a question to the reply that leaves: what every vault does, in whatever process it lives.

    reply = vault.answer(Kind.UPDATE, request)       # a release or a refusal; never an exception

Only a `Release` and the words of a `Refused` get into a reply. What goes wrong inside stays inside: any other
error may quote data, so its words go to the domain's own log.
"""

import abc
import logging

from isthmus.errors import BudgetExhausted, Refused
from isthmus.privacy.gate import Release
from isthmus.records import Kind, RoundReply, RoundRequest

_LOG = logging.getLogger(__name__)

INTERNAL = "an error in the domain; its own log says which (it may quote data, so it is not sent)"


class Answering(abc.ABC):
    """A domain that answers; what it answers with is what its gate released."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Of the domain."""

    @abc.abstractmethod
    def release(self, kind: Kind, request: RoundRequest) -> Release:
        """Pay for an answer and compute it, or raise `Refused`."""

    @abc.abstractmethod
    def epsilon(self) -> float:
        """Spent so far, over all runs."""

    @abc.abstractmethod
    def head(self) -> str:
        """Where the ledger stands, signed, as one line of text."""

    @abc.abstractmethod
    def keep_receipt(self, text: str) -> None:
        """Keep the coordinator's receipt for an earlier head, or raise `Refused` if it is none."""

    @abc.abstractmethod
    def keep_backbone(self, request: RoundRequest) -> None:
        """Keep the backbone that a run ended with, or raise `Refused` if it is none."""

    def answer(self, kind: Kind, request: RoundRequest) -> RoundReply:
        """The reply to a question.

        Guarantees:
            - Arrays and values of a reply are those of a `Release`, and of nothing else.
            - No word of an error that is not a `Refused` is in a reply.
        """
        try:
            return self._released_or_refused(kind, request)
        except Exception:  # noqa: BLE001 - whatever it is, its words stay in the domain
            _LOG.exception("domain %s could not answer round %d of run %r", self.name, request.round, request.run)
            return RoundReply(domain=self.name, run=request.run, round=request.round, refusal=INTERNAL)

    def _released_or_refused(self, kind: Kind, request: RoundRequest) -> RoundReply:
        try:
            if request.receipt:
                self.keep_receipt(request.receipt)
            release = self.release(kind, request)
        except Refused as refusal:
            return RoundReply(
                domain=self.name,
                run=request.run,
                round=request.round,
                refusal=str(refusal),
                exhausted=isinstance(refusal, BudgetExhausted),
                head=self.head(),
            )
        return RoundReply(
            domain=self.name,
            run=request.run,
            round=request.round,
            arrays=release.payload.arrays,
            values=release.payload.values,
            epsilon=self.epsilon(),
            head=self.head(),
        )

    def receive(self, request: RoundRequest) -> RoundReply:
        """Keep what a run ended with, and the receipt for its last reply; says nothing but where the ledger stands."""
        try:
            return RoundReply(
                domain=self.name, run="", round=0, refusal=self._kept_or_refused(request), head=self.head()
            )
        except Exception:  # noqa: BLE001 - as above
            _LOG.exception("domain %s could not keep what run %r ended with", self.name, request.run)
            return RoundReply(domain=self.name, run="", round=0, refusal=INTERNAL)

    def _kept_or_refused(self, request: RoundRequest) -> str:
        """Why it was not kept; empty if it was."""
        try:
            if request.receipt:
                self.keep_receipt(request.receipt)
            self.keep_backbone(request)
        except Refused as refusal:
            return str(refusal)
        return ""
