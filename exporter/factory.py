"""Call a user's factory: ``package.module:function`` or ``path/file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from attn_export.errors import AttnExportError, BuildFailed, UsageError


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a factory returned: the module, and maybe examples and axis names by input."""

    module: nn.Module
    examples: dict[str, torch.Tensor] | None = None
    axes: dict[str, dict[int, str]] | None = None


def call_factory(reference: str) -> Made:
    """Import and call a factory.

    It returns an ``nn.Module``, or a tuple ``(module, example_inputs, axes)`` where
    ``example_inputs`` maps input names to tensors and ``axes`` maps input names to
    ``{dimension: "batch" or "sequence"}``.

    Raises:
        UsageError: if the place or the name does not exist.
        BuildFailed: if importing or calling it raised, or it returned something else.
    """
    place, _, name = reference.rpartition(":")
    module = _import(place)
    factory: Callable[[], Any] | None = getattr(module, name, None)
    if not callable(factory):
        callables = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise UsageError(f"{place} has no function {name!r}; it has: {', '.join(callables)}")
    try:
        result = factory()
    except AttnExportError:
        raise
    except Exception as error:
        raise BuildFailed(f"the factory {reference} raised {_say(error)}") from error
    return _checked(reference, result)


def _import(place: str) -> ModuleType:
    try:
        if place.endswith(".py"):
            return _import_file(Path(place))
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # an installed command does not see it otherwise
        return importlib.import_module(place)
    except AttnExportError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise UsageError(f"no module {place!r} (looked in {Path.cwd()} and sys.path)") from None
        raise BuildFailed(f"importing {place} failed: {_say(error)}") from error
    except Exception as error:
        raise BuildFailed(f"importing {place} raised {_say(error)}") from error


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


def _checked(reference: str, result: Any) -> Made:
    if isinstance(result, nn.Module):
        return Made(module=result)
    if (
        isinstance(result, tuple)
        and len(result) == 3
        and isinstance(result[0], nn.Module)
        and isinstance(result[1], Mapping)
        and isinstance(result[2], Mapping)
        and all(isinstance(tensor, torch.Tensor) for tensor in result[1].values())
    ):
        axes = {name: dict(dims) for name, dims in result[2].items()}
        return Made(module=result[0], examples=dict(result[1]), axes=axes)
    raise BuildFailed(
        f"the factory {reference} returned {type(result).__name__}; it must return an nn.Module "
        "or (nn.Module, {input name: example tensor}, {input name: {dimension: axis name}})"
    )


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
