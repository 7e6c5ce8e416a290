"""Numbers as a report writes them: three digits, thousands parted, intervals with their ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: float) -> str:
    """Three significant digits, or whole from 100 on: 12,345; 98.7; 1.23; 0.0045."""
    size = abs(value)
    for least, form in ((99.95, ",.0f"), (9.995, ".1f"), (0.9995, ".2f")):
        if size >= least:
            return format(value, form)
    return f"{value:.3g}"


def spread(interval: Mapping[str, Any]) -> str:
    """The ends of an interval: ``[98.1 to 103]``."""
    return f"[{number(interval['low'])} to {number(interval['high'])}]"


def measured(interval: Mapping[str, Any], unit: str = "") -> str:
    """A median with its interval: ``101 [98.1 to 103]``."""
    return f"{number(interval['median'])}{unit} {spread(interval)}"


def percent(share: float) -> str:
    """A share as a percentage: ``12.3%``; none of what is short of all reads as all."""
    digits = 2 if 0.999 <= share < 1 else 1
    return f"{100 * share:.{digits}f}%"


def bytes_text(size: float) -> str:
    """A size in MiB."""
    return f"{number(size / 2**20)} MiB"


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``1 engine``, ``3 engines``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
