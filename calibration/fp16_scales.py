"""Make a Q/DQ graph ready to be typed to FP16: opset 19, and scales that FP16 holds.

ONNX knows Q and DQ with FP16 scales from opset 19 on. Between 17 and 19 only these operators
changed their form (ONNX changelog, versions 18 and 19): the reductions take their axes as an
input, and Split without sizes must say how many parts it makes. The others that are new there
(Cast, Constant, Equal, Identity, Pad, Reshape, Resize, ScatterElements, ScatterND, Shape, ...)
gained types, or attributes and inputs whose absence means what it meant before.

The result is still an FP32 graph and computes with its scales rounded to FP16, so that typing it
changes no scale, and Q and DQ agree where one of them stays FP32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from attn_export.errors import BuildFailed

from .qdq import OPSET, constant, write_checked

FP16_OPSET = 19
IR_VERSION = 9  # the oldest with opset 19
_TINY = np.float32(2.0**-24)  # the smallest FP16 number
_NORMAL = np.float32(2.0**-14)  # below it, FP16 has fewer bits
_AXES_INPUT_SINCE_18 = {
    f"Reduce{kind}"
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}


def write_for_fp16(graph: Path, out: Path) -> tuple[str, ...]:
    """Write a Q/DQ graph at opset 19 with scales that FP16 holds; what that costs, in sentences.

    Raises:
        BuildFailed: if the graph is not at opset 17, or a scale is beyond FP16.
    """
    model = ir.load(graph)
    if model.opset_imports.get("") != OPSET:
        raise BuildFailed(f"{graph.name} is at opset {model.opset_imports.get('')}, not {OPSET}")
    for node in list(model.graph):
        if node.op_type in _AXES_INPUT_SINCE_18:
            _axes_to_input(model.graph, node)
        elif node.op_type == "Split" and (len(node.inputs) < 2 or node.inputs[1] is None):
            node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    model.opset_imports[""] = FP16_OPSET
    model.ir_version = max(model.ir_version, IR_VERSION)
    notes = _round_scales(model.graph)
    write_checked(model, out)
    return notes


def _axes_to_input(graph: ir.Graph, node: ir.Node) -> None:
    axes = node.attributes.pop("axes", None)
    if axes is None:
        return  # all axes, at both opsets
    array = np.array(list(axes.as_ints()), np.int64)
    value = constant(graph, f"{node.name}.axes", array)
    node.resize_inputs(2)
    node.replace_input_with(1, value)


def _round_scales(graph: ir.Graph) -> tuple[str, ...]:
    notes = []
    for node in graph:
        scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
        if scale is None or scale.const_value is None:
            continue
        exact = scale.const_value.numpy()
        with np.errstate(over="ignore"):
            rounded = np.maximum(exact.astype(np.float16).astype(np.float32), _TINY)
        if not np.all(np.isfinite(rounded)):
            raise BuildFailed(
                f"{node.name}: its scale is {exact.max():.3g}, beyond FP16; exclude what reads it"
            )
        small = int(np.count_nonzero(rounded < _NORMAL))
        if small:
            notes.append(f"{node.name}: {small} of {rounded.size} scales are subnormal in FP16")
        scale.const_value = ir.tensor(rounded, name=scale.name)
    return tuple(notes)
