"""Opset 18 down to 17, which TensorRT 8.6 reads.

Done here and not by onnx's converter, which can leave a graph at 18 or make an invalid one
without an error. TensorRT 8.6 ignores a reduction's ``axes`` input and reduces everything.
Only what changed between the two opsets is touched (ONNX changelog, version 18).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attn_export.errors import BuildFailed

OPSET = 17
_AXES_INPUT_SINCE_18 = {
    f"Reduce{kind}"
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}
_NEW_IN_18 = {"BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im"}
_NEW_IN_18 |= {"GroupNormalization", "Mish", "OptionalGetElement", "OptionalHasElement"}


def to_opset_17(model: ir.Model) -> None:
    """Rewrite in place.

    Raises:
        BuildFailed: if an operator has no form at opset 17; the node is named.
    """
    version = model.opset_imports.get("", 0)
    if version not in (OPSET, 18):
        raise BuildFailed(f"the exporter wrote opset {version}; 17 or 18 can be handled")
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx"):
            raise BuildFailed(f"{_say(node)} is outside the standard operators")
        if node.op_type in _NEW_IN_18:
            raise BuildFailed(
                f"{_say(node)} has no form at opset {OPSET}, which TensorRT 8.6 needs"
            )
        if node.op_type in _AXES_INPUT_SINCE_18:
            _axes_to_attribute(node)
        elif node.op_type == "Split":
            _split_sizes(model.graph, node)
        elif node.op_type == "Pad" and len(node.inputs) > 3 and node.inputs[3] is not None:
            raise BuildFailed(f"{_say(node)} pads chosen axes, which opset {OPSET} cannot express")
    model.opset_imports[""] = OPSET


def _axes_to_attribute(node: ir.Node) -> None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None:
        if axes.const_value is None:
            raise BuildFailed(f"{_say(node)} reduces over axes that are computed at run time")
        numbers = [int(axis) for axis in axes.const_value.numpy().reshape(-1)]
        node.attributes["axes"] = ir.AttrInt64s("axes", numbers)
        node.replace_input_with(1, None)
        node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)


def _split_sizes(graph: ir.Graph, node: ir.Node) -> None:
    """``num_outputs`` is new in 18; uneven parts need their sizes written out."""
    if node.attributes.pop("num_outputs", None) is None:
        return
    axis = node.attributes.get_int("axis", 0)
    value = node.inputs[0]
    size = value.shape[axis] if value is not None and value.shape is not None else None
    parts = len(node.outputs)
    if not isinstance(size, int):
        raise BuildFailed(f"{_say(node)} splits an axis of unknown size into {parts}")
    if size % parts:
        step = -(-size // parts)
        sizes = np.array([min(step, size - i * step) for i in range(parts)], np.int64)
        constant = ir.Value(name=f"{node.outputs[0].name}.sizes", const_value=ir.tensor(sizes))
        graph.initializers[constant.name or ""] = constant
        node.resize_inputs(2)
        node.replace_input_with(1, constant)


def _say(node: ir.Node) -> str:
    return f"node {node.name!r} ({node.domain or 'ai.onnx'}.{node.op_type})"
