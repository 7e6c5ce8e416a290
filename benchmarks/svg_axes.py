"""Axes of the charts: where a value lies, and which values get a tick.

Charts are drawn 360 wide, so that their text stays readable at the width of a phone; colours are
CSS classes of the page (``c0``, ``c1``, ...), so that they follow its light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .report_numbers import number

WIDTH = 360.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 24.0, 40.0
LEAST_TICKS, MOST_TICKS = 3, 7


@dataclass(frozen=True, kw_only=True)
class LogAxis:
    """A logarithmic axis from ``low`` to ``high`` (both positive), drawn from ``start`` to ``end``.

    >>> LogAxis(low=1, high=100, start=0, end=200).at(10)
    100.0
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies; those outside lie on the nearer end."""
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + min(share, 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; powers alone where those are too many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**power for power in powers for step in steps]
            found = [v for v in found if self.low * 0.999 <= v <= self.high * 1.001]
            if len(found) <= MOST_TICKS:
                break
        return found if len(found) >= LEAST_TICKS else self._even_ticks()

    def _even_ticks(self) -> list[float]:
        """Where the axis is too short for those: evenly spaced round values."""
        power = 10.0 ** math.floor(math.log10(self.high - self.low))
        for step in (power, power / 2, power / 5, power / 10):
            first, last = math.ceil(self.low / step), math.floor(self.high / step)
            if last - first + 1 >= LEAST_TICKS:
                break
        return [step * index for index in range(first, last + 1)]


def log_axis(values: Sequence[float], start: float, end: float, *, room: float = 1.25) -> LogAxis:
    """An axis that holds all positive values of some, with room at both ends.

    Raises:
        ValueError: if none is positive and finite.
    """
    shown = [value for value in values if 0 < value < math.inf]
    if not shown:
        raise ValueError("a logarithmic axis needs a positive value")
    return LogAxis(low=min(shown) / room, high=max(shown) * room, start=start, end=end)


@dataclass(frozen=True, kw_only=True)
class CountAxis:
    """An axis of counts from zero to ``high`` (at least 1), drawn from ``start`` to ``end``."""

    high: int
    start: float
    end: float

    def at(self, count: int) -> float:
        """Where a count lies."""
        return self.start + count / self.high * (self.end - self.start)

    def ticks(self) -> list[int]:
        """Two to six whole, round counts."""
        power = 10 ** math.floor(math.log10(self.high))
        steps = (power, power // 2, power // 5, power // 10)
        step = next((s for s in steps if s and self.high // s >= LEAST_TICKS), 1)
        return [*range(0, self.high + 1, step)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else number(value)


def text(x: float, y: float, content: str, *, anchor: str = "middle", kind: str = "") -> str:
    """A label; whatever it holds is escaped."""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def x_axis(axis: LogAxis, bottom: float, title: str, ticks: Sequence[float]) -> Iterator[str]:
    """The line at the bottom, its ticks and its title."""
    yield line(axis.start, bottom, axis.end, bottom, "axis")
    for value in ticks:
        yield line(axis.at(value), bottom, axis.at(value), bottom + 4, "axis")
        yield text(axis.at(value), bottom + 16, _short(value))
    yield text((axis.start + axis.end) / 2, bottom + 33, title, kind="title")


def y_axis(
    ticks: Sequence[tuple[float, float]], left: float, right: float, title: str
) -> Iterator[str]:
    """Lines across the chart with their values, and the title above; ``ticks``: value, height."""
    for value, height in ticks:
        yield line(left, height, right, height, "grid")
        yield text(left - 6, height + 4, _short(value), anchor="end")
    yield text(4, 12, title, anchor="start", kind="title")


def chart(height: float, label: str, parts: Sequence[str]) -> str:
    """The drawing, with a text for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}" '
        f'class="chart">{"".join(parts)}</svg>'
    )
