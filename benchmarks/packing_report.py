"""The study of packing as a table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .packing_study import AT_EDGES, BUCKETED, PACKED, PADDED, Cell, PackingStudy
from .stats import Interval, verdict


def render_packing(study: PackingStudy) -> RenderableType:
    """Which way is faster, cell by cell, and what each of them computes in vain."""
    table = Table(box=None, pad_edge=False)
    for name in ("lengths", "arriving"):
        table.add_column(name)
    for name in (PACKED, PADDED):
        table.add_column(f"{name}, times bucketed", justify="right")
    table.add_column(f"{PACKED}, by CPU time", justify="right")
    for name in (PACKED, BUCKETED, AT_EDGES):
        table.add_column(f"empty, {name}", justify="right")
    for name in (BUCKETED, AT_EDGES):
        table.add_column(f"arithmetic, {name}", justify="right")
    for cell in study.cells:
        table.add_row(*_columns(cell))
    wins = sum(verdict(cell.ratios[PACKED]) == "faster" for cell in study.cells)
    load = " and ".join(f"{value:.1f}" for value in study.load_average)
    return Group(
        Text(
            f"{study.model}: {study.packed} against {study.bucketed}, {study.rounds} interleaved "
            f"rounds, {study.cpus} CPUs, load {load} before and after"
        ),
        table,
        Text(
            f"packing is faster beyond the noise in {wins} of {len(study.cells)} cells. Empty is "
            "the share of padding; arithmetic is an estimate of FLOPs, in times of the packed "
            "engine's: at edges, as where each text is padded to its bucket's edge on a GPU"
        ),
    )


def _columns(cell: Cell) -> list[str]:
    return [
        cell.lengths,
        "all at once" if cell.group is None else f"groups of {cell.group}",
        _interval(cell.ratios[PACKED]),
        _interval(cell.ratios[PADDED]),
        _interval(cell.cpu[PACKED]),
        *(f"{cell.empty[name]:.1%}" for name in (PACKED, BUCKETED, AT_EDGES)),
        *(f"{cell.arithmetic[name]:.2f}" for name in (BUCKETED, AT_EDGES)),
    ]


def _interval(found: Interval) -> str:
    return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"
