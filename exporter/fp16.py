"""Type a graph to FP16: precision stands in the graph itself, so every builder must honour it.

Every FP32 tensor becomes FP16 except what the keep-list's nodes read and write. A Cast stands
only where the two meet, once per tensor. LayerNormalization stays one operator with FP16 input
and output: its statistics are FP32 by definition (``stash_type``, ONNX LayerNormalization-17).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attn_export.errors import BuildFailed

from .keep import KeepList, floats

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_fp16(model: ir.Model, keep: KeepList, *, fp16_io: bool) -> int:
    """Type in place; returns how many Casts were inserted.

    Args:
        fp16_io: float inputs and outputs of the graph become FP16 too.

    Raises:
        BuildFailed: if the keep-list leaves nothing to type.
    """
    graph = model.graph
    pinned = {name for names in keep.values() for name in names}
    pinned |= _pinned_by_neighbours(graph, pinned)
    half = [n for n in graph if n.name not in pinned and floats([*n.inputs, *n.outputs])]
    if not half:
        raise BuildFailed("the keep-list covers every node: nothing is left to be FP16")
    half_nodes = set(half)
    _type_weights(graph, half_nodes)
    inputs = floats(graph.inputs)
    if fp16_io:
        _set_dtype(inputs, HALF)
    for node in half:
        _type_outputs(node)
    casts = _cast_at_borders(graph, half_nodes)
    return casts + _cast_outputs(graph, HALF if fp16_io else FULL)


def _pinned_by_neighbours(graph: ir.Graph, pinned: set[str]) -> set[str]:
    """Q has the type of what it reads and DQ that of what reads it: no Cast parts a pair from it.

    A weight's Q goes with its DQ.
    """
    found: set[str] = set()
    for node in reversed(graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or source is None:
            continue
        if node.op_type == "DequantizeLinear" or source.const_value is not None:
            deciding = list(node.outputs[0].consumers())
        else:
            producer = source.producer()
            deciding = [producer] if producer is not None else []
        if deciding and all(other.name in pinned | found for other in deciding):
            found.add(node.name or "")
    return found


def _set_dtype(values: list[ir.Value], dtype: ir.DataType) -> None:
    for value in values:
        value.dtype = dtype


def _type_weights(graph: ir.Graph, half: set[ir.Node]) -> None:
    """A weight read by both sides is kept in both types; no Cast for weights."""
    for value in floats(list(graph.initializers.values())):
        tensor = value.const_value
        uses = [(node, index) for node, index in value.uses() if node in half]
        if tensor is None or not uses:
            continue
        if len(uses) == len(value.uses()):
            value.const_value = _rounded(tensor, value.name or "")
            value.dtype = HALF
            continue
        copy = ir.Value(name=f"{value.name}.fp16", shape=value.shape, type=ir.TensorType(HALF))
        copy.const_value = _rounded(tensor, copy.name or "")
        graph.initializers[copy.name or ""] = copy
        for node, index in uses:
            node.replace_input_with(index, copy)


def _rounded(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Round when it is written, so that no second copy of all weights is held."""

    def convert() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float16), name=name)

    return ir.LazyTensor(convert, dtype=HALF, shape=ir.Shape(tensor.shape.numpy()), name=name)


def _type_outputs(node: ir.Node) -> None:
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(HALF))
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR and floats(node.outputs):
        tensor = value.as_tensor()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy().astype("f2")))
    _set_dtype(floats(node.outputs), HALF)


def _cast_at_borders(graph: ir.Graph, half: set[ir.Node]) -> int:
    """One Cast for each tensor that the other side reads."""
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        wanted = HALF if node in half else FULL
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (HALF, FULL) or value.dtype == wanted:
                continue
            if node.op_type == "Cast":
                continue  # it reads either
            if (value, wanted) not in casts:
                suffix = "fp16" if wanted == HALF else "fp32"
                casts[value, wanted] = insert_cast(graph, value, wanted, suffix)
            node.replace_input_with(index, casts[value, wanted])
    return len(casts)


def insert_cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
    """A Cast of ``value`` directly after what makes it; named ``<value>.<suffix>``."""
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}.{suffix}")
    out = node.outputs[0]
    out.name, out.dtype, out.shape = node.name, dtype, value.shape
    producer = value.producer()
    if producer is not None:
        producer.append(node)
    else:
        graph.insert_before(graph[0], node)
    return out


def _cast_outputs(graph: ir.Graph, wanted: ir.DataType) -> int:
    """Graph outputs keep their names; where the type differs, what computed them is renamed."""
    casts = 0
    for index, value in enumerate(graph.outputs):
        if value.dtype not in (HALF, FULL) or value.dtype == wanted:
            continue
        name = value.name or ""
        value.name = f"{name}.uncast"
        node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"{name}.cast")
        out = node.outputs[0]
        out.name, out.dtype, out.shape = name, wanted, value.shape
        graph.append(node)
        graph.outputs[index] = out
        casts += 1
    return casts
