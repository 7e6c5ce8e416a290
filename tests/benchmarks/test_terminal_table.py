"""Tables as they come out on a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.text import Text

from attn_export.benchmarks.terminal_table import narrow_table


@pytest.mark.parametrize("cell", ["[bold]a[/bold]", "[/x]", "a[b]", ":smile:"])
def test_a_string_is_printed_as_it_is(cell: str) -> None:
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(narrow_table(["name"], ["n"], [[cell, "1"]]))
    assert capture.get().splitlines()[1].split() == [cell, "1"]


def test_a_styled_cell_keeps_its_style() -> None:
    table = narrow_table([""], [], [[Text("x", style="red")]])
    (cell,) = table.columns[0].cells
    assert isinstance(cell, Text)
    assert cell.style == "red"
