"""A roofline as a picture: what each kernel may reach, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_export.errors import HostError, UsageError
from attn_export.lazy import require

from .hardware import machine_title
from .roofline import KernelTime, Roofline

# Okabe and Ito's colours, which colour-blind readers tell apart; lines and hatches differ too.
_STYLES = {
    "datasheet": ("#0072B2", "-", ""),
    "measured": ("#009E73", "--", "///"),
    "sustained": ("#D55E00", ":", "..."),
}
_TERA = 1e12
_SMALL = 0.01  # kernels below this share of the time are drawn together
_NAMED = 0.05  # from this share on a kernel has a dot under its roof


def plot_roofline(rooflines: Mapping[str, Roofline], path: Path, *, model: str) -> None:
    """Draw the tiers of one machine; the file's suffix is its format.

    Args:
        rooflines: by tier, of one model, batch and machine; at least one.
        model: what the title calls the model.

    Raises:
        MissingPackage: if matplotlib is not installed.
        UsageError: if there is nothing to draw, or matplotlib does not know the format.
        HostError: if the file cannot be written.
    """
    if not rooflines:
        raise UsageError("no tier of this machine is known, so there is no roofline to draw")
    figures = require("matplotlib.figure", extra="plot")
    figure = figures.Figure(figsize=(11, 5), layout="constrained")
    roofs, times = figure.subplots(1, 2)
    _draw_roofs(roofs, rooflines)
    _draw_times(times, rooflines)
    first = next(iter(rooflines.values()))
    rates = ", ".join(f"{item.samples_per_s:,.0f} {tier}" for tier, item in rooflines.items())
    figure.suptitle(
        f"{model} {first.dtype.upper()} on {machine_title(first.limits.name)}, batch "
        f"{first.batch} of {first.length:g} tokens: at most {rates} samples/s",
        fontsize=11,
    )
    for panel in (roofs, times):
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UsageError(f"{path.name}: {error}") from error
    except OSError as error:
        raise HostError(f"cannot write {path}: {error}; choose another place") from error


def _draw_roofs(panel: Any, rooflines: Mapping[str, Roofline]) -> None:
    """FLOP/s against FLOP per byte; a kernel stands where its products' roof allows it to."""
    lowest = list(rooflines.values())[-1]
    drawn = [
        item for item in lowest.kernels if item.kernel.flops and _is_large(item, lowest, _NAMED)
    ]
    places = [item.kernel.intensity for item in drawn]
    span = [min(places) / 10, max(places) * 8]
    for tier, line in rooflines.items():
        colour, style, _ = _STYLES[tier]
        for index, speed in enumerate(_speeds(line).values()):
            ridge = speed / line.limits.bytes_per_s
            xs = sorted({*span, min(max(ridge, span[0]), span[1])})
            ys = [min(speed, x * line.limits.bytes_per_s) / _TERA for x in xs]
            label = _legend(tier, line) if not index else None
            panel.plot(xs, ys, style, color=colour, linewidth=2, label=label)
    _draw_kernels(panel, drawn)
    tickers = require("matplotlib.ticker", extra="plot")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("FLOP per byte moved (log scale)")
    panel.set_ylabel("TFLOP/s (log scale)")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(tickers.StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(tickers.NullFormatter())
    panel.set_title(f"Roofline; kernels at the {lowest.limits.tier} limit", loc="left", fontsize=10)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.legend(loc="lower right", fontsize=8)
    panel.set_ylim(bottom=panel.get_ylim()[0] / 2)  # room for the names


def _draw_kernels(panel: Any, drawn: Sequence[KernelTime]) -> None:
    """A dot each; the names hang below at different heights, or neighbours' would overlap."""
    for place, item in zip(
        range(len(drawn), 0, -1), sorted(drawn, key=lambda item: item.kernel.intensity), strict=True
    ):
        speed = item.kernel.flops * item.kernel.count / max(item.compute_s, item.memory_s)
        at = item.kernel.intensity, speed / _TERA
        panel.plot(*at, "o", color="#000000", markersize=7, zorder=3)
        panel.annotate(
            item.kernel.name,
            at,
            (0, -22 * place),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 1},
            arrowprops={"arrowstyle": "-", "linewidth": 0.6},
            zorder=4,
        )


def _draw_times(panel: Any, rooflines: Mapping[str, Roofline]) -> None:
    """Milliseconds of each kernel by tier, the first kernel on top; the small ones together."""
    lines = list(rooflines.values())
    large = [
        index
        for index in range(len(lines[0].kernels))
        if any(_is_large(line.kernels[index], line) for line in lines)
    ]
    names = [lines[0].kernels[index].kernel.name for index in large] + ["the others"]
    height = 0.8 / len(lines)
    for place, (tier, line) in enumerate(rooflines.items()):
        colour, _, hatch = _STYLES[tier]
        values = [line.kernels[index].seconds * 1e3 for index in large]
        values.append(line.seconds * 1e3 - sum(values))
        at = [row + (place - (len(lines) - 1) / 2) * height for row in range(len(names))]
        bars = panel.barh(
            at, values, height, color=colour, hatch=hatch, edgecolor="#ffffff", label=tier
        )
        texts = [f"{value:.3g} ({value / line.seconds / 1e3:.0%})" for value in values]
        panel.bar_label(bars, texts, padding=3, fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=9)
    panel.invert_yaxis()
    panel.margins(x=0.25)
    panel.set_xlabel("least time of one batch, ms (share of it)")
    panel.set_title("Where the time goes", loc="left", fontsize=10)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.legend(loc="lower right", fontsize=8)


def _is_large(item: KernelTime, line: Roofline, share: float = _SMALL) -> bool:
    return item.seconds >= share * line.seconds


def _legend(tier: str, line: Roofline) -> str:
    speeds = ", ".join(
        f"{speed / _TERA:,.3g} {name.upper()}" for name, speed in _speeds(line).items()
    )
    return f"{tier}: {speeds} TFLOP/s, {line.limits.bytes_per_s / 1e9:,.0f} GB/s"


def _speeds(line: Roofline) -> dict[str, float]:
    """FLOP/s by precision, of the precisions that its kernels multiply in, the first one first."""
    return {
        item.kernel.precision: item.kernel.flops * item.kernel.count / item.compute_s
        for item in line.kernels
        if item.compute_s
    }
