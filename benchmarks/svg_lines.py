"""Lines between two logarithmic axes, each named at its right end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .report_document import Lines, Series
from .svg_axes import BOTTOM, LEFT, TOP, WIDTH, LogAxis, chart, line, log_axis, text
from .svg_axes import x_axis as draw_x
from .svg_axes import y_axis as draw_y

HEIGHT = 270.0
LETTER, MOST_LETTERS = 7.0, 20  # of the names at the right
TICK_ROOM = 26.0
ROW = 14.0  # least distance of two names
MARKERS, COLOURS = 4, 6
LIMIT = "limit"


def lines(shown: Lines) -> str:
    """The chart.

    Raises:
        ValueError: if there is no positive value to show.
    """
    names = [short(series.name) for series in shown.series]
    right, bottom = WIDTH - 14 - LETTER * max(map(len, names)), HEIGHT - BOTTOM
    points = [point for series in shown.series for point in series.points]
    xs = sorted({x for x, _ in points})
    x = log_axis(xs, LEFT, right, room=1.12)
    values = [value for _, value in points] if shown.y_range is None else list(shown.y_range)
    y = log_axis(values, bottom, TOP)
    parts = [
        *draw_y([(v, y.at(v)) for v in y.ticks()], LEFT, right, shown.y),
        *draw_x(x, bottom, shown.x, _ticks(shown, xs, x)),
    ]
    heights = apart([y.at(series.points[-1][1]) for series in shown.series], TOP, bottom)
    for series, name, height in zip(shown.series, names, heights, strict=True):
        parts += _series(series, x, y)
        end, colour = y.at(series.points[-1][1]), _colour(series)
        start = x.at(series.points[-1][0]) + 5
        parts.append(line(start, end, right + 8, height, f"line leader {colour}"))
        kind = LIMIT if series.is_limit else "name"
        parts.append(text(right + 11, height + 4, name, anchor="start", kind=kind))
    return chart(HEIGHT, _label(shown), parts)


def short(name: str) -> str:
    """A name as far as it has room; what tells engines apart is at its end."""
    return name if len(name) <= MOST_LETTERS else f"…{name[1 - MOST_LETTERS :]}"


def _series(series: Series, x: LogAxis, y: LogAxis) -> Iterator[str]:
    places = [(x.at(a), y.at(b)) for a, b in series.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    yield f'<polyline points="{path}" class="line {_colour(series)}"/>'
    if not series.is_limit:
        yield from (marker(a, b, series.kind) for a, b in places)


def _colour(series: Series) -> str:
    return LIMIT if series.is_limit else f"c{series.kind % COLOURS}"


def marker(x: float, y: float, which: int) -> str:
    """Circle, square, triangle or diamond: what tells series apart besides their colour."""
    kind = f'class="dot c{which % COLOURS}"'
    if which % MARKERS == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {kind}/>'
    corners = {
        1: ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
        2: ((-4.6, 3.6), (4.6, 3.6), (0.0, -4.6)),
        3: ((0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)),
    }[which % MARKERS]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" {kind}/>'


def apart(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """The heights, moved as far as names need that must not lie on each other.

    >>> apart([100.0, 101.0, 50.0], 20, 250)
    [100.0, 114.0, 50.0]
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = [0.0] * len(heights)
    last = top - ROW
    for index in order:
        last = placed[index] = max(heights[index], last + ROW)
    over = max(0.0, last - bottom)
    for index in reversed(order):  # what was pushed out at the bottom pushes back
        if not over:
            break
        limit = bottom if index == order[-1] else placed[order[order.index(index) + 1]] - ROW
        placed[index] = min(placed[index], limit)
    return placed


def _ticks(shown: Lines, xs: Sequence[float], axis: LogAxis) -> Sequence[float]:
    """The measured values as far as their numbers have room, from the largest down."""
    if any(series.is_limit for series in shown.series):
        return axis.ticks()  # a limit is known everywhere
    found: list[float] = []
    for x in reversed(xs):
        if not found or axis.at(found[-1]) - axis.at(x) >= TICK_ROOM:
            found.append(x)
    return found


def _label(shown: Lines) -> str:
    ends = "; ".join(
        f"{s.name} from {s.points[0][1]:.4g} to {s.points[-1][1]:.4g}" for s in shown.series
    )
    return f"{shown.caption}: {shown.y} over {shown.x}: {ends}"
