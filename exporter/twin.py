"""The rounding twin: what an FP16 graph computes, on hardware that has no FP16.

ONNX Runtime's CPU keeps the intermediates of an FP16 graph in FP32, so a Q K^T that overflows on
a GPU passes there unseen. The twin is made from the typed graph itself: each of its operators
runs in FP32 and its result is then stored as FP16, so overflow becomes infinite where it would.
Weights are not copied: they are read from the typed graph's own file.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from .fp16 import FULL, HALF, insert_cast
from .graph_file import Place, in_places, read_graph

# They only move what is already rounded.
MOVES = {
    "Cast",
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


def write_twin(typed: Path, places: dict[str, Place], path: Path) -> None:
    """Write the twin of a typed graph that was written with these places, into its folder."""
    model = read_graph(typed)
    proto = in_places(model, places)
    twin = ir.from_proto(proto)
    _compute_in_fp32(twin.graph)
    onnx.save(ir.to_proto(twin), path)


def _compute_in_fp32(graph: ir.Graph) -> None:
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type in MOVES:
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != HALF:
                continue
            if value not in wide:
                wide[value] = insert_cast(graph, value, FULL, "widened")
            node.replace_input_with(index, wide[value])
        for value in list(node.outputs):
            if value.dtype == HALF:
                _round_output(graph, node, value)


def _round_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """The operator writes FP32 to a new tensor; the old one becomes its rounding to FP16."""
    name = value.name or ""
    rounded = ir.node("Cast", [value], {"to": int(HALF)}, name=f"{name}.rounded")
    out = rounded.outputs[0]
    out.dtype, out.shape = HALF, value.shape
    node.append(rounded)
    for consumer, index in list(value.uses()):
        if consumer is not rounded:
            consumer.replace_input_with(index, out)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = out
    value.name, value.dtype = f"{name}.unrounded", FULL
    out.name = name
