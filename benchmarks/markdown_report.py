"""A report as Markdown (GitHub's): the same texts and tables; charts as their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .report_document import (
    WORDS,
    Bars,
    Cell,
    Document,
    Histogram,
    Lines,
    Link,
    Note,
    Part,
    Table,
    Verdict,
)
from .report_numbers import number

_MARKUP = re.compile(r"[\\`*|~]|(?<!\w)_|_(?!\w)|\](?=[(\[])|^(?=[#+-]\s|\d+\.\s)")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def markdown_report(document: Document) -> str:
    """The whole file."""
    blocks = [f"# {plain(document.title)}", plain(document.subtitle)]
    if document.tiles:
        rows = [(tile.title, tile.value, tile.detail) for tile in document.tiles]
        blocks.append(_table(Table(caption="", columns=("", "", ""), rows=rows, words=3)))
    blocks.append(f"Verdicts: {document.summary}")
    blocks.append("\n".join(_verdict(entry) for entry in document.verdicts))
    for section in document.sections:
        blocks.append(f"## {plain(section.title)}")
        blocks += [block for shown in section.parts for block in blocks_of(shown)]
    return "\n\n".join([*filter(None, blocks), "---", plain(document.footer)]) + "\n"


def plain(text: str) -> str:
    r"""Text that stays text: no markup, no HTML, one line.

    >>> plain("a|b <i> *c*")
    'a\\|b &lt;i&gt; \\*c\\*'
    """
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()).translate(_ENTITIES))


def blocks_of(shown: Part) -> Iterator[str]:
    """The paragraphs and tables of any part."""
    if isinstance(shown, Verdict):
        yield _verdict(shown)
    elif isinstance(shown, Note):
        yield f"*{plain(shown.text)}*" if shown.is_missing else plain(shown.text)
    elif isinstance(shown, Table):
        yield from (plain(shown.caption), _table(shown))
    elif isinstance(shown, Bars):
        rows = [(b.label, shown.kinds[b.kind], b.text, b.detail) for b in shown.bars]
        table = Table(caption="", columns=("", "What", "Value", ""), rows=rows, words=2)
        yield from (plain(shown.caption), _table(table))
    elif isinstance(shown, Lines):
        yield from (f"{plain(shown.caption)}: {plain(shown.y)}", _table(shown.table()))
    elif isinstance(shown, Histogram):
        marks = ", ".join(f"{name} {number(value)}" for name, value in shown.marks)
        yield plain(f"{shown.caption}: {shown.x}: {marks} ({sum(shown.counts)} runs)")
    else:
        yield f"![{plain(shown.caption)}]({shown.file})"


def _verdict(shown: Verdict) -> str:
    return f"- **{WORDS[shown.status]}** {plain(shown.text)}"


def _table(shown: Table) -> str:
    rules = (":--" if index < shown.words else "--:" for index in range(len(shown.columns)))
    lines = [(plain(name) for name in shown.columns), rules]
    lines += [(_cell(content) for content in row) for row in shown.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(content: Cell) -> str:
    if not isinstance(content, Link):
        return plain(content)
    if not content.is_safe or re.search(r"[\s()<>|]", content.target):
        return plain(content.text)
    return f"[{plain(content.text)}]({content.target})"
