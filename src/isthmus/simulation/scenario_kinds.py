"""The scenarios of an evaluation: as it is, a new domain, new users, new items.

    scenario = NewUsers(events=(1, 3, 5))
    files = scenario.prepare(study, file)           # what trains, by name
    jobs = scenario.jobs(study, trained)            # whom is measured on, knowing what

How they draw is in `isthmus.simulation.scenarios`; who helps whom is in `isthmus.simulation.transfer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isthmus.clients.data import DomainData, open_domain_data
from isthmus.config import DomainConfig
from isthmus.errors import ConfigError
from isthmus.privacy.plan import plan_for
from isthmus.privacy.policy import load_policy
from isthmus.simulation.derived import Withheld, derive
from isthmus.simulation.measuring import Task
from isthmus.simulation.scenarios import (
    hidden_items,
    ids,
    new_domain,
    new_item_task,
    new_user_task,
    usual_task,
    withheld_users,
)
from isthmus.simulation.study import Study


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One measurement.

    Attributes:
        domain: Name.
        label: The condition, in words.
        short: The same, in a file's name.
        at: Its place on the scenario's scale.
        known: What methods are fitted on.
        task: Whom they are measured on.
        head: Folder of the private head, fitted there if it is not yet.
    """

    domain: str
    label: str
    short: str
    at: float | None
    known: DomainData
    task: Task
    head: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A run that is finished.

    Attributes:
        name: Of what trained, as `Scenario.prepare` calls it.
        domains: That took part, as training knew them.
        seed: Of the run.
        folder: Of the run.
    """

    name: str
    domains: Mapping[str, DomainData]
    seed: int
    folder: Path


RUN = "run"
"""Name of what trains where there is one thing."""


class Scenario(Protocol):
    """What is hidden from training, and whom is measured on."""

    @property
    def words(self) -> str:
        """What it is, for people."""
        ...

    @property
    def scale(self) -> str | None:
        """What conditions are ordered by."""
        ...

    @property
    def pools(self) -> bool:
        """Whether a ceiling is of any use."""
        ...

    def about(self) -> Mapping[str, object]:
        """Everything that makes it this scenario, in plain values."""
        ...

    def prepare(self, study: Study, file: Path) -> Mapping[str, Path]:
        """The federation files that train, by name."""
        ...

    def jobs(self, study: Study, trained: Trained) -> Sequence[Job]:
        """Every measurement of one run."""
        ...


@dataclass(frozen=True)
class Usual:
    """Nothing is hidden: a run's own test users."""

    words = "the federation as it is"
    scale = None
    pools = True

    def about(self) -> Mapping[str, object]:
        """As `Scenario.about`."""
        return {"name": "usual"}

    def prepare(self, study: Study, file: Path) -> Mapping[str, Path]:  # noqa: ARG002 - nothing differs
        """The file itself."""
        return {RUN: file}

    def jobs(self, study: Study, trained: Trained) -> Sequence[Job]:
        """As `Scenario.jobs`."""
        most = study.federation.evaluation.max_users
        return [
            Job(
                domain=name,
                label="all test users",
                short="usual",
                at=None,
                known=data,
                task=usual_task(data, most=most),
                head=trained.folder / "heads" / name,
            )
            for name, data in trained.domains.items()
        ]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One domain takes no part, and has so many users of its own when it comes.

    Attributes:
        domain: Its name.
        users: How many; each is a condition.
    """

    domain: str
    users: tuple[int, ...]
    scale = "support users"
    pools = True

    @property
    def words(self) -> str:
        """As `Scenario.words`."""
        return f"{self.domain} is a new domain that took no part in training"

    def about(self) -> Mapping[str, object]:
        """As `Scenario.about`."""
        return {"name": "new-domain", "domain": self.domain, "users": self.users}

    def prepare(self, study: Study, file: Path) -> Mapping[str, Path]:  # noqa: ARG002
        """The federation without the domain; refused here if it has too few users, or its policy is against it."""
        held = self._config(study)
        # It trains nothing with noise, but a policy that wants no unprotected simulation means this one, too.
        load_policy(held).check_plan(plan_for(held.privacy), clip=held.privacy.clip, private=False)
        split = new_domain(open_domain_data(held), most=study.federation.evaluation.max_users)
        for users in self.users:
            split.support(users, seed=0)
        return {RUN: derive(study.federation, study.domains, to=study.out / "federation", without=self.domain)}

    def jobs(self, study: Study, trained: Trained) -> Sequence[Job]:
        """As `Scenario.jobs`."""
        split = new_domain(open_domain_data(self._config(study)), most=study.federation.evaluation.max_users)
        jobs = []
        for users in self.users:
            support = split.support(users, seed=trained.seed)
            jobs.append(
                Job(
                    domain=self.domain,
                    label=f"{users} support users",
                    short=f"{users}-users",
                    at=float(users),
                    known=support,
                    task=split.task(support),
                    head=trained.folder / f"support-{users}" / self.domain,
                )
            )
        return jobs

    def _config(self, study: Study) -> DomainConfig:
        for domain in study.domains:
            if domain.name == self.domain:
                return domain
        names = ", ".join(domain.name for domain in study.domains)
        raise ConfigError(f"--hold-out names {self.domain!r}; the federation's domains are {names}")


@dataclass(frozen=True, kw_only=True)
class NewUsers:
    """A fifth of the users is unknown to training, and comes with a few events.

    Attributes:
        events: How many; each is a condition, all on the same users.
    """

    events: tuple[int, ...]
    words = "users that training never met"
    scale = "events known of a user"
    pools = True

    def about(self) -> Mapping[str, object]:
        """As `Scenario.about`."""
        return {"name": "new-users", "events": self.events}

    def prepare(self, study: Study, file: Path) -> Mapping[str, Path]:  # noqa: ARG002
        """The federation without those users."""
        most = study.federation.evaluation.max_users
        hidden = {}
        for domain in study.domains:
            data = open_domain_data(domain)
            hidden[domain.name] = Withheld(users=ids(data, withheld_users(data, at_least=max(self.events), most=most)))
        return {RUN: derive(study.federation, study.domains, to=study.out / "federation", withheld=hidden)}

    def jobs(self, study: Study, trained: Trained) -> Sequence[Job]:
        """As `Scenario.jobs`."""
        most = study.federation.evaluation.max_users
        jobs = []
        for domain in study.domains:
            full, known = open_domain_data(domain), trained.domains[domain.name]
            new = withheld_users(full, at_least=max(self.events), most=most)
            jobs += [
                Job(
                    domain=domain.name,
                    label=f"{events} events" if events != 1 else "1 event",
                    short=f"{events}-events",
                    at=float(events),
                    known=known,
                    task=new_user_task(known, full, new, events=events),
                    head=trained.folder / "heads" / domain.name,
                )
                for events in self.events
            ]
        return jobs


@dataclass(frozen=True)
class NewItems:
    """A tenth of each catalogue is unknown to training: its texts are there, its events are not."""

    words = "items that training never met"
    scale = None
    pools = True

    def about(self) -> Mapping[str, object]:
        """As `Scenario.about`."""
        return {"name": "new-items"}

    def prepare(self, study: Study, file: Path) -> Mapping[str, Path]:  # noqa: ARG002
        """The federation without the events of those items."""
        hidden = {}
        for domain in study.domains:
            catalogue = open_domain_data(domain).catalogue
            hidden[domain.name] = Withheld(items=[catalogue.ids[at] for at in hidden_items(open_domain_data(domain))])
        return {RUN: derive(study.federation, study.domains, to=study.out / "federation", withheld=hidden)}

    def jobs(self, study: Study, trained: Trained) -> Sequence[Job]:
        """As `Scenario.jobs`."""
        most = study.federation.evaluation.max_users
        jobs = []
        for domain in study.domains:
            full, known = open_domain_data(domain), trained.domains[domain.name]
            jobs.append(
                Job(
                    domain=domain.name,
                    label="new items",
                    short="new-items",
                    at=None,
                    known=known,
                    task=new_item_task(known, full, hidden_items(full), most=most),
                    head=trained.folder / "heads" / domain.name,
                )
            )
        return jobs
