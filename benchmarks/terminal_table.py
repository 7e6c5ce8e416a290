"""Tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table
from rich.text import Text


def narrow_table(
    words: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str | Text]] = ()
) -> Table:
    """As narrow as it gets: columns of words, then columns of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*plain(row))
    return table


def plain(cells: Iterable[str | Text]) -> Iterator[Text]:
    """Cells as they are written; rich reads brackets in a string as its own markup."""
    return (cell if isinstance(cell, Text) else Text(cell) for cell in cells)


def heading(title: str, about: str) -> Text:
    """A line above a table."""
    return Text.assemble((title, "bold"), f": {about}")
