"""One part of a report as HTML. Everything that comes from data is escaped here."""

from __future__ import annotations

import base64
from html import escape

from .report_document import (
    WORDS,
    Bars,
    Cell,
    Histogram,
    Lines,
    Link,
    Note,
    Part,
    Picture,
    Table,
    Verdict,
)
from .svg_bars import bar, largest_of
from .svg_histogram import histogram
from .svg_lines import lines


def part(shown: Part) -> str:
    """The HTML of any part."""
    if isinstance(shown, Verdict):
        return f'<ul class="verdicts">{verdict(shown)}</ul>'
    if isinstance(shown, Note):
        kind = ' class="missing"' if shown.is_missing else ""
        return f"<p{kind}>{escape(shown.text)}</p>"
    return _table(shown) if isinstance(shown, Table) else _figure(shown.caption, _drawn(shown))


def _drawn(shown: Bars | Lines | Histogram | Picture) -> str:
    if isinstance(shown, Bars):
        return _bars(shown)
    if isinstance(shown, Lines):
        return lines(shown) + _table(shown.table())
    if isinstance(shown, Histogram):
        return histogram(shown)
    content = base64.b64encode(shown.content).decode("ascii")
    return f'<img alt="{escape(shown.caption)}" src="data:image/png;base64,{content}">'


def verdict(shown: Verdict) -> str:
    """One line of the list of verdicts."""
    word = WORDS[shown.status]
    return f'<li class="verdict {shown.status}"><b>{word}</b><span>{escape(shown.text)}</span></li>'


def cell(content: Cell) -> str:
    """A cell's text; a link only where it leads to a web page or a file beside the report."""
    if not isinstance(content, Link):
        return escape(content)
    if not content.is_safe:
        return escape(content.text)
    return f'<a href="{escape(content.target)}">{escape(content.text)}</a>'


def _table(shown: Table) -> str:
    head = "".join(
        f'<th scope="col"{_kind(shown, index)}>{escape(name)}</th>'
        for index, name in enumerate(shown.columns)
    )
    rows = "".join(f"<tr>{_row(shown, row)}</tr>" for row in shown.rows)
    caption = escape(shown.caption)
    made = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )
    return f"<details><summary>{caption}</summary>{made}</details>" if shown.is_long else made


def _row(shown: Table, row: tuple[Cell, ...]) -> str:
    return "".join(
        f'<th scope="row"{_kind(shown, index)}>{cell(content)}</th>'
        if index == 0
        else f"<td{_kind(shown, index)}>{cell(content)}</td>"
        for index, content in enumerate(row)
    )


def _kind(shown: Table, index: int) -> str:
    return ' class="w"' if index < shown.words else ""


def _bars(shown: Bars) -> str:
    largest = largest_of([*shown.bars])
    present = sorted({entry.kind for entry in shown.bars})
    legend = "".join(
        f'<li><span class="swatch k{kind}"></span>{escape(shown.kinds[kind])}</li>'
        for kind in present
    )
    rows = "".join(
        f'<li><span class="label">{escape(entry.label)}</span>'
        f'<span class="text">{escape(entry.text)} '
        f'<span class="detail">{escape(entry.detail)}</span></span>{bar(entry, largest)}</li>'
        for entry in shown.bars
    )
    legend = f'<ul class="legend">{legend}</ul>' if len(present) > 1 else ""
    return f'{legend}<ul class="bars">{rows}</ul>'


def _figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"
