"""A user's function, named as ``package.module:function`` or ``path/file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from attn_export.errors import UsageError


def import_place(place: str) -> ModuleType:
    """Import what stands before the colon; it runs the user's code.

    Raises:
        UsageError: if there is no such module or file.
        Exception: whatever the code itself raises.
    """
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


def find_function(module: ModuleType, place: str, name: str) -> Callable[..., Any]:
    """The function of an imported place.

    Raises:
        UsageError: if it has none of this name; those that it has are listed.
    """
    function = getattr(module, name, None)
    if not callable(function):
        callables = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise UsageError(f"{place} has no function {name!r}; it has: {', '.join(callables)}")
    found: Callable[..., Any] = function
    return found


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
