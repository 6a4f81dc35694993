"""Attack our own training code, and print what the attack proves beside what is claimed.

    evidence = audit_canaries(AUDIT_POLICY, federation.backbone, features=64)   # the optimizer: clip, noise, sampling
    evidence = audit_planted(domain, federation)                                # the whole vault: what updates tell
    evidence = audit_membership(domain, federation)                             # what the final backbone remembers
    with target_of([Path("run")]) as target: attacks(target)                    # all three, as `isthmus audit` does
    evidence.lower_bound, evidence.claimed_epsilon, evidence.findings

All users are made up, over public item texts: nothing private is read, nothing is charged to a domain's ledger, and
the outcome may be shown to anybody. An audit takes seconds to a minute on one core.
"""

from isthmus.clients.audit.canaries import AUDIT_POLICY, audit_canaries
from isthmus.clients.audit.evidence import Check, Evidence
from isthmus.clients.audit.membership import audit_membership
from isthmus.clients.audit.planted import audit_planted
from isthmus.clients.audit.targets import Attack, Target, attacks, target_of

__all__ = [
    "AUDIT_POLICY",
    "Attack",
    "Check",
    "Evidence",
    "Target",
    "attacks",
    "audit_canaries",
    "audit_membership",
    "audit_planted",
    "target_of",
]
