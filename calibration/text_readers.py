"""Readers of text files: .jsonl, .csv and .txt."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attn_export.errors import InputError

from .records import TEXT, Columns, Content, Record, wanted_columns


def txt_records(path: Path, columns: Columns) -> Iterator[Record]:
    """One text a line; blank lines are skipped."""
    yield from _lines(path)


def jsonl_records(path: Path, columns: Columns) -> Iterator[Record]:
    """One JSON object a line; blank lines are skipped."""
    for where, line in _lines(path):
        yield where, line if isinstance(line, InputError) else _json_object(line, where)


def csv_records(path: Path, columns: Columns) -> Iterator[Record]:
    """A header, then a row a record: numbers as a JSON list or between spaces, or a text.

    Raises:
        InputError: if the header names no column that can be used.
    """
    # A byte that is not UTF-8 becomes a surrogate, which the check of its row finds.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{path}, line {rows.line_num + 1}"
            try:
                cells = next(rows, None)
            except csv.Error as error:
                if header is None:
                    raise InputError(f"{where} is not a CSV header ({error})") from error
                yield where, InputError(f"{where} is not CSV ({error}); correct or remove it")
                continue
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
                wanted_columns(header, columns, path)
                continue
            yield where, _csv_row(header, cells, columns, where)


def _lines(path: Path) -> Iterator[tuple[str, str | InputError]]:
    """The lines that are not blank, each with its place."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                yield where, InputError(f"{where} is not UTF-8 ({error}); convert the file")
                continue
            if line:
                yield where, line


def _json_object(line: str, where: str) -> Content:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InputError(f"{where} is not JSON ({error}); write one object a line")
    if not isinstance(row, dict):
        return InputError(f"{where} is {line[:40]}; it must be an object, {{...}}")
    return row


def _csv_row(header: list[str], cells: list[str], columns: Columns, where: str) -> Content:
    if len(cells) != len(header):
        return InputError(
            f"{where} has {len(cells)} values, the header names {len(header)}; correct that row"
        )
    row: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        if name == TEXT:
            row[name] = cell
        elif name in columns and (cell.strip() or TEXT not in header):
            try:
                row[name] = _numbers(cell)
            except (ValueError, RecursionError):
                return InputError(
                    f"{where}: {name} is {cell[:40]!r}; write a JSON list, or numbers with "
                    "spaces between them"
                )
    return row


def _numbers(cell: str) -> Any:
    stripped = cell.strip()
    return json.loads(stripped if stripped[:1] == "[" else f"[{','.join(stripped.split())}]")
