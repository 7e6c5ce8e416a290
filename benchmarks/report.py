"""Reports: JSON in the bundle's reports folder, tables on the terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attn_export.bundle import REPORTS, Bundle, write_atomic
from attn_export.errors import HostError

from .bench import BenchReport, CandidateResult
from .candidates import BUCKETED
from .judge import ENGINE, Run
from .metrics import Comparison
from .parity import EngineParity, ParityReport
from .stats import Interval

_SHORT = {
    "eager-mha-padded": "x mha\npadded",
    "eager-padded": "x own\npadded",
    "eager-dynamic": "x own\ndynamic",
}
log = logging.getLogger("attn_export")


class Report(Protocol):
    """Anything with a JSON form."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""


def write_report(bundle: Bundle, name: str, report: Report) -> None:
    """Write ``reports/<name>.json`` into the bundle; one that cannot be written gets a warning."""
    text = json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"
    try:
        write_atomic(bundle.directory / REPORTS / f"{name}.json", text)
    except HostError as error:
        log.warning("%s.json was not kept: %s", name, error)


def render_parity(report: ParityReport) -> RenderableType:
    """A verdict an engine, then a table with a row for each graph and output."""
    numbers = ("max", "p99", "mean", "1 -\ncosine", "same\nlabel", "passes\nat", "verdict")
    table = _table(("graph", "output"), numbers)
    for engine in report.engines:
        for run in engine.runs:
            for result in run.outputs:
                table.add_row(*_parity_row(engine, run, result))
    lines = [_verdict_line(engine, report) for engine in report.engines]
    notes = [Text(note, style="dim") for note in _parity_notes(report)]
    return Group(*lines, table, *notes)


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    """As narrow as it gets: a terminal of 80 columns must hold it."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _parity_row(engine: EngineParity, run: Run, result: Comparison) -> list[str | Text]:
    return [
        engine.engine if run.what == ENGINE else f"  {run.what}",
        result.output,
        f"{result.max_abs:.1e}",
        f"{result.p99_abs:.1e}",
        f"{result.mean_abs:.1e}",
        "-" if result.cosine is None else f"{max(0.0, 1 - result.cosine):.1e}",
        "-" if result.labels is None else f"{result.labels:.1%}",
        f"{result.smallest_tolerance:.1e}",
        Text(result.verdict, style="green" if result.passed else "bold red"),
    ]


def _verdict_line(engine: EngineParity, report: ParityReport) -> Text:
    word, style = ("PASS", "bold green") if engine.passed else ("FAIL", "bold red")
    reference = "eager PyTorch FP32" if report.reference == "eager" else "the golden file"
    allowed = {f"{r.atol:g} + {r.rtol:g}·|reference|": r for r in engine.judge.outputs}
    ratios = engine.judge.noise_ratio
    noise = f"; {max(ratios.values()):.1f} x the error of eager FP16" if ratios else ""
    twin = "; its rounding twin must pass too" if engine.twin_sha256 else ""
    return Text.assemble(
        (f"[{word}]", style),
        f" {engine.engine}: {report.cases} cases, {report.rows} rows against {reference}; "
        f"allowed {', '.join(allowed)}{noise}{twin}",
    )


def _parity_notes(report: ParityReport) -> list[str]:
    notes = [f"reference: {report.reference}, {report.reason}"]
    if report.dropped:
        notes.append(f"not in the golden file (too large): {', '.join(report.dropped)}")
    if any(engine.precision == "fp16" for engine in report.engines) and not report.noise_floor:
        notes.append(f"eager FP16 for comparison is not available: {report.noise_reason}")
    if any(len(engine.runs) > 1 for engine in report.engines):
        notes.append("a CPU computes FP16 graphs in FP32: prove them here, serve FP32 or INT8 here")
    for engine in report.engines:
        for run in engine.runs:
            notes += [_failure(engine, run, result) for result in run.outputs if not result.passed]
            notes += [
                f"{engine.engine}, {run.what}, {result.output}: rows without any real token are "
                f"reported, not held: max abs {result.max_abs:.1e}, {result.nonfinite} not finite"
                for result in run.masked_rows
            ]
    return notes


def _failure(engine: EngineParity, run: Run, result: Comparison) -> str:
    said = {
        "fail": f"{result.exceeded} of {result.values} values are outside the tolerance",
        "nonfinite": f"{result.nonfinite} of {result.values} values are NaN or infinite",
        "reference nonfinite": "the reference itself is NaN or infinite",
        "shape mismatch": result.detail,
    }.get(result.verdict, result.verdict)
    worst = f"; worst case {result.worst_case}" if result.worst_case else ""
    return f"{engine.engine}, {run.what}, {result.output}: {said}{worst}"


def render_bench(report: BenchReport) -> RenderableType:
    """What each engine reached, then a table with a row for each candidate."""
    baselines = [result.name for result in report.results if result.engine is None]
    numbers = ("samples\n/s", *(_SHORT[name] for name in baselines), "batch\np50 ms")
    table = _table(("candidate",), (*numbers, "batch\np99 ms", "padded", "start\ns", "peak\nMiB"))
    engine = None
    for result in report.results:
        if result.engine != engine:
            engine = result.engine
            table.add_row(Text(str(engine), style="bold"))
        table.add_row(*_bench_row(result, baselines))
    headlines = [_headline(result) for result in report.results if result.candidate == BUCKETED]
    notes = [Text(note, style="dim") for note in _bench_notes(report)]
    return Group(*headlines, table, *notes)


def _bench_row(result: CandidateResult, baselines: Sequence[str]) -> list[str]:
    ms = result.batch_ms
    ratios = [result.ratios[name].median if name in result.ratios else 1.0 for name in baselines]
    return [
        result.candidate,
        f"{result.samples_per_s.median:.1f}",
        *(f"{ratio:.2f}" for ratio in ratios),
        f"{ms['p50']:.1f}" if ms else "-",
        f"{ms['p99']:.1f}" if ms else "-",
        f"{result.padded_share:.1%}",
        f"{result.cold_start_s:.2f}",
        f"{result.peak_mib:.0f}",
    ]


def _headline(result: CandidateResult) -> str:
    rate = result.samples_per_s
    ratios = ", ".join(
        f"{_interval(ratio)} x {name.partition(':')[0]}" for name, ratio in result.ratios.items()
    )
    return (
        f"{result.engine}: {rate.median:.1f} samples/s [{rate.low:.1f}, {rate.high:.1f}]; {ratios}"
    )


def _interval(interval: Interval) -> str:
    return f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _bench_notes(report: BenchReport) -> list[str]:
    cpu = report.environment["cpu"]
    shares = ", ".join(f"to the {name} {share:.1%}" for name, share in report.padded_shares.items())
    notes = [
        f"{report.data}, mean {report.mean_length:.1f} tokens; padding {shares}",
        "x mha padded, own padded, own dynamic: times the eager-... candidates' samples/s; padded: "
        "padding as a share of the tokens computed; start: load and first request",
        f"median of {report.rounds} interleaved rounds [95 % bootstrap interval]; batches of "
        f"{report.batch_size}, maximum {report.max_length} tokens",
        f"{cpu['model']}, {report.threads} of {cpu['cores']} cores; load average "
        f"{report.load_average[0]:.1f} before, {report.load_average[1]:.1f} after",
    ]
    notes += [f"{result.name}: {result.note}" for result in report.results if result.note]
    notes += [f"{name} left out: {reason}" for name, reason in report.skipped.items()]
    if report.load_average[0] > cpu["cores"] / 2:
        notes.append("the machine had other work: the numbers are lower than it can do")
    if report.quick:
        notes.append("a quick run gives a first impression; leave out --quick to quote numbers")
    return notes
