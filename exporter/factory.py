"""Call a user's factory: ``package.module:function`` or ``path/file.py:function``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from attn_export.errors import AttnExportError, BuildFailed
from attn_export.user_code import find_function, import_place


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
    factory = find_function(_import(place), place, name)
    try:
        result = factory()
    except AttnExportError:
        raise
    except Exception as error:
        raise BuildFailed(f"the factory {reference} raised {_say(error)}") from error
    return _checked(reference, result)


def _import(place: str) -> ModuleType:
    try:
        return import_place(place)
    except AttnExportError:
        raise
    except ModuleNotFoundError as error:
        raise BuildFailed(f"importing {place} failed: {_say(error)}") from error
    except Exception as error:
        raise BuildFailed(f"importing {place} raised {_say(error)}") from error


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
