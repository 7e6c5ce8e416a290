"""Run the PyTorch module itself on NumPy arrays: the reference of every comparison."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .adapter import Adapter


def run_eager(
    module: Adapter, feeds: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Run one batch; floats come back as FP32 whatever the module computes in."""
    dtype = next(module.parameters(), torch.empty(0)).dtype
    tensors = [torch.from_numpy(np.ascontiguousarray(feeds[n])) for n in module.input_names]
    tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    with torch.inference_mode():
        results = module(*tensors)
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in zip(module.output_names, results, strict=True)
    }


def half(module: Adapter) -> Adapter:
    """A copy in FP16, whose error against FP32 is the noise floor of that precision."""
    return copy.deepcopy(module).half()
