"""``attn-export check``: one command for continuous integration."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from attn_export.benchmarks.plan_units import parse_share
from attn_export.console import Steps
from attn_export.errors import HostError, UsageError
from attn_export.options import (
    HELP,
    PATH,
    PositiveNumber,
    bundle_argument,
    data_options,
    host_code_option,
    json_option,
)
from attn_export.output import print_report


def _share(context: click.Context, option: click.Parameter, text: str) -> float:
    return parse_share(text, "largest regression", least=0.0, most=0.99)


@click.command(context_settings=HELP)
@bundle_argument
@click.option("--baseline", type=PATH, metavar="DIR|BENCH.JSON", help="A bundle, or a bench.json.")
@click.option(
    "--max-regression",
    callback=_share,
    default="5%",
    show_default=True,
    metavar="SHARE",
    help="What may be lost of the baseline's samples/s.",
)
@click.option(
    "--min-speedup",
    type=PositiveNumber(),
    help="Times eager PyTorch FP32, padded to the maximum.",
)
@click.option("--engine", help="One engine instead of all.")
@data_options
@host_code_option
@click.option("--junit", type=PATH, metavar="FILE", help="Write JUnit XML too.")
@json_option
@click.pass_context
def check(  # noqa: PLR0917
    context: click.Context,
    directory: Path,
    baseline: Path | None,
    max_regression: float,
    min_speedup: float | None,
    engine: str | None,
    data: Path | None,
    tokenizer: Path | None,
    allow_host_code: bool,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Gate the bundle DIR in CI: parity, a least speed-up, no regression from a baseline.

    Exits 0 when every gate passed, 1 when one said no, 5 when noise hides the answer.

    \b
    Examples:
        attn-export check mqa-bundle --min-speedup 1.2
        attn-export check mqa-bundle --baseline main-bundle --max-regression 5%
        attn-export check mqa-bundle --baseline bench.json --junit check.xml
    """
    given = context.get_parameter_source("max_regression") != ParameterSource.DEFAULT
    if given and baseline is None:
        raise click.UsageError("--max-regression needs --baseline")
    if junit is not None and junit.is_dir():
        raise UsageError(f"--junit {junit} is a directory; give a file")
    from attn_export.benchmarks.check_table import render_check
    from attn_export.benchmarks.junit import junit_xml
    from attn_export.benchmarks.report_pages import refresh_pages
    from attn_export.benchmarks.step_summary import append_step_summary
    from attn_export.bundle import write_atomic
    from attn_export.check import CheckOptions, check_bundle

    options = CheckOptions(
        min_speedup=min_speedup,
        baseline=baseline,
        max_regression=max_regression,
        engine=engine,
        data=data,
        tokenizer=tokenizer,
        allow_host_code=allow_host_code,
    )
    with Steps() as say:
        report = check_bundle(directory, options, say=say)
    print_report(report, render_check, as_json=as_json)
    refresh_pages(directory)
    append_step_summary(report)
    if junit is not None:
        try:
            write_atomic(junit, junit_xml(report))
        except HostError as error:
            if report.problem is None:
                raise
            click.echo(f"no JUnit file: {error}", err=True)
    report.require_pass()
