"""Reports as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .bench_report import BenchReport, CandidateResult
from .candidates import BASELINES, BUCKETED, EAGER_DYNAMIC, EAGER_MHA, EAGER_PADDED
from .devices import GPU
from .judge import ENGINE, Run
from .latency import Latency
from .metrics import Comparison
from .parity import EngineParity, ParityReport
from .peers import PREFIX
from .stats import CONFIDENCE, Interval, verdict
from .terminal_table import narrow_table, plain

_SHORT = {
    EAGER_MHA: "x mha\npadded",
    EAGER_PADDED: "x own\npadded",
    EAGER_DYNAMIC: "x own\ndynamic",
}
_ABOUT_MEMORY = (
    "; device: of eager all that torch reserved, of an engine one stream's activations, inputs and "
    "outputs without the weights"
)


def render_parity(report: ParityReport) -> RenderableType:
    """A verdict an engine, then a table with a row for each graph and output."""
    numbers = ("max", "p99", "mean", "1 -\ncosine", "same\nlabel", "passes\nat", "verdict")
    table = narrow_table(("graph", "output"), numbers)
    labels = _labels(report.engines)
    for engine in report.engines:
        for run in engine.runs:
            label = labels[engine.engine] if run.what == ENGINE else f"  {run.what}"
            for result in run.outputs:
                table.add_row(*plain([label, *_parity_cells(result)]))
    lines = [_verdict_line(engine, report) for engine in report.engines]
    lines += [
        Text.assemble(("[SKIP]", "bold yellow"), f" {name}: {reason}")
        for name, reason in report.skipped.items()
    ]
    notes = [Text(note, style="dim") for note in _parity_notes(report)]
    return Group(*lines, table, *notes)


def _labels(engines: Sequence[EngineParity]) -> dict[str, str]:
    """The verdicts above give the whole names; here the precision tells them apart, mostly."""
    precisions = [engine.precision for engine in engines]
    is_enough = len(set(precisions)) == len(precisions)
    return {engine.engine: engine.precision if is_enough else engine.engine for engine in engines}


def _parity_cells(result: Comparison) -> list[str | Text]:
    return [
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
    allowed = {_allowed(result): result for result in engine.judge.outputs}
    ratios = engine.judge.noise_ratio
    noise = f"; {max(ratios.values()):.1f} x the error of eager FP16" if ratios else ""
    twin = "; its rounding twin must pass too" if engine.twin_sha256 else ""
    return Text.assemble(
        (f"[{word}]", style),
        f" {engine.engine}: {report.cases} cases, {report.rows} rows against {reference}; "
        f"allowed {', '.join(allowed)}{noise}{twin}",
    )


def _allowed(result: Comparison) -> str:
    if result.least_cosine is not None:
        return f"a cosine of at least {result.least_cosine:g}"
    return f"{result.atol:g} + {result.rtol:g}·|reference|"


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
    worst = f"; worst case {result.worst_case}" if result.worst_case else ""
    return f"{engine.engine}, {run.what}, {result.output}: {result.reason}{worst}"


def render_bench(report: BenchReport) -> RenderableType:
    """What each engine reached, then a table with a row for each candidate."""
    on_gpu = any(result.device == GPU for result in report.results)
    kinds = [k for k in BASELINES if any(result.candidate == k for result in report.results)]
    names = ["candidate", "samples\n/s", *(_SHORT[kind] for kind in kinds), "batch\np50 ms"]
    names += [] if on_gpu else ["batch\np99 ms"]
    names += ["padded", "start\ns", "device\nMiB" if on_gpu else "peak\nMiB"]
    rows = {r.name: _bench_row(r, report, kinds, on_gpu=on_gpu) for r in report.results}
    bucketed = [result for result in report.results if result.candidate == BUCKETED]
    headlines = [_headline(result) for result in bucketed]
    headlines += [line for result in bucketed for line in _peer_lines(result)]
    for engine, latencies in report.latencies.items():
        headlines += [_latency_line(engine, latency) for latency in latencies]
    failures = [
        Text.assemble(("[FAIL]", "bold red"), f" {failure.reason}")
        for failure in report.failed.values()
    ]
    return Group(
        *headlines,
        *failures,
        *(Text(note, style="bold yellow") for note in [*_quick_note(report), *report.notes]),
        *_bench_tables(report.results, names, rows),
        *(Text(note, style="dim") for note in _bench_notes(report)),
    )


def _bench_tables(
    results: Sequence[CandidateResult], names: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> Iterator[RenderableType]:
    """The header, then each engine's name and its rows; all with the same columns.

    An engine's name is longer than the first column, so it is no row of the table.
    """
    widths = [
        max(map(len, [*name.split("\n"), *(row[column] for row in rows.values())]))
        for column, name in enumerate(names)
    ]

    def table(*, header: bool) -> Table:
        made = narrow_table(names[:1], names[1:])
        made.show_header = header
        for column, width in zip(made.columns, widths, strict=True):
            column.min_width = width
        return made

    yield table(header=True)
    for name, group in groupby(results, _group):
        yield Text(name, style="bold")
        part = table(header=False)
        for result in group:
            part.add_row(*plain(rows[result.name]))
        yield part


def _group(result: CandidateResult) -> str:
    if result.candidate.startswith(PREFIX):
        return f"peers on the {result.device.upper()}"
    return result.engine or f"eager PyTorch on the {result.device.upper()}"


def _bench_row(
    result: CandidateResult, report: BenchReport, kinds: Sequence[str], *, on_gpu: bool
) -> list[str]:
    ms, ratios = result.batch_ms, {}
    for other in report.results:
        if other.name in result.ratios or other is result:
            ratio = result.ratios.get(other.name)
            unsure = "~" if ratio and verdict(ratio) == "inconclusive" else ""
            ratios[other.candidate] = f"{ratio.median if ratio else 1.0:.2f}{unsure}"
    device_mib = "-" if result.device_mib is None else f"{result.device_mib:.0f}"
    return [
        result.candidate.removeprefix(PREFIX),
        f"{result.samples_per_s.median:.1f}",
        *(ratios.get(kind, "-") for kind in kinds),
        f"{ms['p50']:.1f}" if ms else "-",
        *([] if on_gpu else [f"{ms['p99']:.1f}" if ms else "-"]),
        f"{result.padded_share:.1%}",
        f"{result.cold_start_s:.2f}",
        device_mib if on_gpu else f"{result.peak_mib:.0f}",
    ]


def _latency_line(engine: str, latency: Latency) -> str:
    host, device = latency.host_ms, latency.device_ms
    line = (
        f"{engine}: batch {latency.batch} of {latency.length} tokens takes p50 {host['p50']:.3f}, "
        f"p90 {host['p90']:.3f}, p99 {host['p99']:.3f} ms"
    )
    if device is None or latency.overhead_us is None:
        return line
    return f"{line}; the device {device['p50']:.3f} ms, the rest {latency.overhead_us:.0f} us"


def _headline(result: CandidateResult) -> str:
    rate = result.samples_per_s
    ratios = ", ".join(
        f"{_ratio(ratio)} x {name.partition(':')[0]}"
        for name, ratio in result.ratios.items()
        if not name.startswith(PREFIX)
    )
    return (
        f"{result.engine}: {rate.median:.1f} samples/s [{rate.low:.1f}, {rate.high:.1f}]; {ratios}"
    )


def _peer_lines(result: CandidateResult) -> list[str]:
    """The peers beside an engine's own scheduling, those that are faster than it first."""
    peers = sorted((r.median, n, r) for n, r in result.ratios.items() if n.startswith(PREFIX))
    texts = [f"{_ratio(ratio)} x {name.removeprefix(PREFIX)}" for _, name, ratio in peers]
    return [f"{result.engine} beside its peers: {', '.join(texts)}"] if texts else []


def _ratio(ratio: Interval) -> str:
    return _interval(ratio) + " (inconclusive)" * (verdict(ratio) == "inconclusive")


def _interval(interval: Interval) -> str:
    return f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _quick_note(report: BenchReport) -> list[str]:
    if not report.quick:
        return []
    return [
        f"QUICK: {report.rounds} rounds of short turns are a first impression; leave out --quick "
        "for numbers to quote"
    ]


def _bench_notes(report: BenchReport) -> list[str]:
    cpu = report.environment["cpu"]
    shares = ", ".join(f"to the {name} {share:.1%}" for name, share in report.padded_shares.items())
    notes = [
        f"{report.data}, mean {report.mean_length:.1f} tokens; padding {shares}",
        "x mha padded, own padded, own dynamic: times the eager-... candidates' samples/s; padded: "
        "padding as a share of the tokens computed; start: load and first request"
        + _ABOUT_MEMORY
        * any(result.device == GPU for result in report.results),
        f"median of {report.rounds} interleaved rounds [{CONFIDENCE:.0%} interval, by order "
        "statistics]; ~: inconclusive, the noise is larger than the difference",
        f"batches of {report.batch_size}, maximum {report.max_length} tokens; "
        f"{cpu['model']}, {report.threads} of {cpu['cores']} cores; load average "
        f"{report.load_average[0]:.1f} before, {report.load_average[1]:.1f} after",
    ]
    notes += [f"{result.name}: {result.note}" for result in report.results if result.note]
    notes += [
        f"{result.name}: its answers are not within the tolerance of eager FP32 (max abs "
        f"{result.facts['max_abs']:.1e})"
        for result in report.results
        if result.facts.get("passed") is False
    ]
    notes += [f"{name} left out: {reason}" for name, reason in report.skipped.items()]
    return notes
