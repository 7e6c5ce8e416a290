"""Run a graph over batches and count what its tensors hold.

onnxruntime.quantization's collectors keep every tensor of every batch until the last, and put
batches of different lengths into one array, which fails; these keep one batch at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.errors import BuildFailed, InputError, UsageError
from attn_export.lazy import require
from attn_export.spec import BATCH, SEQUENCE

from .activation_statistics import Statistics
from .histogram import Histogram

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Progress = Callable[[int], None]  # the samples seen so far, after each batch

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def collect(
    graph: Path,
    tensors: Sequence[str],
    batches: Iterable[Feeds],
    *,
    channels: Collection[str] = (),
    data: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: Progress = lambda samples: None,
) -> Statistics:
    """Histograms of these tensors of an FP32 graph over all batches.

    Batches are taken one by one, and one batch's tensors are in memory at a time. The graph's file
    is read in place; nothing is written.

    Args:
        tensors: names of float values that a node computes, or of float inputs.
        batches: feeds without padding: every position counts.
        channels: which of them get the largest magnitude of each channel as well.
        data: what the batches are, kept in the statistics.
        threads: of one run; None: one for each CPU that this process may use.
        progress: called after each batch.

    Raises:
        UsageError: if a tensor is not there or is not float, or there are none.
        InputError: if there are no batches, or ONNX Runtime refuses one.
        BuildFailed: if it cannot open or run the graph, or a tensor is NaN or infinite.
        BundleError: if the file is no ONNX graph.
        MissingPackage: if onnx or onnxruntime is not installed.
    """
    require("onnx", extra="export")
    from .graph_structure import graph_digest

    tapped = TappedGraph(graph, tensors, threads)
    histograms = {name: Histogram() for name in tensors}
    maxima: dict[str, npt.NDArray[np.float32]] = {}
    samples = tokens = 0
    for feeds in batches:
        for name, values in tapped.run(feeds).items():
            _require_finite(name, values, samples)
            histograms[name].add(values)
            if name in channels:
                found = np.abs(values).max(axis=tuple(range(values.ndim - 1)))
                maxima[name] = np.maximum(maxima.get(name, found), found)
        rows, length = tapped.size(feeds)
        samples, tokens = samples + rows, tokens + rows * length
        progress(samples)
    if not samples:
        raise InputError("there are no calibration batches; give data with at least one sequence")
    return Statistics(
        graph_sha256=graph_digest(graph),
        samples=samples,
        tokens=tokens,
        tensors=histograms,
        channel_maxima=maxima,
        data=(dict(data or {}),),
    )


def _require_finite(name: str, values: Array, samples: int) -> None:
    if values.size == 0 or np.isfinite([values.min(), values.max()]).all():
        return
    wrong = np.count_nonzero(~np.isfinite(values))
    if wrong:
        raise BuildFailed(
            f"the tensor {name} is NaN or infinite in {wrong} of {values.size} values, in the "
            f"batch after {samples} samples: the FP32 graph itself fails on this data; correct the "
            "model or the data"
        )


class TappedGraph:
    """A graph open in ONNX Runtime with chosen tensors as its outputs, weights left in its file."""

    def __init__(self, graph: Path, tensors: Sequence[str], threads: int | None) -> None:
        from .graph_structure import read_structure

        model = read_structure(graph)
        inputs = {value.name for value in model.graph.input}
        computed = {name for node in model.graph.node for name in node.output if name}
        missing = [name for name in tensors if name not in computed | inputs]
        if missing or not tensors:
            raise UsageError(
                f"{graph} computes no tensor {', '.join(missing[:3]) or 'that was named'}; name "
                "outputs of its nodes, or its inputs"
            )
        self._fed = [name for name in tensors if name in inputs]
        self._computed = [name for name in dict.fromkeys(tensors) if name in computed]
        self._axes = {
            value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim]
            for value in model.graph.input
        }
        outputs = {value.name for value in model.graph.output}
        for name in self._computed:
            if name not in outputs:
                model.graph.output.add(name=name)
        self._session = _opened(model.SerializeToString(), graph, threads)
        self._require_floats()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The tapped tensors of one batch, in FP32."""
        ort_errors = require("onnxruntime.capi.onnxruntime_pybind11_state", extra="cpu")
        try:
            values = self._session.run(self._computed, dict(feeds)) if self._computed else []
        except Exception as error:
            kind = InputError if isinstance(error, ort_errors.InvalidArgument) else BuildFailed
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise kind(f"ONNX Runtime failed on the feeds {shapes}: {error}") from error
        return {
            **{name: feeds[name] for name in self._fed},
            **dict(zip(self._computed, values, strict=True)),
        }

    def size(self, feeds: Feeds) -> tuple[int, int]:
        """Samples and tokens a sample of one batch; 1 token where no input has a sequence axis."""
        sizes = {BATCH: 1, SEQUENCE: 1}
        for name, array in feeds.items():
            sizes.update(
                (axis, size)
                for axis, size in zip(self._axes.get(name, ()), array.shape, strict=False)
                if axis in sizes
            )
        return sizes[BATCH], sizes[SEQUENCE]

    def _require_floats(self) -> None:
        types = {
            item.name: item.type
            for item in [*self._session.get_inputs(), *self._session.get_outputs()]
        }
        for name in (*self._fed, *self._computed):
            if types[name] != "tensor(float)":
                raise UsageError(
                    f"{name} is a {types[name]}; only tensor(float) has a range: calibrate the "
                    "FP32 graph"
                )


def _opened(model: bytes, graph: Path, threads: int | None) -> Any:
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors arrive as exceptions
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(graph.parent.absolute()))
    # Counting alternates with running: idle threads must not spin meanwhile.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            # A kernel slower than the Add and the norm that it replaces.
            disabled_optimizers=["SkipLayerNormFusion"],
        )
    except Exception as error:
        raise BuildFailed(f"ONNX Runtime {ort.__version__} cannot open {graph}: {error}") from error
