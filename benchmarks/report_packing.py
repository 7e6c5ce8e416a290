"""Whether packed rows are worth it for a bundle: packing.json, which few bundles have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .packing_study import AT_EDGES, BUCKETED, PACKED
from .report_candidates import judged
from .report_data import Results
from .report_document import Note, Part, Table
from .report_numbers import measured, percent


def packing(results: Results) -> Iterator[Part]:
    """Packed rows beside buckets, by lengths and ways of arriving; nothing where not studied."""
    study = results.found.get("packing")
    if study is None:
        return
    cells, (before, after) = study["cells"], study["load_average"]
    wins = sum(judged(cell["ratios"][PACKED]) == "faster" for cell in cells)
    yield Note(
        text=f"{study['packed']} against {study['bucketed']}, {study['rounds']} interleaved rounds,"
        f" {study['cpus']} CPUs, load average {before:.1f} before, {after:.1f} after. Packing is "
        f"faster beyond the noise in {wins} of {len(cells)} cells."
    )
    yield Table(
        caption="Packed rows beside buckets; empty is the share of computed tokens that is padding",
        columns=(
            *("Lengths", "Arriving", "Times bucketed", "By CPU time"),
            *(f"Empty, {way}" for way in (PACKED, BUCKETED, AT_EDGES)),
        ),
        rows=[_row(cell) for cell in cells],
        words=2,
    )


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(cell["lengths"]),
        "all at once" if cell["group"] is None else f"groups of {cell['group']}",
        *(measured(cell[clock][PACKED], "x") for clock in ("ratios", "cpu")),
        *(percent(cell["empty"][way]) for way in (PACKED, BUCKETED, AT_EDGES)),
    )
