"""``attn-export bench``: one bundle, one engine against itself, or the matrix of all models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attn_export.console import Steps
from attn_export.options import HELP, PATH, data_options, host_code_option, json_option
from attn_export.output import print_json, print_lines, print_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attn_export.bundle import Bundle

MATRIX = Path("matrix")


@click.command(context_settings=HELP)
@click.argument("directory", metavar="[DIR]", type=PATH, required=False)
@click.option("--matrix", is_flag=True, help="Measure MHA, GQA and MQA side by side; DIR [matrix].")
@click.option("--self-test", is_flag=True, help="Compare an engine with itself, 20 times.")
@click.option("--peers", metavar="all|NAME,...", help="Run other tools beside the engines.")
@click.option("--engine", help="One engine instead of all.")
@data_options
@click.option("--quick", is_flag=True, help="A first impression in a minute or two.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [all available].")
@click.option("--engine-python", help="Python with numpy and the engines' packages [this one].")
@host_code_option
@json_option
def bench(  # noqa: PLR0917
    directory: Path | None,
    matrix: bool,
    self_test: bool,
    peers: str | None,
    engine: str | None,
    data: Path | None,
    tokenizer: Path | None,
    quick: bool,
    threads: int | None,
    engine_python: str | None,
    allow_host_code: bool,
    as_json: bool,
) -> None:
    """Measure the engines of the bundle DIR against eager PyTorch FP32 padded to the maximum.

    Eager PyTorch runs on the device of the engine. Everything is also put on one page,
    DIR/reports/report.html. --matrix builds the reference models that DIR lacks and measures them
    in every precision and batch size; its page is DIR/report.html.

    \b
    Examples:
        attn-export bench mqa-bundle --data requests.jsonl --peers all
        attn-export bench mqa-bundle --self-test
        attn-export bench --matrix --data requests.jsonl
    """
    if matrix:
        _refuse("--matrix", engine, peers, self_test, engine_python, allow_host_code)
        _matrix(directory or MATRIX, data, tokenizer, quick, threads, as_json)
        return
    if directory is None:
        raise click.UsageError("Missing argument 'DIR': the bundle to measure.")
    from attn_export.bundle import Bundle

    bundle = Bundle.open(directory)
    sequences = _sequences(bundle, data, tokenizer)
    if self_test:
        _refuse("--self-test", peers, quick, engine_python, allow_host_code)
        _self_test(bundle, sequences, engine, threads, as_json)
        return
    from attn_export.benchmarks.bench import run_bench
    from attn_export.benchmarks.peers import peer_names
    from attn_export.benchmarks.report import render_bench
    from attn_export.benchmarks.report_file import write_report

    with Steps() as say:
        report = run_bench(
            bundle,
            sequences=sequences,
            quick=quick,
            engine=engine,
            threads=threads,
            engine_python=engine_python,
            allow_host_code=allow_host_code,
            peers=peer_names(peers) if peers else (),
            say=say,
        )
    write_report(bundle, "bench", report)
    print_report(report, render_bench, as_json=as_json)
    _write_pages(directory, as_json=as_json)
    report.require_complete()


def _refuse(mode: str, *others: object) -> None:
    if any(others):
        raise click.UsageError(f"{mode} takes none of the options that select or alter candidates")


def _matrix(  # noqa: PLR0917
    directory: Path,
    data: Path | None,
    tokenizer: Path | None,
    quick: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    from attn_export import matrix
    from attn_export.benchmarks.matrix_report import require_measured
    from attn_export.benchmarks.matrix_table import render_matrix

    with Steps() as say:
        report, files = matrix.run(
            directory, data=data, tokenizer=tokenizer, quick=quick, threads=threads, say=say
        )
    print_report(report, render_matrix, as_json=as_json)
    for line in files:
        click.echo(line, err=as_json)
    _write_pages(directory, as_json=as_json)
    require_measured(report)


def _self_test(
    bundle: Bundle, sequences: Any, engine: str | None, threads: int | None, as_json: bool
) -> None:
    from attn_export.benchmarks.report_file import write_report
    from attn_export.benchmarks.self_test import run_self_test

    with Steps() as say:
        report = run_self_test(bundle, sequences=sequences, engine=engine, threads=threads, say=say)
    write_report(bundle, "self-test", report)
    if as_json:
        print_json(report.to_json())
    else:
        print_lines(report.lines())
    _write_pages(bundle.directory, as_json=as_json)
    report.require_no_difference()


def _sequences(bundle: Bundle, data: Path | None, tokenizer: Path | None) -> Sequence[Any] | None:
    from attn_export.calibration.data import read_sequences

    if data is None:
        return None
    return read_sequences(data, tokenizer=tokenizer, max_length=bundle.manifest.max_length)


def _write_pages(directory: Path, *, as_json: bool) -> None:
    from attn_export.benchmarks.report_pages import refresh_pages

    for path in refresh_pages(directory):
        click.echo(f"{path}: everything on one page", err=as_json)
