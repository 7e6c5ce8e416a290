"""Rows from a user's Python function: ``package.module:function`` or ``file.py:function``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attn_export.errors import AttnExportError, InputError
from attn_export.user_code import find_function, import_place

from .records import IDS, Content, Record


def is_factory(source: str) -> bool:
    """Whether a source is written as ``place:function`` and is no file."""
    place, _, name = source.rpartition(":")
    return bool(place) and name.isidentifier() and not Path(source).exists()


def factory_records(reference: str) -> Iterator[Record]:
    """The items of the iterable that a function returns: ids, texts or mappings.

    Raises:
        UsageError: if the place or the function does not exist.
        InputError: if importing, calling or iterating it raised, or it returned no iterable.
    """
    place, _, name = reference.rpartition(":")
    module = _guarded(f"importing {place}", lambda: import_place(place))
    function = find_function(module, place, name)
    made = _guarded(reference, function)
    if not isinstance(made, Iterable) or isinstance(made, str | bytes | Mapping):
        raise InputError(
            f"{reference} returned {type(made).__name__}; it must return an iterable of ids, "
            "texts or mappings from input name to array"
        )
    return _records(reference, iter(made))


def _records(reference: str, items: Iterator[Any]) -> Iterator[Record]:
    end = object()
    index = 0
    while True:
        where = f"{reference}, item {index} (from 0)"
        item = _guarded(where, lambda: next(items, end))
        if item is end:
            return
        yield where, _content(item)
        index += 1


def _content(item: Any) -> Content:
    return item if isinstance(item, str | Mapping) else {IDS: item}


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except AttnExportError:
        raise
    except Exception as error:
        raise InputError(f"{what} raised {type(error).__name__}: {error}") from error
