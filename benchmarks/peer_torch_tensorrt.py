"""Torch-TensorRT as a peer, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attn_export.engines.session import Feeds
from attn_export.lazy import require
from attn_export.manifest import Manifest
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .devices import GPU
from .peer_loop import Outputs, Way, one_by_one
from .peer_making import PeerTask
from .peer_torch import rebuilt

# The largest batch sizes the activations that TensorRT sets aside; more samples run in parts.
BATCHES = {"min": 1, "opt": 128, "max": 512}
OPTIMAL_LENGTH = 32


def compiled(task: PeerTask) -> Sequence[Way]:
    """Compiled ahead of time for a range of shapes, as its page on dynamic shapes says.

    Raises:
        MissingPackage: if torch_tensorrt is not installed.
    """
    tensorrt = require("torch_tensorrt", extra="peers")
    import torch

    module, manifest = rebuilt(task), task.bundle.manifest
    inputs = [
        tensorrt.Input(
            dtype=getattr(torch, spec.dtype),
            **{f"{which}_shape": _shape(manifest, spec, which) for which in BATCHES},
        )
        for spec in manifest.inputs
    ]
    call: Any = tensorrt.compile(module, ir="dynamo", inputs=inputs)

    def run(feeds: Feeds) -> Outputs:
        arrays = [np.ascontiguousarray(feeds[name]) for name in module.input_names]
        tensors = [torch.from_numpy(array).to("cuda:0") for array in arrays]
        with torch.inference_mode():
            parts = zip(*(torch.split(tensor, BATCHES["max"]) for tensor in tensors), strict=True)
            results = [
                torch.cat(outputs) for outputs in zip(*(call(*p) for p in parts), strict=True)
            ]
        return {
            name: result.float().cpu().numpy()
            for name, result in zip(module.output_names, results, strict=True)
        }

    return [one_by_one(run, GPU)]


def _shape(manifest: Manifest, spec: TensorSpec, which: str) -> list[int]:
    longest = manifest.max_length
    lengths = {"min": 1, "opt": min(OPTIMAL_LENGTH, longest), "max": longest}
    sizes = {BATCH: BATCHES[which], SEQUENCE: lengths[which]}
    return [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
