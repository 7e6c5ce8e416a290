"""Rows from a user's Python function: ``package.module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from attn_export.errors import AttnExportError, InputError, UsageError

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
    module = _guarded(f"importing {place}", lambda: _import(place))
    function = getattr(module, name, None)
    if not callable(function):
        callables = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise UsageError(f"{place} has no function {name!r}; it has: {', '.join(callables)}")
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


def _import(place: str) -> ModuleType:
    if place.endswith(".py"):
        return _import_file(Path(place))
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # an installed command does not see it otherwise
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise UsageError(f"no module {place!r} (looked in {Path.cwd()} and sys.path)") from None
        raise


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no file {path}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # its own imports work as when it is run
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
