"""Constant shapes for Reshape, and no Reshape or Transpose that moves nothing.

The exporter computes every target shape from Shape nodes. ``0`` (copy the dimension) and ``-1``
say the same with constants, so head dimensions stay static and the shape arithmetic goes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Dims = Sequence[Any]


def simplify_reshapes(graph: ir.Graph) -> None:
    """Rewrite in place; unused shape arithmetic is left for dead-code removal."""
    for node in list(graph):
        if node.op_type == "Transpose" and _moves_nothing(node):
            _to_reshape(graph, node)
    for node in list(graph):
        if node.op_type == "Reshape":
            _skip_reshape_above(node)
            _constant_target(graph, node)


def _dims(value: ir.Value | None) -> Dims | None:
    if value is None or value.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return None if any(dim is None for dim in dims) else dims


def _moves_nothing(node: ir.Node) -> bool:
    """Whether only axes of size 1 change places."""
    dims = _dims(node.inputs[0])
    order = node.attributes.get_ints("perm", [])
    if dims is None or not order:
        return False
    kept = [axis for axis in order if dims[axis] != 1]
    return list(kept) == sorted(kept)


def _to_reshape(graph: ir.Graph, node: ir.Node) -> None:
    target = target_shape(_dims(node.inputs[0]), _dims(node.outputs[0]))
    if target is None:
        return
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(1, _constant(graph, node, target))


def _skip_reshape_above(node: ir.Node) -> None:
    source = node.inputs[0]
    above = source.producer() if source is not None else None
    if above is not None and above.op_type == "Reshape":
        target = target_shape(_dims(above.inputs[0]), _dims(node.outputs[0]))
        if target is not None:
            node.replace_input_with(0, above.inputs[0])


def _constant_target(graph: ir.Graph, node: ir.Node) -> None:
    target = target_shape(_dims(node.inputs[0]), _dims(node.outputs[0]))
    if target is not None:
        node.attributes.pop("allowzero", None)
        node.replace_input_with(1, _constant(graph, node, target))


def target_shape(source: Dims | None, result: Dims | None) -> list[int] | None:
    """A Reshape's constant target: numbers, 0 for "as in the source", at most one -1.

    None where that cannot say it.

    >>> target_shape(["batch", "sequence", 768], ["batch", 1, "12*sequence", 64])
    [0, 1, -1, 64]
    """
    if source is None or result is None:
        return None
    target: list[int] = []
    for axis, dim in enumerate(result):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        elif axis < len(source) and source[axis] == dim:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _constant(graph: ir.Graph, node: ir.Node, target: list[int]) -> ir.Value:
    tensor = ir.tensor(np.array(target, np.int64))
    value = ir.Value(name=f"{node.outputs[0].name}.shape", const_value=tensor)
    value.shape, value.dtype = ir.Shape([len(target)]), ir.DataType.INT64
    graph.initializers[value.name or ""] = value
    return value
