"""The study of packing as a table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .packing_study import AT_EDGES, BUCKETED, PACKED, PADDED, Cell, PackingStudy
from .stats import Interval, verdict
from .terminal_table import narrow_table


def render_packing(study: PackingStudy) -> RenderableType:
    """Which way is faster, cell by cell, and what each of them computes in vain."""
    numbers = (
        f"{PACKED}\nthroughput",
        "\nby CPU time",
        f"{PADDED}\n",
        f"empty:\n{PACKED}",
        f"\n{BUCKETED}",
        "GPU\nest.",
    )
    table = narrow_table(("lengths", "at a\ntime"), numbers, map(_columns, study.cells))
    wins = sum(verdict(cell.ratios[PACKED]) == "faster" for cell in study.cells)
    load = " and ".join(f"{value:.1f}" for value in study.load_average)
    return Group(
        Text(
            f"{study.model}: {study.packed} against {study.bucketed}, {study.rounds} interleaved "
            f"rounds, {study.cpus} CPUs, load {load} before and after"
        ),
        table,
        Text(
            f"times {BUCKETED}; packing is faster beyond the noise in {wins} of "
            f"{len(study.cells)} cells. Empty is the share of padding. GPU est.: by FLOPs, of "
            "texts padded to their bucket's edge over packed ones",
            style="dim",
        ),
    )


def _columns(cell: Cell) -> list[str]:
    return [
        cell.lengths,
        "all" if cell.group is None else str(cell.group),
        _interval(cell.ratios[PACKED]),
        _interval(cell.cpu[PACKED]),
        f"{cell.ratios[PADDED].median:.2f}",
        *(f"{cell.empty[name]:.1%}" for name in (PACKED, BUCKETED)),
        f"{cell.arithmetic[AT_EDGES]:.3g}",
    ]


def _interval(found: Interval) -> str:
    return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"
