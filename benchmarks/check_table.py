"""A check on the terminal: the verdict first, then a line for each gate and engine."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .check_report import CheckReport, GateResult

STYLES = {
    "pass": ("PASS", "bold green"),
    "fail": ("FAIL", "bold red"),
    "inconclusive": ("????", "bold yellow"),
    "error": ("ERROR", "bold red"),
    "skipped": ("SKIP", "dim"),
}


def render_check(report: CheckReport) -> RenderableType:
    """The headline, the gates' lines, and the notes."""
    style = "bold green" if report.problem is None else "bold red"
    lines = [Text(report.headline, style=style)]
    lines += [_line(result) for result in report.results]
    if report.baseline:
        lines.append(Text(f"baseline: {report.baseline}", style="dim"))
    lines += [Text(note, style="bold yellow") for note in report.notes]
    return Group(*lines)


def _line(result: GateResult) -> Text:
    word, style = STYLES[result.verdict]
    return Text.assemble((f"[{word}]", style), f" {result.name}: {result.text}")
