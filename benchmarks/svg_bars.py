"""One bar with its interval; its name and value are text of the page beside it."""

from __future__ import annotations

from .report_document import Bar

HEIGHT = 16


def bar(shown: Bar, largest: float) -> str:
    """A bar as long as its share of the largest value that the chart shows.

    Lengths are percentages, so that it fills whatever room it gets.
    """

    def at(value: float) -> str:
        return f"{100 * min(max(value / largest, 0.0), 1.0):.2f}%"

    parts = [f'<rect x="0" y="1" height="{HEIGHT - 2}" width="{at(shown.value)}" rx="2"/>']
    if shown.low is not None and shown.high is not None:
        low, high, middle = at(shown.low), at(shown.high), HEIGHT / 2
        for kind in ("halo", "whisker"):
            parts.append(
                f'<line x1="{low}" x2="{high}" y1="{middle}" y2="{middle}" class="{kind}"/>'
            )
            parts += [
                f'<line x1="{x}" x2="{x}" y1="3" y2="{HEIGHT - 3}" class="{kind}"/>'
                for x in (low, high)
            ]
    return (
        f'<svg class="bar k{shown.kind}" width="100%" height="{HEIGHT}" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )


def largest_of(bars: list[Bar]) -> float:
    """The value at the right end of a chart."""
    return max((max(b.value, b.high or 0.0) for b in bars), default=0.0) or 1.0
