"""A small federation's books, written through the product: two domains, three runs, a coordinator who keeps heads.

    books = Federation(tmp_path)
    books.run("first", rounds=2)
    books.ledger("books").path, books.log.path

Everything is real (chains, keys, receipts, policies) except that nobody trains: a release is a few bytes.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.errors import PolicyRefused
from isthmus.privacy.accounting import NOTHING, gaussian, poisson_gaussian
from isthmus.privacy.entries import Charge
from isthmus.privacy.heads import read_receipt
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.policy import Allowed, Lifetime, People, Policy
from isthmus.records import RoundReply
from isthmus.server.heads import HeadLog

UPDATE = poisson_gaussian(0.05, 1.9, 10)
METRIC = gaussian(20.0)
DELTA = 1e-6


def policy(
    *, epsilon: float = 8.0, run_epsilon: float | None = 4.0, people: People | None = None, allow: Allowed | None = None
) -> Policy:
    """A signed policy of a business unit."""
    return Policy(
        approved_by="A. Officer",
        approved_on=dt.date(2026, 1, 31),
        budget=Lifetime(epsilon=epsilon, delta=DELTA, run_epsilon=run_epsilon),
        allow=allow or Allowed(),
        people=people,
    )


@dataclass
class Federation:
    """Folders `ledgers/` and `heads.db`, as a run's folder has them."""

    folder: Path
    policies: Mapping[str, Policy] = field(
        default_factory=lambda: {
            "books": policy(people=People(overlap=True, k_max=2)),
            "music": policy(epsilon=6.0, people=People(overlap=True)),
        }
    )

    def __post_init__(self) -> None:
        """Make the books."""
        self.ledgers = {name: Ledger(self.folder / "ledgers" / f"{name}.db", name=name) for name in self.policies}
        self.log = HeadLog(self.folder / "heads.db")

    def run(
        self,
        run: str,
        *,
        rounds: int = 2,
        private: bool = True,
        names: Sequence[str] | None = None,
        receipts: bool = True,
    ) -> None:
        """One run: a catalogue, updates, an evaluation in every second round; heads and receipts go to and fro."""
        for name in names or list(self.ledgers):
            ledger, rules = self.ledgers[name], self.policies[name]
            for number in range(rounds + 1):
                kinds = ["catalogue"] if not number else ["update", "metric"] if number % 2 == 0 else ["update"]
                for kind in kinds:
                    ledger.follow(rules.text())
                    self.release(name, run, number, kind, private=private)
                if receipts:
                    self.exchange(name, run, number)

    def release(self, name: str, run: str, number: int, kind: str, *, private: bool = True, send: bool = True) -> None:
        """Charge, and keep what is released."""
        event = {"catalogue": NOTHING, "update": UPDATE, "metric": METRIC}[kind]
        charge = Charge(
            dataset=name.encode(),
            run=run,
            round=number,
            kind=kind,
            request=f"{run}/{number}/{kind}".encode(),
            event=event,
            private=private,
            coordinator=self.log.keys.public.hex(),
            clip=1.0 if kind == "update" else None,
            layers=("adaptor.weight", "head.weight") if kind == "update" else (),
        )
        entry = self.ledgers[name].charge(charge, self.policies[name].limits)
        if send:
            self.ledgers[name].keep_release(entry, b"payload of " + charge.request)

    def exchange(self, name: str, run: str, number: int) -> None:
        """A reply carries the head, the coordinator notes it, and its receipt comes back."""
        reply = RoundReply(domain=name, run=run, round=number, head=self.ledgers[name].head().text())
        self.ledgers[name].keep_receipt(read_receipt(self.log.note(reply, domain=name)))

    def refuse(self, name: str, run: str, number: int) -> None:
        """A rule of the policy says no."""
        refusal = PolicyRefused("largest_clip", "clip 3", "at most 1")
        self.ledgers[name].refuse(
            refusal, run=run, round_=number, kind="update", coordinator=self.log.keys.public.hex()
        )

    def path(self, name: str) -> Path:
        """Of a ledger."""
        return self.ledgers[name].path

    @property
    def log_path(self) -> Path:
        """Of the coordinator's log."""
        return self.folder / "heads.db"

    def close(self) -> None:
        """Let go of all files."""
        for ledger in self.ledgers.values():
            ledger.close()
        self.log.close()


def everyday(folder: Path) -> Federation:
    """What most audits look like: two runs, a refusal, an entry that was never sent, nothing wrong."""
    books = Federation(folder)
    books.run("4f1c09a2d8e94c55b1f0a7c3e2d46a10", rounds=4)
    books.refuse("books", "4f1c09a2d8e94c55b1f0a7c3e2d46a10", 5)
    books.run("a81d3be7c9f0427d9a3e5f6b7c8d9e01", rounds=3, names=["books"])
    books.release("music", "a81d3be7c9f0427d9a3e5f6b7c8d9e01", 1, "update", send=False)
    books.exchange("music", "a81d3be7c9f0427d9a3e5f6b7c8d9e01", 1)
    books.close()
    return books
