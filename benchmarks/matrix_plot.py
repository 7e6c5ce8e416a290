"""The matrix as one picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from attn_export.bundle import write_atomic
from attn_export.errors import UsageError
from attn_export.lazy import require

from .environment import gpu_name
from .matrix_cell import BUCKETED, MODES, PADDED
from .matrix_factors import EXERCISE_PLACE
from .matrix_panels import GREY, MARKERS, draw_factors, draw_latency, draw_throughput
from .matrix_report import MatrixReport

_INCHES = (13, 10.5)


def plot_matrix(report: MatrixReport, path: Path) -> None:
    """Draw throughput, latency and improvement factors; the file's suffix is its format.

    Latency and factors are those of batch 64, as in the source exercise, or of the largest batch.

    Raises:
        MissingPackage: if matplotlib is not installed.
        UsageError: if matplotlib does not know the format, or nothing was measured.
        HostError: if the file cannot be written.
    """
    figures = require("matplotlib.figure", extra="plot")
    cells = [cell for cell in report.cells if cell.samples_per_s]
    if not cells:
        raise UsageError("there is nothing to draw: no cell of the matrix was measured")
    batches = sorted({cell.batch for cell in cells})
    batch = EXERCISE_PLACE.batch if EXERCISE_PLACE.batch in batches else batches[-1]
    rates = [cell.samples_per_s for cell in cells if cell.samples_per_s]
    limits = (min(r.low for r in rates) / 1.2, max(r.high for r in rates) * 1.2)
    figure = figures.Figure(figsize=_INCHES, layout="constrained")
    (padded, bucketed), (latency, factors) = figure.subplots(2, 2)
    for mode, panel in zip(MODES, (padded, bucketed), strict=True):
        draw_throughput(panel, [cell for cell in cells if cell.mode == mode], batches, limits)
    draw_latency(latency, [cell for cell in cells if cell.batch == batch])
    draw_factors(factors, [factor for factor in report.factors if factor.batch == batch])
    titles = {
        padded: f"Throughput, {PADDED} to {report.settings['max_length']} tokens",
        bucketed: f"Throughput, {BUCKETED} by length",
        latency: f"Latency of {batch} requests: p50, and a whisker to p99",
        factors: f"Times as fast as eager MHA FP32, padded, batch {batch}",
    }
    for panel, title in titles.items():
        panel.set_title(title, loc="left", fontsize=12, weight="bold")
    figure.suptitle(_circumstances(report), fontsize=10, color=GREY, x=0.01, ha="left")
    _explain_markers(figure)
    _save(figure, path)


def _circumstances(report: MatrixReport) -> str:
    settings, environment = report.settings, report.environment
    quick = "; a quick run: no numbers to quote" if settings["quick"] else ""
    memory = [f"\n{saving.words}" for saving in report.savings if saving.exercise]
    return (
        f"{settings['data']}, mean {settings['mean_length']:.1f} tokens; "
        f"{gpu_name(environment) or environment['cpu']['model']}, {settings['threads']} threads; "
        f"{settings['rounds']} interleaved rounds{quick}"
        f"{''.join(memory)}"
    )


def _explain_markers(figure: Any) -> None:
    lines = require("matplotlib.lines", extra="plot")
    handles = [
        lines.Line2D([], [], marker=marker, color=GREY, ls="", label=model.upper())
        for model, marker in MARKERS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    try:
        figure.savefig(content, format=path.suffix[1:], dpi=130)
    except ValueError as error:
        raise UsageError(f"{path.name}: {error}") from error
    write_atomic(path, content.getvalue())
