"""Small graphs to quantize: exported encoders, and graphs made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from attn_export.calibration.collect import collect
from attn_export.calibration.placement import Placement
from attn_export.calibration.ranges import Ranges
from attn_export.exporter.attention import Lowering
from attn_export.exporter.export import export_graph
from attn_export.exporter.source import ModelSource, load_model

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
# The head size is 16.
TINY = {"hidden_size": 64, "num_heads": 4, "num_layers": 2, "vocab_size": 60, "max_length": 16}


def export_encoder(folder: Path, model: str, lowering: Lowering, **options: int) -> Path:
    """A built-in encoder; the GQA has 2 key/value heads."""
    kv = {"num_kv_heads": 2} if model == "gqa" else {}
    loaded = load_model(ModelSource(model=model, options={**TINY, **kv, **options}))
    path = folder / "model.onnx"
    export_graph(loaded, path, lowering=lowering, metadata={})
    return path


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node that is called after its first output, as exported ones are."""
    outputs = output.split(",")
    return helper.make_node(op, inputs.split(","), outputs, name=outputs[0], **attributes)


def save_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array],
    *,
    shape: Sequence[int | str] = ("batch", "sequence", 2),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> Path:
    """``x`` of this shape -> the outputs, with types and shapes inferred as an export has them."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(proto, strict_mode=True), path)
    return path


def run_graph(path: Path, feeds: Feeds) -> Array:
    """The first output of a file in ONNX Runtime as it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, feeds)[0]
    return result


def encoder_feeds(length: int, *, batch: int = 4, padded: bool = False) -> Feeds:
    """Seeded ids; all real, or the second half of every row but the first masked."""
    rng = np.random.default_rng([batch, length])
    mask = np.ones((batch, length), np.int32)
    if padded:
        mask[1:, length // 2 :] = 0
    ids = rng.integers(0, 60, (batch, length), dtype=np.int32)
    return {"input_ids": ids, "attention_mask": mask}


def ranges_of(graph: Path, placement: Placement, batches: Sequence[Feeds]) -> Ranges:
    """Min-max ranges of what a placement quantizes."""
    return collect(graph, placement.activations, batches, threads=1).ranges("minmax")


def encoder_ranges(graph: Path, placement: Placement) -> Ranges:
    """The same over a few lengths."""
    return ranges_of(graph, placement, [encoder_feeds(n, batch=8) for n in (3, 9, 16)])


def sqnr(expected: Array, got: Array) -> float:
    """Signal to quantization noise, in dB; NaN where ``got`` holds one."""
    noise = ((expected.astype(np.float64) - got) ** 2).sum()
    return float(10 * np.log10((expected.astype(np.float64) ** 2).sum() / noise))
