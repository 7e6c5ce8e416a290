"""A check as Markdown, for the summary page of a GitHub Actions job.

GitHub shows what a step appends to the file that GITHUB_STEP_SUMMARY names (GitHub's documentation,
"Workflow commands", "Adding a job summary").
"""

from __future__ import annotations

import html
import logging
import os
from pathlib import Path

from .check_report import CheckReport

VARIABLE = "GITHUB_STEP_SUMMARY"
MARKS = {
    "pass": "✅ pass",
    "fail": "❌ fail",
    "inconclusive": "❔ inconclusive",
    "error": "💥 error",
    "skipped": "⏭️ skipped",
}
log = logging.getLogger("attn_export")


def append_step_summary(report: CheckReport) -> None:
    """Append to the summary, if this runs in a step; one that cannot be written gets a warning."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(summary_markdown(report))
    except OSError as error:
        log.warning("the step summary %s was not written: %s", path, error.strerror)


def summary_markdown(report: CheckReport) -> str:
    """The verdict as a heading, then a table with a row for each gate and engine."""
    lines = [f"## attn-export check: {_cell(report.headline)}", ""]
    lines += ["| gate | engine | verdict | numbers |", "|---|---|---|---|"]
    for result in report.results:
        cells = (result.gate, result.engine, MARKS[result.verdict], result.text)
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    lines.append("")
    baseline = [f"baseline: {report.baseline}"] if report.baseline else []
    lines += [f"- {_cell(text)}" for text in (f"bundle: {report.bundle}", *baseline, *report.notes)]
    return "\n".join(lines) + "\n\n"


def _cell(text: str) -> str:
    """Text that ends no cell, begins no markup, and stays on one line."""
    escaped = html.escape(text, quote=False).replace("|", "\\|")
    for mark in "`*_[":
        escaped = escaped.replace(mark, f"\\{mark}")
    return "<br>".join(escaped.splitlines())
