"""What a run leaves behind: `result.json` for machines, `report.html` and a terminal table for people.

    from isthmus.report import read_result, write_result   # light: pydantic only
    from isthmus.report.page import render_report          # brings jinja2 and matplotlib
    from isthmus.report.terminal import summary_table      # brings rich

The three outputs are views of one `Result`; none of them computes a metric.
"""

from isthmus.report.result import Result, canonical_bytes, read_result, write_result

__all__ = ["Result", "canonical_bytes", "read_result", "write_result"]
