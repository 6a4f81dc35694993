"""The auditor: from ledgers to a signed account of what was spent, on whom, over all runs.

    audit = make_audit(read_sources([Path("run")]))
    signed = sign(audit, auditor_keys())

A separate judge: it reads ledgers and nothing else, takes nobody's word for a number, and needs neither torch
nor flwr. Its views are `isthmus.report.audit_page`, `audit_pdf` and `audit_terminal`.
"""

from isthmus.privacy.audit.making import make_audit
from isthmus.privacy.audit.signed import auditor_keys, check_signed, sign
from isthmus.privacy.audit.sources import Sources, ledger_files, read_sources

__all__ = ["Sources", "auditor_keys", "check_signed", "ledger_files", "make_audit", "read_sources", "sign"]
