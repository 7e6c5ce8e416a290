"""What the readers of all formats give: a row's place and what it holds, not yet checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attn_export.errors import InputError

# A row's values by column, a text, or why the row cannot be read at all.
Content = Mapping[str, Any] | str | InputError
# Where a row stands in its source, and what it holds.
Record = tuple[str, Content]
# The columns that may be used -> whether the first axis of a sample is the sequence.
Columns = Mapping[str, bool]

IDS = "input_ids"
MASK = "attention_mask"
TEXT = "text"


def wanted_columns(found: Iterable[str], columns: Columns, where: object) -> list[str]:
    """The columns that are there and may be used, in their order.

    Raises:
        InputError: if there are none.
    """
    names = list(found)
    wanted = [name for name in names if name in columns]
    if not wanted:
        listed = ", ".join(map(repr, names)) or "none"
        raise InputError(
            f"{where} has the columns {listed}; it needs {' or '.join(map(repr, usable(columns)))}"
        )
    return wanted


def usable(columns: Columns) -> list[str]:
    """The columns that can make a request: all but the mask."""
    return [name for name in columns if name != MASK]
