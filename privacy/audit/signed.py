"""An audit that its reader need not believe: signed, and computed again from what it says itself.

    keys = auditor_keys()                              # made on first use, sealed like a ledger's
    signed = sign(audit, keys)
    findings = check_signed(signed, trusted=frozenset())

The file holds every entry. `check_signed` composes them again, so that a signed audit is wrong only together with the
ledger it was made from, which `isthmus verify` checks in the same way.
"""

import math
import os
from pathlib import Path

from isthmus.privacy.audit.data_set import policy_record, runs_of, totals_from
from isthmus.privacy.audit.making import person_of
from isthmus.privacy.confirmation import confirm
from isthmus.privacy.examination import Finding
from isthmus.privacy.keys import (
    Keys,
    Secret,
    SignatureError,
    check_signature,
    fresh_keys,
    open_keys,
    save_keys,
    secret_from_environment,
)
from isthmus.report.audit import Audit, DataSet, Run, SignedAudit, message

CLOSE = 1e-6
"""Relative difference of an epsilon that two machines compute: their transforms round differently."""


def default_auditor_key() -> Path:
    """Where an auditor's key lies if nobody says otherwise: in the state folder of the user."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "isthmus" / "auditor.key"


def auditor_keys(path: Path | None = None, secret: Secret | None = None) -> Keys:
    """The auditor's keys; made, if absent.

    Args:
        path: Of the sealed key file.
        secret: Opens it; the environment's where absent.

    Raises:
        RunError: If the file is there and cannot be opened.
        ConfigError: If the secret is too short, or cannot be read.
    """
    path, secret = path or default_auditor_key(), secret or secret_from_environment()
    if not path.exists():
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_keys(partial, fresh_keys(), secret)
        try:
            os.link(partial, path)  # of two processes one wins
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return open_keys(path, secret)


def sign(audit: Audit, keys: Keys) -> SignedAudit:
    """The audit with its auditor's signature."""
    return SignedAudit(audit=audit, key=keys.public.hex(), signature=keys.sign(message(audit)).hex())


def check_signed(signed: SignedAudit, *, trusted: frozenset[bytes] = frozenset()) -> list[Finding]:
    """Check a signed audit by itself.

    Args:
        signed: As it was read.
        trusted: Public keys of auditors; none given: its own word is taken for who signed.

    Returns:
        What is wrong with the document. What the audit itself found wrong is in `signed.audit.findings`.

    Guarantees:
        - A change to anything in it is found, unless its signer made it.
        - A signer who is not trusted is found.
        - An epsilon, in all, of a run, left, or of a person, that does not follow from its entries is found; so is a
          limit, an approval or a number of further rounds that does not follow from its policies.
    """
    findings = []
    key = bytes.fromhex(signed.key)
    try:
        check_signature(key, message(signed.audit), bytes.fromhex(signed.signature))
    except SignatureError as error:
        findings.append(Finding(line=0, rule="signature", text=str(error)))
    if trusted and key not in trusted:
        shown = ", ".join(sorted(each.hex()[:16] for each in trusted))
        findings.append(Finding(line=0, rule="key", text=f"signed by {signed.key[:16]}; trusted is {shown}"))
    try:
        for data_set in signed.audit.data_sets:
            findings += _recomputed(data_set)
        person = person_of(signed.audit.data_sets)
    except ValueError as error:
        return [*findings, Finding(line=0, rule="event", text=str(error)[:300])]
    for said, found, what in (
        (signed.audit.person.bound.epsilon, person.bound.epsilon, "of one person, as declared"),
        (signed.audit.person.cautious.epsilon, person.cautious.epsilon, "of one person in all domains"),
    ):
        findings += _differs(said, found, f"epsilon {what}")
    return findings


def _recomputed(data_set: DataSet) -> list[Finding]:
    """What of a data set does not follow from its entries and the texts of its policies."""
    name = f"{data_set.name!r}"
    policies = tuple(policy_record(said.line, said.time, said.text) for said in data_set.policies)
    totals = totals_from(data_set.entries, policies, delta=data_set.delta)
    findings = _differs(data_set.epsilon, totals.epsilon, f"epsilon of {name}")
    findings += _differs(data_set.spent, totals.spent, f"epsilon of {name} at the limit's delta")
    findings += _differs(data_set.left, totals.left, f"what is left of {name}")
    again = runs_of(data_set.entries, data_set.delta)
    others = {
        "policies": policies == data_set.policies,
        "budget": (data_set.budget, data_set.budget_delta)
        == ((totals.budget.epsilon, totals.budget.delta) if totals.budget else (None, None)),
        "more_rounds": (data_set.like, data_set.more_rounds) == (totals.like, totals.more_rounds),
        "private": data_set.private == all(entry.private for entry in data_set.entries),
        "opinion": data_set.opinion.agrees == confirm(totals.spending, totals.delta).agrees,
        "runs": [_but_epsilon(run) for run in data_set.runs] == [_but_epsilon(run) for run in again],
    }
    findings += [
        Finding(line=0, rule="recomputed", text=f"`{what}` of {name} is not what follows from its entries and policies")
        for what, follows in others.items()
        if not follows
    ]
    for said, found in zip(data_set.runs, again, strict=False):
        findings += _differs(said.epsilon, found.epsilon, f"epsilon of run {found.run!r} of {name}")
    return findings


def _but_epsilon(run: Run) -> Run:
    return run.model_copy(update={"epsilon": None})


def _differs(said: float | None, found: float | None, what: str) -> list[Finding]:
    said, found = (math.inf if value is None else value for value in (said, found))
    if said == found or math.isclose(said, found, rel_tol=CLOSE, abs_tol=CLOSE):
        return []
    return [Finding(line=0, rule="recomputed", text=f"{what} is said to be {said:.6f}; the entries give {found:.6f}")]
