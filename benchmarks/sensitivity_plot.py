"""What INT8 costs, part by part, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attn_export.errors import HostError, UsageError
from attn_export.lazy import require

from .accuracy import Accuracy
from .sensitivity_parts import Kind
from .sensitivity_report import Row, SensitivityReport

# Okabe and Ito's blue and vermilion, which colour-blind readers tell apart; shapes differ too.
_INT8, _FP32 = "#0072B2", "#D55E00"
_TITLES: dict[Kind, str] = {"layer": "One layer in INT8", "role": "One role in INT8"}
_INCHES_A_ROW = 0.27


def plot_sensitivity(report: SensitivityReport, path: Path) -> None:
    """Draw the noise of each layer and role alone; the file's suffix is its format.

    Raises:
        MissingPackage: if matplotlib is not installed.
        UsageError: if matplotlib does not know the format.
        HostError: if the file cannot be written.
    """
    figures = require("matplotlib.figure", extra="plot")
    kinds = [kind for kind in _TITLES if report.rows_of(kind)]
    sizes = [len(report.rows_of(kind)) + 1 for kind in kinds]
    height = 1.6 + _INCHES_A_ROW * sum(sizes) + 0.5 * len(kinds)
    figure = figures.Figure(figsize=(8, height), layout="constrained")
    panels = figure.subplots(
        len(kinds), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": sizes}
    )[:, 0]
    for kind, panel in zip(kinds, panels, strict=True):
        _draw(panel, report, report.rows_of(kind))
        panel.set_title(_TITLES[kind], loc="left", fontsize=10)
    panels[-1].set_xlabel("signal to quantization noise in dB (further left: more harmful)")
    figure.suptitle(_headline(report), fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UsageError(f"{path.name}: {error}") from error
    except OSError as error:
        raise HostError(f"cannot write {path}: {error}; choose another place") from error


def _draw(panel: Any, report: SensitivityReport, rows: Sequence[Row]) -> None:
    """One line of dots, the most harmful on top; each says its share of equal labels."""
    least, most = _span(report)
    places = [most if row.sqnr_db is None else row.sqnr_db for row in rows]
    excluded = [report.excluded_of(row) > 0 for row in rows]
    for is_excluded, colour, marker, label in (
        (False, _INT8, "o", "INT8"),
        (True, _FP32, "D", "kept in FP32, whole or in part"),
    ):
        chosen = [index for index, found in enumerate(excluded) if found is is_excluded]
        at = [places[index] for index in chosen]
        panel.plot(at, chosen, marker, color=colour, label=label, markersize=6)
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        text = "no noise" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
        text += "" if row.labels is None else f"   same label {row.labels:.1%}"
        panel.annotate(
            text, (place, index), (7, 0), textcoords="offset points", va="center", fontsize=7
        )
    panel.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.grid(axis="both", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_xlim(least - 0.05 * (most - least), most + 0.45 * (most - least))  # room for text
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _span(report: SensitivityReport) -> tuple[float, float]:
    """From the most to the least noise of all rows, at least 1 dB apart."""
    found = [row.sqnr_db for row in report.rows if row.sqnr_db is not None] or [0.0]
    return min(found), max(*found, min(found) + 1)


def _headline(report: SensitivityReport) -> str:
    first = f"all {report.nodes} nodes in INT8: {_shares(report.before)}"
    if not report.excludes:
        return f"{first}; nothing has to be excluded"
    return f"{first}\n{len(report.excludes)} of them kept in FP32: {_shares(report.after)}"


def _shares(results: Sequence[Accuracy]) -> str:
    return ", ".join(
        f"{item.output} same label {item.labels:.2%}"
        if item.labels is not None
        else f"{item.output} cosine {item.cosine:.5f}"
        for item in results
    )
