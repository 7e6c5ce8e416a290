"""Run the PyTorch module itself on NumPy arrays: the reference of every comparison."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch

from attn_export.errors import BuildFailed

from .adapter import Adapter

Arrays = Mapping[str, np.ndarray[Any, Any]]
Style = Literal["fp32", "half", "autocast", "compiled"]


def run_eager(module: Adapter, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Run one batch; floats come back as FP32 whatever the module computes in.

    Where the module is on a GPU, the arrays are copied there and the outputs back.
    """
    like = next(module.parameters(), torch.empty(0))
    tensors = [torch.from_numpy(np.ascontiguousarray(feeds[n])) for n in module.input_names]
    tensors = [t.to(like.device, like.dtype if t.is_floating_point() else None) for t in tensors]
    with torch.inference_mode():
        results = module(*tensors)
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
        for name, tensor in zip(module.output_names, results, strict=True)
    }


def half(module: Adapter) -> Adapter:
    """A copy in FP16, whose error against FP32 is the noise floor of that precision."""
    return copy.deepcopy(module).half()


def styled(
    module: Adapter, style: Style, device: str
) -> Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]:
    """The ways in which PyTorch itself can run a module faster.

    Args:
        style: ``"fp32"`` as it is; ``"half"`` all in FP16; ``"autocast"`` in FP16 where torch
            holds that safe; ``"compiled"`` by ``torch.compile`` in its default mode, in FP32 and
            for each shape anew.
        device: as torch names it; the module moves there.

    Raises:
        BuildFailed: if torch cannot compile the module; also by the function that is returned.
    """
    placed = (half(module) if style == "half" else module).to(device)
    if style == "autocast":
        return lambda feeds: _autocast(placed, feeds, device)
    if style == "compiled":
        return _compiled(placed)
    return lambda feeds: run_eager(placed, feeds)


def _autocast(module: Adapter, feeds: Arrays, device: str) -> dict[str, np.ndarray[Any, Any]]:
    with torch.autocast(torch.device(device).type, dtype=torch.float16):
        return run_eager(module, feeds)


def _compiled(module: Adapter) -> Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]:
    with _compiling():
        compiled: Any = torch.compile(module, dynamic=False)

    def run(feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        with _compiling():
            return run_eager(compiled, feeds)

    return run


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a missing compiler, an operator, a driver: of any class
        first = (str(error).splitlines() or [""])[0]
        raise BuildFailed(f"torch.compile fails here: {type(error).__name__}: {first}") from error
