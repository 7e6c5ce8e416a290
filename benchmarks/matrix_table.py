"""The matrix on the terminal, 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .matrix_cell import BUCKETED, EAGER_AUTOCAST, MODES, PADDED, VARIANTS, Cell
from .matrix_factors import EXERCISE_PLACE, Factor, Side
from .matrix_report import MatrixReport
from .stats import Interval
from .terminal_table import narrow_table, plain

FAILED, NOT_RUN = "failed", "-"


def render_matrix(report: MatrixReport) -> RenderableType:
    """Factors first, then throughput, latency and memory, and what was left out and why."""
    batches: list[int] = report.settings["batches"]
    batch = EXERCISE_PLACE.batch if EXERCISE_PLACE.batch in batches else batches[-1]
    parts: list[RenderableType] = [Text(note, style="bold yellow") for note in report.notes]
    parts += [_title(f"improvement at batch {batch}"), _factors(report, batch)]
    parts += [Text(saving.words) for saving in report.savings if saving.batch == batch]
    for mode in MODES:
        cells = [cell for cell in report.cells if cell.mode == mode]
        parts += [_title(f"\nreal samples/s, {mode}"), _by_batch(cells, batches, _rate)]
        parts += [
            _title(f"\nlatency of a group in ms, p50/p90/p99, {mode}"),
            _by_batch(cells, batches, _latency),
        ]
    padded = [cell for cell in report.cells if cell.mode == PADDED]
    parts += [_title("\npeak memory in MiB, padded"), _by_batch(padded, batches, _memory)]
    parts += [Text(note, style="dim") for note in _notes(report)]
    return Group(*parts)


def _title(text: str) -> Text:
    return Text(text, style="bold")


def _by_batch(
    cells: Sequence[Cell], batches: Sequence[int], shown: Callable[[Cell], str | None]
) -> Table:
    """A row for each model and variant of which a cell was to be measured."""
    table = narrow_table(("batch",), [*map(str, batches)])
    known = {(cell.model, cell.variant, cell.batch): cell for cell in cells}
    for variant in VARIANTS:
        for model in dict.fromkeys(cell.model for cell in cells):
            row = [known.get((model, variant, batch)) for batch in batches]
            if any(cell and (cell.samples_per_s or cell.failed) for cell in row):
                texts = (_shown(cell, shown) for cell in row)
                table.add_row(*plain([f"{model} {variant}", *texts]))
    return table


def _shown(cell: Cell | None, shown: Callable[[Cell], str | None]) -> str | Text:
    if cell is not None and cell.failed:
        return Text(FAILED, style="bold red")
    return (shown(cell) if cell else None) or NOT_RUN


def _rate(cell: Cell) -> str | None:
    return _number(cell.samples_per_s.median) if cell.samples_per_s else None


def _latency(cell: Cell) -> str | None:
    return "/".join(map(_number, cell.latency_ms.values())) if cell.latency_ms else None


def _memory(cell: Cell) -> str | None:
    return None if cell.peak_mib is None else f"{cell.peak_mib:.0f}"


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _factors(report: MatrixReport, batch: int) -> Table:
    """A row for each side that is compared with eager MHA FP32, which is padded or bucketed."""
    table = narrow_table(("times eager mha FP32",), ("", "padded", "bucketed", "exercise"))
    rows: dict[Side, dict[str, Factor]] = {}
    for factor in report.factors:
        if factor.batch == batch:
            rows.setdefault(factor.of, {})[factor.against.mode] = factor
    for side, found in rows.items():
        ratios = (_interval(found[mode].ratio) if mode in found else NOT_RUN for mode in MODES)
        told = [factor.exercise for factor in found.values() if factor.exercise]
        exercise = f"{told[0]:.2f}" if told else ""
        table.add_row(*plain([f"{side.model} {side.variant}", side.mode, *ratios, exercise]))
    return table


def _interval(interval: Interval) -> str:
    return f"{_ratio(interval.median)} [{_ratio(interval.low)}, {_ratio(interval.high)}]"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _notes(report: MatrixReport) -> Iterator[str]:
    settings, cpu = report.settings, report.environment["cpu"]
    yield (
        f"\n{settings['data']}, mean {settings['mean_length']:.1f} tokens; padded to "
        f"{settings['max_length']}, or {BUCKETED}: a group's requests sorted and cut by length; "
        f"medians of {settings['rounds']} interleaved rounds{_confidence(report)}"
    )
    yield (
        f"{cpu['model']}, {settings['threads']} of {cpu['cores']} cores; load average "
        f"{report.load_average[0]:.1f} before, {report.load_average[1]:.1f} after; "
        f"autocast is {settings[EAGER_AUTOCAST].upper()}"
    )
    for what in dict.fromkeys(settings["peak_mib"].values()):
        yield f"memory: {what}"
    yield from _left_out(report)
    for cell in report.cells:
        if cell.samples_per_s and cell.note:
            yield f"{cell.model} {cell.variant}, batch {cell.batch} {cell.mode}: {cell.note}"
    if settings["quick"]:
        yield "a quick run gives a first impression; leave out --quick to quote numbers"


def _confidence(report: MatrixReport) -> str:
    reached = [factor.ratio.confidence for factor in report.factors]
    return f" [{min(reached):.0%} interval of the ratio]" if reached else ""


def _left_out(report: MatrixReport) -> Iterator[str]:
    """Each reason once, with the cells that it concerns."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for cell in report.cells:
        if not cell.samples_per_s:
            rows = reasons.setdefault(cell.failed or cell.note or "no round ended", {})
            places = rows.setdefault(f"{cell.model} {cell.variant}", [])
            places.append(f"{cell.batch} {cell.mode}")
    every = len(MODES) * len(report.settings["batches"])
    for reason, rows in reasons.items():
        whole = [
            row if len(places) == every else f"{row} ({', '.join(places)})"
            for row, places in rows.items()
        ]
        yield f"{', '.join(whole)} left out: {reason}"
