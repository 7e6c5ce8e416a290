"""What INT8 costs, part by part, and what is left out of it: for the terminal, JSON and a build."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attn_export.bundle import write_atomic

from .accuracy import Accuracy
from .sensitivity_parts import Kind

_TITLES: dict[Kind, str] = {
    "layer": "one layer in INT8",
    "role": "one role in INT8",
    "node": "one node in INT8",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One part in INT8, all else in FP32; of several outputs the worst.

    Args:
        nodes: those that read quantized tensors.
        sqnr_db: signal to quantization noise; None without any noise.
        labels: share of equal labels; None where no output holds classes.
        cosine: mean over the requests.
    """

    name: str
    kind: Kind
    nodes: tuple[str, ...]
    sqnr_db: float | None
    labels: float | None
    cosine: float

    @property
    def noise(self) -> float:
        """The power of the noise, as a share of the signal's."""
        return 0.0 if self.sqnr_db is None else float(10 ** (-self.sqnr_db / 10))


@dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """The result of :func:`~attn_export.benchmarks.sensitivity.measure_sensitivity`.

    Args:
        rows: layers, roles, and the nodes that were candidates to be excluded; the most harmful of
            each kind first.
        excludes: nodes that have to stay FP32 besides those that the options exclude, in graph
            order.
        nodes: how many read quantized tensors where nothing is excluded.
        before: INT8 without excludes over all requests, one result for each output; ``after`` with
            them.
        requests: how many ``before`` and ``after`` are over; the rows are over ``sampled`` ones.
        evaluations: quantized graphs that were run.
        notes: what a reader should know.
    """

    rows: tuple[Row, ...]
    excludes: tuple[str, ...]
    nodes: int
    before: tuple[Accuracy, ...]
    after: tuple[Accuracy, ...]
    min_agreement: float
    min_cosine: float | None
    requests: int
    sampled: int
    evaluations: int
    notes: tuple[str, ...] = ()

    def patterns(self) -> list[str]:
        """The excludes as placement takes them."""
        return [re.escape(name) for name in self.excludes]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "rows": [{**vars(row), "nodes": list(row.nodes)} for row in self.rows],
            "excludes": list(self.excludes),
            "nodes": self.nodes,
            "before": [item.to_json() for item in self.before],
            "after": [item.to_json() for item in self.after],
            "min_agreement": self.min_agreement,
            "min_cosine": self.min_cosine,
            "requests": self.requests,
            "sampled": self.sampled,
            "evaluations": self.evaluations,
            "notes": list(self.notes),
        }

    def rows_of(self, kind: Kind) -> list[Row]:
        """The rows of one kind, the most harmful first."""
        return [row for row in self.rows if row.kind == kind]

    def excluded_of(self, row: Row) -> int:
        """How many of a row's nodes are excluded."""
        return len(set(row.nodes) & set(self.excludes))


def write_excludes(report: SensitivityReport, path: Path) -> None:
    """Write the names of the nodes to exclude, one a line; none: an empty file.

    Raises:
        HostError: if it cannot be written.
    """
    write_atomic(path, "".join(f"{name}\n" for name in report.excludes))


def render_sensitivity(report: SensitivityReport) -> RenderableType:
    """A table of each kind, then INT8 as a whole without and with the excludes."""
    tables = [_table(report, kind, rows) for kind in _TITLES if (rows := report.rows_of(kind))]
    return Group(*tables, *_summary(report))


def _table(report: SensitivityReport, kind: Kind, rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(_TITLES[kind], overflow="fold")
    for name in ("SQNR\ndB", "same\nlabel", "cosine", "kept\nFP32"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        excluded = report.excluded_of(row)
        kept = f"{excluded} of {len(row.nodes)}" if excluded else ""
        table.add_row(
            Text(row.name, style="bold" if excluded else ""),
            "no noise" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
            "" if row.labels is None else f"{row.labels:.4f}",
            f"{row.cosine:.5f}",
            kept,
        )
    return table


def _summary(report: SensitivityReport) -> Iterator[Text]:
    for result in report.before:
        yield Text(f"all {report.nodes} nodes in INT8: {_described(result)}")
    if report.excludes:
        left = report.nodes - len(report.excludes)
        for result in report.after:
            yield Text(f"{left} in INT8, {len(report.excludes)} kept in FP32: {_described(result)}")
    else:
        yield Text("nothing has to be excluded")
    few = "" if report.sampled == report.requests else f"; one part alone: {report.sampled} of them"
    yield Text(f"over {report.requests} requests{few}", style="dim")
    yield from (Text(note, style="dim") for note in report.notes)


def _described(result: Accuracy) -> str:
    noise = "no noise" if result.sqnr_db is None else f"{result.sqnr_db:.1f} dB"
    labels = "" if result.labels is None else f"same label {result.labels:.4f}, "
    return f"{result.output}: {labels}cosine {result.cosine:.5f}, {noise}"
