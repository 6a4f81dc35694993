"""The page of an audit: one file, no network, no script; page one for a lawyer, the rest for an expert.

    render_audit(audit, "run/audit.html")

The prose is in `audit.html` (a Jinja2 template), the looks in `report.css` and `audit.css`. Every string of an audit
is untrusted: it is escaped, and control characters are made visible.
"""

from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from isthmus.report import attack_words, audit_words, numbers
from isthmus.report.audit import Audit
from isthmus.report.audit_figures import roc_figure, timeline_figure
from isthmus.report.page import finalize
from isthmus.report.result import write_atomically

MOST_ENTRIES = 50
"""Of each data set on the page; the signed audit holds them all."""
MOST_FINDINGS = 200
"""On the page; the signed audit holds them all."""


def render_audit(audit: Audit, path: str | Path) -> None:
    """Write the page atomically; the same audit gives the same bytes.

    Raises:
        RunError: If the file cannot be written.
    """
    write_atomically(render_audit_page(audit).encode(), path)


def render_audit_page(audit: Audit) -> str:
    """The page as text."""
    folder = resources.files("isthmus.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {name: getattr(numbers, name) for name in ("epsilon", "delta", "factor", "plural")}
    template = environment.from_string((folder / "audit.html").read_text(encoding="utf-8"))
    style = "".join((folder / name).read_text(encoding="utf-8") for name in ("report.css", "audit.css"))
    return template.render(
        audit=audit,
        words=audit_words,
        attack_words=attack_words,
        style=Markup(style),  # noqa: S704 - our own files
        figures=[
            Markup(timeline_figure(data_set, f"timeline{number}"))  # noqa: S704 - escaped by the XML writer
            for number, data_set in enumerate(audit.data_sets)
        ],
        rocs=[
            Markup(roc_figure(attack, f"roc{number}")) if attack.name == "membership" else ""  # noqa: S704 - the same
            for number, attack in enumerate(audit.empirical)
        ],
        promise=audit_words.promise(audit),
        together=audit_words.together(audit),
        most_entries=MOST_ENTRIES,
        most_sentences=audit_words.MOST_SENTENCES,
        most_findings=MOST_FINDINGS,
    )
