"""The command that puts all results of a bundle, or of a matrix, on one page."""

from __future__ import annotations

from pathlib import Path

import click

from attn_export.options import HELP, bundle_argument, json_option
from attn_export.output import print_json, print_lines


@click.command(context_settings=HELP)
@bundle_argument
@json_option
def report(directory: Path, as_json: bool) -> None:
    """Write report.html and report.md from the results that stand in DIR.

    DIR is a bundle, or the folder that 'bench --matrix' wrote. Nothing is measured; what is absent
    is named on the page with the command that makes it.

    \b
    Example:
        attn-export report mqa-bundle
    """
    from attn_export.benchmarks.report_pages import write_reports

    written = write_reports(directory)
    if as_json:
        print_json({"written": [str(path) for path in written]})
    else:
        print_lines(map(str, written))
