"""A histogram over a logarithmic axis, with named values marked."""

from __future__ import annotations

from collections.abc import Iterator

from .report_document import Histogram
from .report_numbers import number
from .svg_axes import BOTTOM, LEFT, RIGHT, WIDTH, CountAxis, LogAxis, chart, line, text
from .svg_axes import x_axis as draw_x
from .svg_axes import y_axis as draw_y

HEIGHT = 250.0
MARKS = 62.0  # the title and three rows of marks above the bars


def histogram(shown: Histogram) -> str:
    """The chart; bins without counts at both ends are cut off.

    Raises:
        ValueError: if there are no counts, or not one more edge than counts.
    """
    if len(shown.edges) != len(shown.counts) + 1 or not any(shown.counts):
        raise ValueError(f"{len(shown.counts)} counts do not fit {len(shown.edges)} edges")
    filled = [index for index, count in enumerate(shown.counts) if count]
    first, last = filled[0], filled[-1] + 1
    marks = [value for _, value in shown.marks]
    low = min([shown.edges[first], *marks])
    high = max([shown.edges[last], *marks])
    bottom = HEIGHT - BOTTOM
    x = LogAxis(low=low / 1.02, high=high * 1.02, start=LEFT, end=WIDTH - RIGHT)
    y = CountAxis(high=max(shown.counts), start=bottom, end=MARKS)
    parts = [
        *draw_y([(n, y.at(n)) for n in y.ticks()], LEFT, x.end, "count"),
        *_columns(shown, x, y, bottom),
    ]
    parts += [*draw_x(x, bottom, shown.x, x.ticks()), *_marks(shown, x, bottom)]
    told = ", ".join(f"{name} {number(value)}" for name, value in shown.marks)
    return chart(HEIGHT, f"{shown.caption}: {shown.x}: {told}", parts)


def _columns(shown: Histogram, x: LogAxis, y: CountAxis, bottom: float) -> Iterator[str]:
    for index, count in enumerate(shown.counts):
        if count:
            left, top = x.at(shown.edges[index]), y.at(count)
            width = max(x.at(shown.edges[index + 1]) - left - 1, 1.0)
            yield (
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{bottom - top:.1f}" class="column"/>'
            )


def _marks(shown: Histogram, x: LogAxis, bottom: float) -> Iterator[str]:
    for row, (name, value) in enumerate(shown.marks):
        place, height = x.at(value), 26.0 + 13 * row
        yield line(place, height - 8, place, bottom, "mark")
        is_left = place > (x.start + x.end) / 2
        yield text(
            place + (-4 if is_left else 4),
            height,
            f"{name} {number(value)}",
            anchor="end" if is_left else "start",
            kind="strong",
        )
