"""The four panels of the matrix's picture.

The colour says how a model is run, the marker which model it is. Rates and ratios span two orders
of magnitude, so their axes are logarithmic, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .matrix_cell import BUCKETED, EAGER_FP32, MODES, PADDED, VARIANTS, Cell
from .matrix_factors import ARCHITECTURE, COMBINED, ENGINE, PRECISION, Factor

# Okabe and Ito's colours, which colour-blind readers tell apart; every line has its name besides.
COLOURS = {
    "eager-fp32": "#000000",
    "eager-autocast": "#CC79A7",
    "engine-fp32": "#0072B2",
    "engine-fp16": "#56B4E9",
    "engine-bf16": "#009E73",
    "engine-int8": "#D55E00",
}
MARKERS = {"mha": "s", "gqa": "^", "mqa": "o"}
GREY = "#6e6e6e"
_LEAST_GAP = 0.055  # of an axis's height, between two names at the lines' ends


def named(variant: str) -> str:
    """A variant as a person writes it."""
    kind, _, precision = variant.partition("-")
    return f"{kind} {precision if precision == 'autocast' else precision.upper()}"


def draw_throughput(
    panel: Any, cells: Sequence[Cell], batches: Sequence[int], limits: tuple[float, float]
) -> None:
    """A line for each model and variant; a variant's name stands where its lines end."""
    ends = {}
    for variant in VARIANTS:
        lasts = []
        for model, marker in MARKERS.items():
            own = [cell for cell in cells if (cell.model, cell.variant) == (model, variant)]
            rates = {batches.index(c.batch): c.samples_per_s for c in own if c.samples_per_s}
            if not rates:
                continue
            middles = [rate.median for rate in rates.values()]
            spread = [
                [rate.median - rate.low for rate in rates.values()],
                [rate.high - rate.median for rate in rates.values()],
            ]
            style = {"marker": marker, "color": COLOURS[variant], "ms": 5, "lw": 1.1}
            panel.errorbar(list(rates), middles, yerr=spread, elinewidth=0.8, **style)
            lasts.append(middles[-1])
        if lasts:
            ends[variant] = math.sqrt(min(lasts) * max(lasts))
    panel.set_yscale("log")
    panel.set_ylim(*limits)
    _plain_numbers(panel.yaxis)
    panel.set_ylabel("real samples/s (log scale)")
    panel.set_xlabel("batch")
    panel.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    panel.set_xlim(-0.15, (len(batches) - 1) * 1.4 + 0.3)
    _tidy(panel, "y")
    for variant, height in _apart(ends, limits).items():
        place = (len(batches) - 1 + 0.04 * len(batches), height)
        panel.annotate(named(variant), place, color=COLOURS[variant], va="center", weight="bold")


def draw_latency(panel: Any, cells: Sequence[Cell]) -> None:
    """Two rows a variant, padded (hollow) above bucketed (filled), and a mark for each model."""
    variants = [v for v in VARIANTS if any(cell.variant == v for cell in cells)]
    for row, variant in enumerate(variants):
        for cell in cells:
            if cell.variant != variant or cell.latency_ms is None:
                continue
            height = row + {PADDED: -0.2, BUCKETED: 0.2}[cell.mode]
            height += {"mha": -0.09, "gqa": 0.0, "mqa": 0.09}[cell.model]
            p50, p99 = cell.latency_ms["p50"], cell.latency_ms["p99"]
            colour = COLOURS[variant]
            panel.plot([p50, p99], [height, height], "-", color=colour, lw=1.0)
            panel.plot([p99], [height], "|", color=colour, ms=5)
            face = "white" if cell.mode == PADDED else colour
            panel.plot([p50], [height], MARKERS[cell.model], color=colour, mfc=face, ms=5.5)
    labels = [named(variant) for variant in variants]
    panel.set_yticks(range(len(variants)), labels)
    for tick, variant in zip(panel.get_yticklabels(), variants, strict=True):
        tick.set_color(COLOURS[variant])
        tick.set_fontweight("bold")
    panel.set_ylim(len(variants) - 0.45, -0.55)
    panel.set_xscale("log")
    _plain_numbers(panel.xaxis)
    panel.set_xlabel("ms until all are answered (log scale); hollow: padded, filled: bucketed")
    _tidy(panel, "x")


def draw_factors(panel: Any, factors: Sequence[Factor]) -> None:
    """A row for each factor, a mark for each model; the best one's number beside it."""
    rows = _factor_rows(factors)
    most = max((factor.ratio.high for found in rows.values() for factor in found), default=1.0)
    for row, found in enumerate(rows.values()):
        for factor in found:
            ratio, colour = factor.ratio, COLOURS[factor.of.variant]
            panel.plot([ratio.low, ratio.high], [row, row], "-", color=colour, lw=1.2)
            face = "white" if factor.of.mode == PADDED else colour
            marker = MARKERS[factor.of.model]
            panel.plot([ratio.median], [row], marker, color=colour, mfc=face, ms=6)
            if factor.exercise:
                panel.plot([factor.exercise], [row], "x", color=GREY, ms=7, mew=1.8)
        best = max(found, key=lambda factor: factor.ratio.median)
        text = (
            f"{best.ratio.median:.2f}x" if best.ratio.median < 10 else f"{best.ratio.median:.1f}x"
        )
        right = max(best.ratio.high, *(factor.exercise or 0.0 for factor in found), 0.0)
        panel.annotate(
            f"{text} {best.of.model.upper()}",
            (right, row),
            (9, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[best.of.variant],
        )
    panel.axvline(1, color=GREY, lw=0.8)
    panel.set_yticks(range(len(rows)), list(rows))
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xscale("log")
    panel.set_xlim(min([0.8, *(f.ratio.low * 0.9 for f in factors)]), max(most * 2.2, 5.0))
    _plain_numbers(panel.xaxis)
    panel.set_xlabel("times (log scale); grey x: what the source exercise reports")
    _tidy(panel, "x")


def _factor_rows(factors: Sequence[Factor]) -> dict[str, list[Factor]]:
    """The factors by row; bucketed engines too are compared with eager padded, the baseline."""
    titles = {
        ARCHITECTURE: "architecture\n(eager FP32)",
        PRECISION: "precision\n(MHA autocast)",
        COMBINED: "both\n(MQA autocast)",
    }
    rows: dict[str, list[Factor]] = {}
    for name, title in titles.items():
        found = [f for f in factors if f.name == name and f.of.mode == PADDED]
        if found:
            rows[title] = found
    for variant in VARIANTS:
        for mode in MODES:
            found = [
                f
                for f in factors
                if (f.name, f.of.variant, f.of.mode) == (ENGINE, variant, mode)
                and (f.against.variant, f.against.mode) == (EAGER_FP32, PADDED)
            ]
            if found:
                rows[f"{named(variant)}\n{mode}"] = found
    return rows


def _apart(ends: Mapping[str, float], limits: tuple[float, float]) -> dict[str, float]:
    """Heights on a logarithmic axis, moved up where two would touch."""
    gap = _LEAST_GAP * (math.log(limits[1]) - math.log(limits[0]))
    placed: dict[str, float] = {}
    below = -math.inf
    for variant, height in sorted(ends.items(), key=lambda item: item[1]):
        below = max(math.log(height), below + gap)
        placed[variant] = math.exp(below)
    return placed


def _plain_numbers(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _tidy(panel: Any, axis: str) -> None:
    panel.grid(axis=axis, color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
