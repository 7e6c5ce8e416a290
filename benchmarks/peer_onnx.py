"""ONNX Runtime as a peer: by hand, with its own tools, and through Optimum.

Each is run in two ways: batch after batch with all threads, the default, and one thread a batch,
as many batches at a time as threads, from sessions of one thread: what ONNX Runtime's page on
threading advises where many requests run side by side.

The tools that work on a file get the graph that suits them: those that look for PyTorch's own
patterns a plain export, the quantizer and CUDA the bundle's FP32 graph, which is smaller and which
they run faster. The plain export keeps its weights in a file beside it, which the quantizer's
preparation refuses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.engines.session import Feeds
from attn_export.errors import BundleError, HostError
from attn_export.lazy import require
from attn_export.manifest import Manifest
from attn_export.spec import BATCH, SEQUENCE

from .devices import GPU
from .peer_conversion import converted
from .peer_loop import Outputs, RunBatch, Way, one_by_one, one_thread_each
from .peer_making import PeerTask

CUDA = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
MAX_BATCH = 1 << 16


def plain(task: PeerTask) -> Sequence[Way]:
    """What one would do by hand: ``torch.onnx.export`` of the eager module, a default session."""
    return _sessions(task, converted(export_plain, task.bundle, task.folder))


def optimized(task: PeerTask) -> Sequence[Way]:
    """ONNX Runtime's transformer optimizer, which fuses what sessions do not.

    It knows BERT by the exact patterns of older exporters. In an export of today it finds no
    attention, with either of PyTorch's exporters and for MHA as for MQA; level 2 (ONNX Runtime's
    extended fusions first) gives it each LayerNormalization with its residual.
    """
    return _sessions(task, converted(optimize, task.bundle, task.folder))


def dynamic_int8(task: PeerTask) -> Sequence[Way]:
    """Dynamic quantization, which ONNX Runtime recommends for transformers.

    S8 weights per channel: as fast as per tensor and about twice as near to FP32; U8 weights are
    slower.
    """
    return _sessions(task, converted(quantize, task.bundle, task.folder))


def optimum(task: PeerTask) -> Sequence[Way]:
    """Optimum's ``ORTModelForCustomTasks`` on a plain export, called with NumPy arrays.

    Raises:
        MissingPackage: if optimum-onnx is not installed.
    """
    library = require("optimum.onnxruntime", extra="peers")
    path = converted(export_plain, task.bundle, task.folder)
    ort = require("onnxruntime", extra="cpu")
    config = require("transformers", extra="peers").BertConfig()
    config.save_pretrained(path.parent)  # Optimum reads from it that this is a model of theirs

    def caller(threads: int) -> RunBatch:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        model = library.ORTModelForCustomTasks.from_pretrained(
            path.parent,
            config=config,
            session_options=options,
            local_files_only=True,
            use_io_binding=False,
        )
        return lambda feeds: dict(model(**feeds))

    alone = one_thread_each(caller(1), task.threads, task.stack)
    return [one_by_one(caller(task.threads)), alone]


def cuda(task: PeerTask) -> Sequence[Way]:
    """ONNX Runtime's CUDA provider with its defaults.

    Raises:
        HostError: if this onnxruntime has no CUDA provider, or it does not start.
    """
    ort = require("onnxruntime", extra="gpu")
    if CUDA not in ort.get_available_providers():
        raise HostError(
            f"onnxruntime {ort.__version__} has no {CUDA}; install onnxruntime-gpu in its place"
        )
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from the wheels that torch brought
    session = ort.InferenceSession(
        task.bundle.directory / _graph(task.bundle), providers=[CUDA, CPU_PROVIDER]
    )
    if CUDA not in session.get_providers():
        raise HostError(f"{CUDA} did not start; are CUDA and cuDNN installed?")
    return [one_by_one(_call(session), GPU)]


def export_plain(bundle: Bundle, folder: Path) -> Path:
    """Write the eager module with PyTorch's exporter, with nothing of ours done to it."""
    import torch

    from .eager import rebuild

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model, path = rebuild(bundle.manifest), folder / "model.onnx"
    torch.onnx.export(
        model.module,
        model.examples,
        path,
        input_names=list(model.module.input_names),
        output_names=list(model.module.output_names),
        dynamic_shapes=_dynamic_shapes(bundle.manifest),
        dynamo=True,
        verbose=False,
    )
    return path


def _dynamic_shapes(manifest: Manifest) -> tuple[tuple[dict[int, Any], ...]]:
    """The batch and the sequence of every input, nested: the adapter takes them as ``*inputs``."""
    import torch

    longest = int(manifest.model.get("max_length", manifest.max_length))
    dims = {
        BATCH: torch.export.Dim(BATCH, min=1, max=MAX_BATCH),
        SEQUENCE: torch.export.Dim(SEQUENCE, min=1, max=longest),
    }
    shapes = tuple(
        {axis: dims[name] for axis, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in manifest.inputs
    )
    return (shapes,)


def optimize(bundle: Bundle, folder: Path) -> Path:
    """Export and optimize."""
    from onnxruntime.transformers import optimizer

    found = optimizer.optimize_model(
        str(export_plain(bundle, folder)),
        model_type="bert",
        opt_level=2,
        **attention_sizes(bundle.manifest),
    )
    path = folder / "optimized.onnx"
    found.save_model_to_file(str(path), use_external_data_format=True)
    return path


def attention_sizes(manifest: Manifest) -> dict[str, int]:
    """What the optimizer is told of the attention; 0 is for it to find out."""
    spec: Mapping[str, Any] = manifest.model.get("spec") or {}
    return {name: int(spec.get(name, 0)) for name in ("num_heads", "hidden_size")}


def quantize(bundle: Bundle, folder: Path) -> Path:
    """Prepare and quantize the bundle's FP32 graph."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, path = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(bundle.directory / _graph(bundle), prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, path, weight_type=QuantType.QInt8, per_channel=True)
    return path


def _graph(bundle: Bundle) -> str:
    if "fp32" not in bundle.manifest.graphs:
        raise BundleError("the bundle has no FP32 graph to start from; rebuild the bundle")
    return bundle.manifest.graphs["fp32"].path


def _sessions(task: PeerTask, path: Path) -> Sequence[Way]:
    ort = require("onnxruntime", extra="cpu")

    def session(threads: int) -> RunBatch:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        return _call(ort.InferenceSession(path, options, providers=[CPU_PROVIDER]))

    alone = one_thread_each(session(1), task.threads, task.stack)
    return [one_by_one(session(task.threads)), alone]


def _call(session: Any) -> RunBatch:
    names = [output.name for output in session.get_outputs()]
    return partial(_run, session, names)


def _run(session: Any, names: Sequence[str], feeds: Feeds) -> Outputs:
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
