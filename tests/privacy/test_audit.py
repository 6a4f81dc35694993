"""The audit: its numbers by another's accounting, everything that must be found, and what it says of people."""

import dataclasses
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from dp_accounting import DpEvent
from dp_accounting.pld import PLDAccountant
from tests.privacy.audited import DELTA, METRIC, UPDATE, Federation, everyday, policy

from isthmus.errors import ConfigError, RunError
from isthmus.privacy.accounting import gaussian, poisson_gaussian
from isthmus.privacy.audit import make_audit, read_sources
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.custody import key_path, rotate_key
from isthmus.privacy.entries import Charge, Limits
from isthmus.privacy.heads import make_receipt
from isthmus.privacy.keys import fresh_keys, secret_from_environment
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.links import link_digest, link_message
from isthmus.privacy.policy import Allowed, People
from isthmus.report.audit import Audit, Empirical
from isthmus.server.heads import HeadLog

WIDE = Limits(lifetime=PrivacyBudget(90.0, DELTA))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """An everyday federation; not to be changed."""
    return everyday(tmp_path_factory.mktemp("everyday"))


@pytest.fixture
def copy(books: Federation, tmp_path: Path) -> Path:
    """A copy of its folder that a test may change."""
    return Path(shutil.copytree(books.folder, tmp_path / "copy"))


def audited(folder: Path, *, trusted: frozenset[bytes] = frozenset(), delta: float | None = None) -> Audit:
    """The audit of a folder."""
    return make_audit(read_sources([folder]), trusted=trusted, delta=delta)


def rules(audit: Audit) -> set[tuple[str, str]]:
    """(data set, rule) of each finding."""
    return {(finding.data_set, finding.rule) for finding in audit.findings}


def by_another(events: list[DpEvent]) -> float:
    """Epsilon by dp_accounting's own accountant, which shares only the formulas with the product."""
    accountant = PLDAccountant()
    for event, times in Counter(events).items():
        accountant.compose(event, times)
    return float(accountant.get_epsilon(DELTA))


# What it says of books that are in order.


def test_every_epsilon_is_the_one_that_dp_accounting_computes(books: Federation) -> None:
    """Of all runs, of each run, what is left, and of one person in both domains."""
    audit = audited(books.folder)
    by_name = {data_set.name: data_set for data_set in audit.data_sets}
    first, second = [UPDATE] * 4 + [METRIC] * 2, [UPDATE] * 3 + [METRIC]
    assert by_name["books"].epsilon == pytest.approx(by_another([*first, *second]), abs=2e-3)
    assert by_name["music"].epsilon == pytest.approx(by_another([*first, UPDATE]), abs=2e-3)
    assert [run.epsilon for run in by_name["books"].runs] == pytest.approx(
        [by_another(first), by_another(second)], abs=2e-3
    )
    assert by_name["books"].left == pytest.approx(8.0 - by_another([*first, *second]), abs=2e-3)
    both = by_another([*first, *second, *first, UPDATE])
    assert audit.person.bound.epsilon == pytest.approx(both, abs=2e-3)
    assert audit.person.cautious.epsilon == pytest.approx(both, abs=2e-3)
    more = by_name["music"].more_rounds
    assert more is not None
    steps = 10 * (4 + 1 + more)  # of all updates, if so many more rounds are run
    assert by_another([poisson_gaussian(0.05, 1.9, steps), METRIC, METRIC]) <= 6.0 + 2e-3
    assert by_another([poisson_gaussian(0.05, 1.9, steps + 10), METRIC, METRIC]) > 6.0 - 2e-3


def test_the_timeline_grows_to_what_was_spent(books: Federation) -> None:
    """A point for each entry of a short ledger, never falling, ending at the number itself."""
    for data_set in audited(books.folder).data_sets:
        points = [point.epsilon for point in data_set.timeline]
        assert len(points) == len(data_set.entries)
        assert points == sorted(points)
        assert points[-1] == data_set.epsilon


def test_it_says_what_was_released_to_whom_when_and_under_which_rules(books: Federation) -> None:
    """Outcomes, coordinators, refusals, policies with who approved them, programs, keys, and who has seen it."""
    audit = audited(books.folder)
    assert audit.findings == ()
    shop, music = audit.data_sets
    assert {entry.coordinator for entry in shop.entries} == {books.log.keys.public.hex()}
    assert [entry.outcome for entry in music.entries].count("not sent") == 1
    assert "1 entry was charged and never sent" in " ".join(music.remarks)
    assert [(refusal.rule, refusal.asked, refusal.limit) for refusal in shop.refusals] == [
        ("largest_clip", "clip 3", "at most 1")
    ]
    assert [(one.approved_by, one.approved_on, one.epsilon) for one in shop.policies] == [
        ("A. Officer", "2026-01-31", 8.0)
    ]
    assert [one.entries for one in shop.programs] == [len(shop.entries)]
    assert shop.keys[-1].key == json.loads(key_path(books.path("books")).read_text())["public"]
    assert shop.witnesses.receipts == shop.witnesses.heads == 9
    assert shop.witnesses.seen == shop.witnesses.lines
    assert shop.opinion.agrees
    assert shop.opinion.renyi > shop.epsilon
    assert all(data_set.private for data_set in audit.data_sets)


def test_only_seeded_entries_are_flagged_and_are_no_finding(tmp_path: Path) -> None:
    """A simulation claims no privacy; the audit says so."""
    federation = Federation(tmp_path)
    federation.run("seeded", private=False)
    federation.close()
    audit = audited(tmp_path)
    assert audit.findings == ()
    assert not any(data_set.private for data_set in audit.data_sets)
    assert all("Not private" in data_set.remarks[0] for data_set in audit.data_sets)


# People.


def test_people_are_added_up_as_the_policies_declare(tmp_path: Path) -> None:
    """Disjoint by declaration: parallel; not declared: everybody may be in all, and it says that nobody declared it."""
    apart = {name: policy(people=People(overlap=False)) for name in ("books", "music")}
    silent = {name: policy() for name in ("books", "music")}
    found = []
    for name, policies in (("apart", apart), ("silent", silent)):
        federation = Federation(tmp_path / name, policies=policies)
        federation.run("run", rounds=2)
        federation.close()
        found.append(audited(tmp_path / name).person)
    alone, both = by_another([UPDATE, UPDATE, METRIC]), by_another([UPDATE, UPDATE, METRIC] * 2)
    assert [person.declared for person in found] == [True, False]
    assert found[0].bound.epsilon == pytest.approx(alone, abs=2e-3)
    assert found[1].bound.epsilon == pytest.approx(both, abs=2e-3)
    assert [person.cautious.epsilon for person in found] == pytest.approx([both, both], abs=2e-3)
    assert "parallel composition" in found[0].bound.rule
    assert "nothing declared" in found[1].bound.rule.lower()


# Tampering.


def forge(path: Path, sql: str, *values: object) -> None:
    """Change a ledger behind the product's back."""
    db = sqlite3.connect(path)
    db.execute(sql, values)
    db.commit()
    db.close()


def cut_tail(path: Path) -> None:
    """Delete the last three lines."""
    forge(path, "DELETE FROM receipts WHERE seq > (SELECT max(seq) FROM chain) - 3")
    forge(path, "DELETE FROM releases WHERE seq > (SELECT max(seq) FROM chain) - 3")
    forge(path, "DELETE FROM chain WHERE seq > (SELECT max(seq) FROM chain) - 3")


def edit(path: Path) -> None:
    """Make one release cheaper."""
    forge(path, "UPDATE chain SET body = replace(body, '1.9', '9.9') WHERE seq = 6")


def delete(path: Path) -> None:
    """Delete a line in the middle."""
    forge(path, "DELETE FROM chain WHERE seq = 6")


def change_kept_release(path: Path) -> None:
    """Change what was kept of the last release."""
    forge(path, "UPDATE releases SET payload = x'00' WHERE seq = (SELECT max(seq) FROM releases)")


def misplace_kept_release(path: Path) -> None:
    """Say that a kept release was of another round."""
    forge(path, "UPDATE releases SET round = round + 1 WHERE seq = (SELECT max(seq) FROM releases)")


def sign_anew(path: Path) -> None:
    """Sign the whole chain with a key of the forger's own, the opening line included."""
    keys, before = fresh_keys(), bytes(32)
    db = sqlite3.connect(path)
    for seq, body in db.execute("SELECT seq, body FROM chain ORDER BY seq").fetchall():
        fields = json.loads(body)
        if fields["type"] == "opened":
            fields["key"] = keys.public.hex()
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        digest = link_digest(before, text)
        row = (text, before, digest, keys.public, keys.sign(link_message(digest)), seq)
        db.execute("UPDATE chain SET body=?, previous=?, digest=?, key=?, signature=? WHERE seq=?", row)
        before = digest
    db.execute("DELETE FROM receipts")
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (edit, "digest"),
        (delete, "link"),
        (cut_tail, "truncated"),
        (sign_anew, "foreign-head"),
        (change_kept_release, "payload"),
        (misplace_kept_release, "payload"),
    ],
)
def test_tampering_is_a_finding_of_that_ledger_alone(copy: Path, damage: Callable[[Path], None], rule: str) -> None:
    """Whatever was done to one ledger; the other one stays clean."""
    damage(copy / "ledgers" / "books.db")
    found = rules(audited(copy))
    assert ("books", rule) in found
    assert {name for name, _ in found} == {"books"}


def test_a_chain_signed_by_another_key_is_found_without_any_log(copy: Path, books: Federation) -> None:
    """The public key that a reader knows is enough; with the right one nothing is found."""
    path, known = copy / "ledgers" / "books.db", bytes.fromhex(audited(books.folder).data_sets[0].keys[0].key)
    assert not make_audit(read_sources([path]), trusted=frozenset({known})).findings
    sign_anew(path)
    assert not make_audit(read_sources([path])).findings
    assert rules(make_audit(read_sources([path]), trusted=frozenset({known}))) == {("books", "key")}


def test_a_rotated_ledger_is_known_by_its_old_and_its_new_key(tmp_path: Path) -> None:
    """The new key agreed to follow the old one; a third one is not trusted."""
    federation = Federation(tmp_path)
    federation.run("run")
    ledger = federation.ledgers["books"]
    old = ledger.chain.keys.public
    rotate_key(ledger.chain, secret_from_environment(), reason="yearly")
    new, path = ledger.chain.keys.public, federation.path("books")
    federation.close()
    for key, wrong in ((old, False), (new, False), (fresh_keys().public, True)):
        audit = make_audit(read_sources([path]), trusted=frozenset({key}))
        assert rules(audit) == ({("books", "key")} if wrong else set())
    assert [key.reason for key in audit.data_sets[0].keys] == ["", "yearly"]


def test_a_log_and_receipts_under_another_coordinators_key_are_found(books: Federation, copy: Path) -> None:
    """With the right key nothing is; with another, the log and each ledger's receipts; a domain's key is none of it."""
    right, wrong = books.log.keys.public, fresh_keys().public
    domain = books.ledgers["books"].chain.keys.public
    sources = read_sources([copy])
    assert not make_audit(sources, coordinators=frozenset({right})).findings
    assert not make_audit(sources, coordinators=frozenset({right, wrong})).findings
    for key in (wrong, domain):
        found = make_audit(sources, coordinators=frozenset({key})).findings
        assert {(one.data_set, one.rule) for one in found} == {
            ("books", "key"),
            ("music", "key"),
            ("coordinator's log heads.db", "key"),
        }
        assert "9 receipts signed under key" in found[0].text
    alone = make_audit(read_sources([copy / "ledgers" / "books.db"]), coordinators=frozenset({wrong}))
    assert rules(alone) == {("books", "key")}, "receipts are held against it without a log, too"


def test_a_receipt_under_a_rotated_key_of_a_trusted_coordinator_is_trusted(tmp_path: Path) -> None:
    """The log shows that the new key follows the one that is known, or the other way round."""
    federation = Federation(tmp_path)
    federation.run("first")
    old = federation.log.keys.public
    rotate_key(federation.log._chain, secret_from_environment(), reason="yearly")
    federation.log.close()
    federation.log = HeadLog(federation.folder / "heads.db")
    federation.run("second")
    new = federation.log.keys.public
    federation.close()
    assert old != new
    sources = read_sources([tmp_path])
    for key in (old, new):
        assert not make_audit(sources, coordinators=frozenset({key})).findings


def test_a_second_ledger_of_the_same_domain_is_found(copy: Path, tmp_path: Path) -> None:
    """By the coordinator's log where the first one is hidden, and by its name where both are there."""
    (tmp_path / "new").mkdir()
    fresh = Ledger(tmp_path / "new" / "ledger.db", name="books")
    fresh.follow(policy().text())
    fresh.close()
    hidden = make_audit(read_sources([fresh.path], heads=[copy / "heads.db"]))
    assert ("books", "second-ledger") in rules(hidden)
    both = make_audit(read_sources([fresh.path, copy / "ledgers" / "books.db"]))
    assert ("books", "second-ledger") in rules(both)


def test_of_two_copies_the_longer_is_audited_and_a_fork_is_found(books: Federation, copy: Path) -> None:
    """An older copy is a remark; one that went another way is a finding."""
    path, original = copy / "ledgers" / "music.db", books.path("music")
    cut_tail(path)
    audit = make_audit(read_sources([path, original]))
    assert [data_set.path for data_set in audit.data_sets] == [str(original)]
    assert "another copy of this ledger" in audit.data_sets[0].remarks[-1]
    assert audit.findings == ()
    sign_anew(path)
    assert ("music", "fork") in rules(make_audit(read_sources([path, original])))


def test_a_coordinator_that_denies_its_receipt_is_found(tmp_path: Path) -> None:
    """A receipt under its key for a head that its log does not hold."""
    federation = Federation(tmp_path)
    federation.run("run")
    head = federation.ledgers["books"].head()
    federation.ledgers["books"].keep_receipt(
        make_receipt(head, run="run", round=9, time="2026-01-01T00:00:00.000+00:00", keys=federation.log.keys)
    )
    federation.release("books", "run", 9, "update")
    federation.ledgers["books"].keep_receipt(
        make_receipt(
            federation.ledgers["books"].head(),
            run="run",
            round=9,
            time="2026-01-01T00:00:00.000+00:00",
            keys=federation.log.keys,
        )
    )
    federation.close()
    audit = audited(tmp_path)
    assert {finding.rule for finding in audit.findings} == {"denied"}
    assert "heads.db" in audit.findings[0].data_set


# Rules of the policy, for which nobody's word is taken.


def charge(number: int, **changes: object) -> Charge:
    """A charge; what differs from a private update is said."""
    common = Charge(
        dataset=b"data",
        run="run",
        round=number,
        kind="update",
        request=b"r",
        event=UPDATE,
        private=True,
        coordinator="ab" * 32,
        clip=1.0,
        layers=("adaptor.weight", "norm.bias"),
    )
    return dataclasses.replace(common, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "changes", "rule"),
    [
        ({"epsilon": 0.3}, {}, "overspent"),
        ({"run_epsilon": 0.3}, {}, "overspent"),
        ({"allow": Allowed(least_noise=2.0)}, {}, "least_noise"),
        ({"allow": Allowed(least_metric_noise=30.0)}, {"kind": "metric", "event": METRIC}, "least_metric_noise"),
        ({"allow": Allowed(kinds=("metric",))}, {}, "kinds"),
        ({"allow": Allowed(largest_clip=0.9)}, {}, "largest_clip"),
        ({"allow": Allowed(largest_clip=0.9)}, {"clip": None}, "largest_clip"),
        ({"allow": Allowed(largest_clip=0.9)}, {"kind": "metric", "event": METRIC}, "largest_clip"),
        ({"allow": Allowed(layers=("norm.*",))}, {}, "layers"),
        ({"allow": Allowed(layers=())}, {"layers": ()}, "layers"),
        ({"allow": Allowed(coordinators=("cd" * 32,))}, {}, "coordinators"),
        ({"allow": Allowed(programs=("cd" * 32,))}, {}, "programs"),
        ({"allow": Allowed(seeded=False)}, {"private": False}, "seeded"),
    ],
)
def test_an_entry_against_the_policy_in_force_is_found(
    tmp_path: Path, limits: dict[str, object], changes: dict[str, object], rule: str
) -> None:
    """Although the ledger let it in; the same entry under a policy that allows it is none."""
    for number, (rules_, expected) in enumerate(((limits, {("data", rule)}), ({}, set()))):
        ledger = Ledger(tmp_path / str(number) / "ledger.db", name="data")
        ledger.follow(policy(**{"run_epsilon": None, **rules_}).text())  # type: ignore[arg-type]
        ledger.charge(charge(0, **changes), WIDE)
        ledger.close()
        assert rules(make_audit(read_sources([ledger.path]))) == expected


def test_clip_and_layers_at_the_limit_are_no_finding(tmp_path: Path) -> None:
    """The largest clip itself, names that a pattern matches, and an evaluation that has neither."""
    ledger = Ledger(tmp_path / "ledger.db", name="data")
    ledger.follow(policy(run_epsilon=None, allow=Allowed(largest_clip=1.0, layers=("adaptor.*", "norm.bias"))).text())
    ledger.charge(charge(0), WIDE)
    ledger.charge(charge(0, kind="metric", event=METRIC, clip=None, layers=()), WIDE)
    ledger.close()
    audit = make_audit(read_sources([ledger.path]))
    assert audit.findings == ()
    (names,) = audit.data_sets[0].layers
    update, metric = audit.data_sets[0].entries
    assert names.names == ("adaptor.weight", "norm.bias")
    assert (update.clip, update.layers, metric.clip, metric.layers) == (1.0, names.digest, None, "")


@pytest.mark.parametrize("rule", ["largest_clip", "layers"])
def test_the_check_of_what_an_update_holds_has_teeth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """Mutant: a program that does not ask its policy, and an auditor who does not look; the real one finds it."""
    ledger = Ledger(tmp_path / "ledger.db", name="data")
    ledger.follow(policy(run_epsilon=None, allow=Allowed(largest_clip=0.5, layers=("norm.*",))).text())
    ledger.charge(charge(0), WIDE)
    ledger.close()
    assert ("data", rule) in rules(make_audit(read_sources([ledger.path])))
    monkeypatch.setattr("isthmus.privacy.audit.rules._beyond", lambda *_: iter(()))
    assert rules(make_audit(read_sources([ledger.path]))) == set()


def test_entries_under_no_policy_and_mixed_noise_are_found(tmp_path: Path) -> None:
    """Charged before any policy was in force; and a seeded entry beside private ones."""
    ledger = Ledger(tmp_path / "ledger.db", name="data")
    ledger.charge(charge(0), WIDE)
    ledger.charge(charge(1, private=False), WIDE)
    ledger.close()
    audit = make_audit(read_sources([ledger.path]), delta=DELTA)
    assert rules(audit) == {("data", "no-policy"), ("data", "not-private")}
    assert audit.data_sets[0].budget is None
    assert "2 entries" in audit.findings[0].text


def test_raising_a_limit_later_does_not_excuse_what_came_before(tmp_path: Path) -> None:
    """Each entry is held against the policy of its own time, and only against that."""
    ledger = Ledger(tmp_path / "ledger.db", name="data")
    for number, limit in enumerate((0.3, 8.0)):
        ledger.follow(policy(epsilon=limit, run_epsilon=None).text())
        ledger.charge(charge(number), WIDE)
    ledger.close()
    (finding,) = make_audit(read_sources([ledger.path])).findings
    assert finding.rule == "overspent"
    assert "allows 0.3" in finding.text


def test_too_little_noise_is_no_promise_and_a_finding(tmp_path: Path) -> None:
    """Epsilon is null, not a number, and no accountant confirms it."""
    ledger = Ledger(tmp_path / "ledger.db", name="data")
    ledger.follow(policy().text())
    ledger.charge(charge(0), WIDE)
    ledger.close()
    noisy = make_audit(read_sources([ledger.path]))
    assert noisy.data_sets[0].epsilon is not None
    again = Ledger(tmp_path / "loud" / "ledger.db", name="data")
    again.follow(policy(run_epsilon=None).text())
    try:
        again.charge(charge(0, event=gaussian(0.2)), Limits(lifetime=PrivacyBudget(1e6, DELTA)))
    finally:
        again.close()
    audit = make_audit(read_sources([again.path]))
    assert ("data", "overspent") in rules(audit)


def test_a_policy_that_cannot_be_read_is_found_and_the_rest_is_audited(tmp_path: Path) -> None:
    """Epsilon is stated at the usual delta, which is said; an impossible delta is refused."""
    ledger = Ledger(tmp_path / "ledger.db", name="data")
    ledger.follow('{"of":"another version"}')
    ledger.charge(charge(0), WIDE)
    ledger.close()
    audit = make_audit(read_sources([ledger.path]))
    assert rules(audit) == {("data", "policy")}
    assert audit.data_sets[0].delta == DELTA
    assert "No policy says at which delta" in audit.data_sets[0].remarks[0]
    with pytest.raises(ConfigError, match="must be in"):
        make_audit(read_sources([ledger.path]), delta=2.0)


# Attacks, and what is named.


def test_a_failed_attack_is_a_finding_and_a_passed_one_is_none(books: Federation) -> None:
    """Results of attacks stand beside the claims."""
    evidence = {
        "name": "canaries",
        "claimed_epsilon": 1.0,
        "delta": DELTA,
        "lower_bound": 0.4,
        "confidence": 0.95,
        "bounds": [
            {
                "form": "f",
                "assumption": "a",
                "epsilon": 0.4,
                "confidence": 0.975,
                "canaries": 9,
                "guesses": 4,
                "correct": 3,
            }
        ],
        "checks": [{"name": "bound", "passed": True, "detail": "0.4 of 1.0"}],
        "area": 0.5,
        "roc": [],
        "settings": {"steps": 2},
        "sees": "noise",
        "blind_to": "time",
        "cpu_seconds": 1.0,
    }
    sources = read_sources([books.folder])
    assert make_audit(sources, empirical=[Empirical.of(evidence, attacked="books")]).findings == ()
    evidence["checks"] = [{"name": "bound", "passed": False, "detail": "1.4 of 1.0"}]
    (finding,) = make_audit(sources, empirical=[Empirical.of(evidence, attacked="books")]).findings
    assert (finding.rule, finding.text) == ("empirical", "canaries: bound: 1.4 of 1.0")


def test_what_is_no_ledger_is_refused(tmp_path: Path, books: Federation) -> None:
    """An absent path, an empty folder, a log alone, a ledger where a log is asked for."""
    for paths, heads, words in (
        ([tmp_path / "nowhere"], [], "no such file or folder"),
        ([tmp_path], [], "no ledger here"),
        ([books.path("books")], [books.path("music")], "log of heads is asked for"),
    ):
        with pytest.raises(RunError, match=words):
            read_sources(paths, heads=heads)
    with pytest.raises(RunError, match="only coordinators' logs"):
        make_audit(read_sources([books.log_path]))
