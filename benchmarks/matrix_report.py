"""What the matrix found, as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from attn_export.errors import BundleError, HostError, UsageError

from .matrix_cell import Cell
from .matrix_factors import Factor, Saving, improvement_factors, memory_savings

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class MatrixReport:
    """The result of :func:`~attn_export.benchmarks.matrix.run_matrix`.

    Args:
        settings: all that another run must share to be compared, and what ``peak_mib`` is.
        environment: the machine, and the versions of what ran.
        load_average: of the last minute, before and after.
        cells: every cell that was asked for, measured or not.
        notes: what a reader must know before the numbers.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    load_average: tuple[float, float]
    cells: list[Cell]
    notes: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @property
    def factors(self) -> list[Factor]:
        """The improvement factors, worked out from the cells."""
        return improvement_factors(self.cells)

    @property
    def savings(self) -> list[Saving]:
        """The memory saved, worked out from the cells."""
        return memory_savings(self.cells)

    @property
    def failed(self) -> Iterator[Cell]:
        """The cells that should have been measured and could not be."""
        return (cell for cell in self.cells if cell.failed)

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with the factors and savings for those who read only JSON."""
        return {
            **asdict(self),
            "factors": [asdict(factor) for factor in self.factors],
            "savings": [asdict(saving) for saving in self.savings],
        }

    @classmethod
    def from_json(cls, data: Any) -> MatrixReport:
        """The inverse of :meth:`to_json`.

        Raises:
            UsageError: if this is no such report, or a broken one.
            BundleError: if a newer version wrote it.
        """
        if not isinstance(data, dict) or "cells" not in data or "settings" not in data:
            raise UsageError(
                "this is not the result of a matrix; give the matrix.json that "
                "'attn-export bench --matrix' writes"
            )
        version = data.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise BundleError(
                f"the matrix has schema {version}, this version of attn-export reads up to "
                f"{SCHEMA_VERSION}; upgrade attn-export, or measure again with this version"
            )
        try:
            before, after = data["load_average"]
            return cls(
                settings=dict(data["settings"]),
                environment=dict(data["environment"]),
                load_average=(before, after),
                cells=[Cell.from_json(cell) for cell in data["cells"]],
                notes=list(data["notes"]),
                schema_version=version,
            )
        except (LookupError, TypeError, ValueError) as error:
            raise UsageError(
                f"the result of the matrix is broken ({error!r}); measure again with "
                "'attn-export bench --matrix'"
            ) from error


def require_measured(report: MatrixReport) -> None:
    """Turn cells that failed into an error; the others stand.

    Raises:
        HostError: naming the first one and how many there are.
    """
    failed = list(report.failed)
    if failed:
        first = failed[0]
        raise HostError(
            f"{len(failed)} of {len(report.cells)} cells of the matrix failed; the first: "
            f"{first.model} {first.variant}, batch {first.batch} {first.mode}: {first.failed}"
        )
