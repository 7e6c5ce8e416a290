"""What a report says, apart from how it is written: sections made of texts, tables and charts.

:mod:`.html_page` and :mod:`.markdown_report` each write the same document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .report_numbers import number, plural

Status: TypeAlias = Literal["pass", "fail", "warning", "info"]
WORDS: dict[Status, str] = {
    "pass": "✓ pass",
    "fail": "✗ fail",
    "warning": "! warning",
    "info": "· note",
}


@dataclass(frozen=True, kw_only=True)
class Link:
    """A text that leads to another page: an address, or a path beside the report."""

    text: str
    target: str

    @property
    def is_safe(self) -> bool:
        """Whether it may be followed: https, or a relative path; never ``javascript:``."""
        return self.target.startswith("https://") or ":" not in self.target


Cell: TypeAlias = str | Link


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One large number at the top of the page."""

    title: str
    value: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line that a reader must not miss."""

    status: Status
    text: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph; ``is_missing`` where it stands for results that are not there."""

    text: str
    is_missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Args:
        words: how many columns from the left hold words; the others hold numbers. The first one
            names the row.
        is_long: it may be folded away where the page can do that.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    words: int = 1
    is_long: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Args:
        kind: the position of what it shows in the chart's ``kinds``.
        low: of the interval, or None where there is none; so is ``high``.
    """

    label: str
    value: float
    text: str
    kind: int = 0
    low: float | None = None
    high: float | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars from zero, one under the other; ``kinds`` names their colours."""

    caption: str
    kinds: tuple[str, ...]
    bars: Sequence[Bar]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Args:
        points: (x, y), from left to right.
        kind: chooses colour and marker; the same in charts that are compared.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: int = 0
    is_limit: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines through positive numbers; both axes are logarithmic.

    Args:
        y_range: the least and the largest y, shared by charts that are compared.
    """

    caption: str
    x: str
    y: str
    series: Sequence[Series]
    y_range: tuple[float, float] | None = None

    def table(self) -> Table:
        """Its numbers: a row for each x, a column for each line."""
        xs = sorted({x for series in self.series for x, _ in series.points})
        values = [dict(series.points) for series in self.series]
        return Table(
            caption="The numbers",
            columns=(self.x, *(series.name for series in self.series)),
            rows=[
                (number(x), *(number(found[x]) if x in found else "-" for found in values))
                for x in xs
            ],
            is_long=True,
        )


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts in bins; ``edges`` has one more than ``counts``. ``marks`` are named values of x."""

    caption: str
    x: str
    edges: Sequence[float]
    counts: Sequence[int]
    marks: Sequence[tuple[str, float]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG; ``file`` is its path from the report."""

    caption: str
    content: bytes
    file: str


Part: TypeAlias = Verdict | Note | Table | Bars | Lines | Histogram | Picture


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what follows; charts that follow each other may stand side by side."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]
    footer: str

    @property
    def summary(self) -> str:
        """How many verdicts of each kind: ``2 failed, 1 warning, 7 passed``."""
        counts = Counter(verdict.status for verdict in self.verdicts)
        said: dict[Status, str] = {
            "fail": f"{counts['fail']} failed",
            "warning": plural(counts["warning"], "warning"),
            "pass": f"{counts['pass']} passed",
        }
        return ", ".join(text for kind, text in said.items() if counts[kind])
