"""Write the Q/DQ graph: FP32 with QuantizeLinear and DequantizeLinear where INT8 goes.

Opset 17, symmetric INT8, FP32 scales, zero points that are there and zero, weights kept in FP32
before their own Q and DQ: the form that the ONNX importers of TensorRT 8.6 to 11 all read.

New nodes are called after the tensor that they quantize: ``<tensor>.quantize`` and
``<tensor>.dequantize``; the tensor is called after the node that makes it, so that
``layers.3.norm.norm.quantize`` quantizes what ``layers.3.norm.norm`` computes, for all who read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from attn_export.errors import BuildFailed
from attn_export.roles import GEMM, role_of

from .graph_structure import graph_digest
from .placement import Placement, refuse_quantized, weight_axis
from .ranges import Ranges
from .weight_rounding import Moments, compensated

OPSET = 17
ONE_FILE_LIMIT = 1 << 30  # bytes of weights; protobuf itself stops at 2 GiB
LEVELS = 127  # symmetric: -127 to 127

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class QdqSummary:
    """What was written.

    Args:
        activations: how many computed tensors are quantized.
        weights: how many weights are.
        gemms: the products with weights that run in INT8, by node name.
        left: those that do not.
        notes: what a reader should know of the numbers, in sentences.
    """

    activations: int
    weights: int
    gemms: tuple[str, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def write_qdq(
    graph: Path,
    ranges: Ranges,
    placement: Placement,
    out: Path,
    *,
    moments: Moments | None = None,
) -> QdqSummary:
    """Write the Q/DQ form of an FP32 graph; above 1 GiB of weights with external data beside it.

    Memory peaks at about five times the weights, the check included.

    Args:
        moments: of the quantized activations, from :func:`.weight_rounding.second_moments`: the
            weights [K, N] that they meet are rounded for them, and stored as what that gives.

    Raises:
        BundleError: if the ranges are those of another graph, or lack a tensor.
        BuildFailed: if the graph is quantized already, is not at opset 17, is not the one that
            the placement was made for, or holds a weight that is not finite.
    """
    ranges.require_graph(graph_digest(graph))
    model = ir.load(graph)
    refuse_quantized(model.graph)
    if model.opset_imports.get("") != OPSET:
        raise BuildFailed(f"{graph.name} is at opset {model.opset_imports.get('')}, not {OPSET}")
    readers = _readers(model.graph, placement)
    notes: list[str] = list(ranges.notes)
    twice = Counter(name for name, _ in placement.weights)
    # Before the pairs stand between an activation and its products.
    met = {key: (moments or {}).get(_name(edges[0][0].inputs[0])) for key, edges in readers.items()}
    for (name, axis), edges in readers.items():
        if axis is None:
            scale = np.asarray(ranges.scale(name), np.float32)
            _insert_pair(model.graph, edges, name, scale, axis)
        else:
            scale = _weight_scales(edges[0], axis, notes)
            _round_for(edges[0], axis, scale, met[name, axis])
            prefix = name if twice[name] == 1 else f"{name}.axis_{axis}"
            _insert_pair(model.graph, edges, prefix, scale, axis)
    write_checked(model, out)
    return _summary(model.graph, placement, notes)


def write_checked(model: ir.Model, out: Path) -> None:
    """Write a graph and hold it to onnx's full check.

    Raises:
        BuildFailed: if it is not valid.
    """
    weights = [value.const_value for value in model.graph.initializers.values()]
    large = sum(tensor.nbytes for tensor in weights if tensor is not None) > ONE_FILE_LIMIT
    ir.save(model, out, external_data=f"{out.name}.data" if large else None)
    try:
        onnx.checker.check_model(out, full_check=True)
    except Exception as error:  # onnx raises several unrelated classes here
        raise BuildFailed(f"{out.name} is not a valid graph: {error}") from error


def _readers(
    graph: ir.Graph, placement: Placement
) -> dict[tuple[str, int | None], list[tuple[ir.Node, int]]]:
    """Who reads each quantized tensor; the key's second part is a weight's axis."""
    nodes = {node.name or "": node for node in graph}
    found: dict[tuple[str, int | None], list[tuple[ir.Node, int]]] = {}
    for name, index in placement.edges:
        node = nodes.get(name)
        value = node.inputs[index] if node is not None and index < len(node.inputs) else None
        if node is not None and value is not None:
            key = (value.name or "", weight_axis(node, index))
            found.setdefault(key, []).append((node, index))
    if set(found) != {*((name, None) for name in placement.activations), *placement.weights}:
        raise BuildFailed("the placement was made for another graph; place again")
    return found


def _weight_scales(edge: tuple[ir.Node, int], axis: int, notes: list[str]) -> Array:
    """One scale per output channel: its largest magnitude over 127."""
    value = edge[0].inputs[edge[1]]
    assert value is not None
    assert value.const_value is not None
    largest = np.abs(value.const_value.numpy()).max(axis=1 - axis)
    if not np.all(np.isfinite(largest)):
        raise BuildFailed(f"{value.name} holds NaN or infinity; it cannot be quantized")
    zeros = int(np.count_nonzero(largest == 0))
    if zeros:
        notes.append(f"{value.name}: {zeros} of {largest.size} output channels are all zero")
    scales = (largest / LEVELS).astype(np.float32)
    return np.where(scales > 0, scales, np.float32(1 / LEVELS))  # a scale must be positive


def _name(value: ir.Value | None) -> str:
    return value.name or "" if value is not None else ""


def _round_for(edge: tuple[ir.Node, int], axis: int, scale: Array, moment: Array | None) -> None:
    """Give a weight the values that are best for its activation; Q finds them as they are."""
    value = edge[0].inputs[edge[1]]
    if moment is None or axis != 1 or value is None or value.const_value is None:
        return
    rounded = compensated(value.const_value.numpy(), scale, moment)
    value.const_value = ir.tensor(rounded.astype(np.float32) * scale, name=value.name)


def _insert_pair(
    graph: ir.Graph,
    edges: Sequence[tuple[ir.Node, int]],
    prefix: str,
    scale: Array,
    axis: int | None,
) -> None:
    """One Q and one DQ for a tensor; the given readers take it from there."""
    node, index = edges[0]
    source = node.inputs[index]
    assert source is not None
    name = f"{prefix}.quantize"
    constants = [
        constant(graph, f"{name}.scale", scale),
        constant(graph, f"{name}.zero_point", np.zeros(scale.shape, np.int8)),
    ]
    attributes = {} if axis is None else {"axis": axis}
    quantize = ir.node("QuantizeLinear", [source, *constants], attributes, name=name)
    _name_output(quantize, ir.DataType.INT8, source.shape)
    dequantize = ir.node(
        "DequantizeLinear",
        [quantize.outputs[0], *constants],
        attributes,
        name=f"{prefix}.dequantize",
    )
    _name_output(dequantize, ir.DataType.FLOAT, source.shape)
    producer = source.producer()
    if producer is not None:
        graph.insert_after(producer, [quantize, dequantize])
    else:  # a weight or an input of the graph
        graph.insert_before(node, [quantize, dequantize])
    for reader, position in edges:
        reader.replace_input_with(position, dequantize.outputs[0])


def _name_output(node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value = node.outputs[0]
    value.name, value.dtype, value.shape = node.name, dtype, shape


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initializer."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def _summary(graph: ir.Graph, placement: Placement, notes: list[str]) -> QdqSummary:
    weights = set(placement.weights)
    products = [node for node in graph if role_of(node.name or "") == GEMM]
    quantized = {name for name, index in placement.edges if index == 1}
    return QdqSummary(
        activations=len(placement.activations),
        weights=len(weights),
        gemms=tuple(node.name or "" for node in products if node.name in quantized),
        left=tuple(node.name or "" for node in products if node.name not in quantized),
        notes=tuple(notes),
    )
