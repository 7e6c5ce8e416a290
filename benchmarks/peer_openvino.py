"""OpenVINO as a peer: as its pages say, without what our own backend adds.

The THROUGHPUT hint chooses streams by itself, and an ``AsyncInferQueue`` keeps them busy. OpenVINO
reads the bundle's FP32 graph.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.calibration.data import read_sequences
from attn_export.engines.openvino_library import TELEMETRY, library
from attn_export.engines.schedule import PlannedBatch
from attn_export.engines.session import Feeds
from attn_export.errors import HostError
from attn_export.lazy import require

from .peer_conversion import converted
from .peer_loop import NARROW_BUDGETS, WIDE_BUDGETS, Outputs, Way
from .peer_making import PeerTask
from .workload import Workload, stratified

CALIBRATION_SEQUENCES = 300


def fp32(task: PeerTask) -> Sequence[Way]:
    """In FP32, also on a CPU that computes BF16 in hardware, where BF16 is OpenVINO's default."""
    return _ways(task, _source(task.bundle), {"INFERENCE_PRECISION_HINT": "f32"})


def bf16(task: PeerTask) -> Sequence[Way]:
    """In BF16.

    Raises:
        HostError: if this CPU does not compute BF16 in hardware.
    """
    capabilities = library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in capabilities:
        raise HostError("this CPU has no BF16 instructions (AVX512_BF16 or AMX)")
    return _ways(task, _source(task.bundle), {"INFERENCE_PRECISION_HINT": "bf16"})


def int8(task: PeerTask) -> Sequence[Way]:
    """Quantized by NNCF's preset for transformers; the rest in OpenVINO's default precision.

    It is calibrated on 300 of the measurement's own sequences, in pairs padded to the longer one:
    NNCF quantizes the additive mask too, and would learn from sequences without padding that it
    is always zero.

    Raises:
        MissingPackage: if NNCF is not installed.
    """
    return _ways(task, converted(quantize, task.bundle, task.sequences, task.folder), {})


def quantize(bundle: Bundle, sequences: Path, folder: Path) -> Path:
    """Quantize the bundle's FP32 graph; the result is OpenVINO's own format."""
    ov = library()
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # NNCF sends no events without it
    nncf = require("nncf", extra="peers")
    workload = Workload(bundle.manifest.inputs, read_sequences(sequences))
    chosen = stratified(workload.lengths, min(len(workload.lengths), CALIBRATION_SEQUENCES))
    pairs = [chosen[start : start + 2] for start in range(0, len(chosen), 2)]
    lengths = [int(workload.lengths[pair].max()) for pair in pairs]
    feeds = [workload.feeds(PlannedBatch(*item)) for item in zip(pairs, lengths, strict=True)]
    quantized = nncf.quantize(
        ov.Core().read_model(_source(bundle)),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
    )
    path = folder / "int8.xml"
    ov.save_model(quantized, path, compress_to_fp16=False)
    return path


class _Queue:
    """Runs many batches at a time; the outputs are copied out of OpenVINO's memory."""

    def __init__(self, ov: Any, compiled: Any) -> None:
        self._queue = ov.AsyncInferQueue(compiled)
        self._queue.set_callback(self._done)
        self._names = [output.any_name for output in compiled.outputs]
        self._found: dict[int, Outputs] = {}

    def _done(self, request: Any, index: int) -> None:
        self._found[index] = {
            name: np.array(request.get_output_tensor(number).data)
            for number, name in enumerate(self._names)
        }

    def run_all(self, batches: Sequence[Feeds]) -> list[Outputs]:
        self._found.clear()
        for index, feeds in enumerate(batches):
            self._queue.start_async(dict(feeds), index)
        self._queue.wait_all()
        return [self._found[index] for index in range(len(batches))]


def _ways(task: PeerTask, path: Path, properties: dict[str, str]) -> Sequence[Way]:
    ov = library()
    compiled = ov.Core().compile_model(
        path,
        "CPU",
        {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": task.threads,
            **properties,
        },
    )
    queue = _Queue(ov, compiled)
    return [
        Way(
            label=f"{compiled.get_property('NUM_STREAMS')} streams",
            run=lambda feeds: queue.run_all([feeds])[0],
            run_all=queue.run_all,
            budgets=(*NARROW_BUDGETS, *WIDE_BUDGETS),
        )
    ]


def _source(bundle: Bundle) -> Path:
    return bundle.directory / bundle.manifest.graphs["fp32"].path
