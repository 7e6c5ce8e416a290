"""A report as one HTML file that loads nothing: style, charts and pictures are in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from .html_parts import part, verdict
from .html_style import STYLE
from .report_document import Document, Histogram, Lines, Part, Section, Tile

# Even if something hostile got through, a browser would neither run nor fetch it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html_page(document: Document) -> str:
    """The whole file."""
    title, sections = escape(document.title), document.sections
    links = "".join(f'<a href="#{anchor(s.title)}">{escape(s.title)}</a>' for s in sections)
    verdicts = "".join(verdict(entry) for entry in document.verdicts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><header><h1>{title}</h1>"
        f'<p class="soft">{escape(document.subtitle)}</p>'
        f'<dl class="tiles">{"".join(map(_tile, document.tiles))}</dl></header>\n<main>'
        f'<section aria-label="Verdicts"><p><b>Verdicts:</b> '
        f"{document.summary}</p>"
        f'<ul class="verdicts">{verdicts}</ul></section>'
        f'<nav aria-label="Sections">{links}</nav>'
        f"{''.join(_section(section) for section in sections)}</main>\n"
        f"<footer><p>{escape(document.footer)}</p></footer></body></html>\n"
    )


def anchor(title: str) -> str:
    """The name of a section in an address.

    >>> anchor("INT8: accuracy")
    'int8-accuracy'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _tile(tile: Tile) -> str:
    return (
        f'<div class="tile"><dt>{escape(tile.title)}</dt>'
        f'<dd class="value">{escape(tile.value)}</dd>'
        f'<dd class="detail">{escape(tile.detail)}</dd></div>'
    )


def _section(section: Section) -> str:
    name = anchor(section.title)
    return (
        f'\n<section aria-labelledby="{name}"><h2 id="{name}">{escape(section.title)}</h2>'
        f"{''.join(_parts(section.parts))}</section>"
    )


def _parts(parts: Sequence[Part]) -> Iterator[str]:
    """The parts; small charts that follow each other stand side by side."""
    for is_chart, group in groupby(parts, key=lambda shown: isinstance(shown, Lines | Histogram)):
        content = "".join(part(shown) for shown in group)
        yield f'<div class="charts">{content}</div>' if is_chart else content
