"""Where INT8 goes: which tensors of an FP32 graph are quantized, and who reads them so.

By default the products with weights alone: their activation and their weight. Biases, masks, the
softmax's input and norms are never quantized: there INT8 costs accuracy and saves nothing. A
tensor is quantized once, whoever reads it.

Products that see one row of each sequence (a pooler, a classifier, the last layer's query where
only the first token counts) stay as they are: they are a small part of the work, and their error
reaches the answer undamped. Measured on two-layer reference encoders with real tweets, quantizing
them too took 6 to 7 dB off the logits' signal-to-noise ratio.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from attn_export import roles
from attn_export.errors import BuildFailed, UsageError
from attn_export.roles import role_of
from attn_export.spec import SEQUENCE

if TYPE_CHECKING:
    import onnx_ir as ir

# "Head size must be 16, 32, or 64, and sequence lengths (S_q, S_kv) must be <= 512 for INT8":
# TensorRT developer guide, multi-head attention fusion.
HEAD_SIZES = (16, 32, 64)
MAX_LENGTH = 512

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul")
_MOVES = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Expand"}
_NEVER_OPS = {"LayerNormalization", "Shape", "Softmax"}
_NEVER_ROLES = {roles.MASK, roles.MASK_ADD, roles.NORM, roles.NORM_STATISTICS, roles.SOFTMAX}
_MULTIPLE = re.compile(rf"(?:(\d+)\*)?{SEQUENCE}")

Edge = tuple[str, int]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """What is quantized beyond the products with weights, and what is not.

    Args:
        exclude: regular expressions; a node whose whole name one matches reads no quantized
            tensor, and its own result is not quantized for its sake.
        residuals: the results of those products and the operands of the residual adds too, so
            that INT8 moves between layers.
        attention: the attention's two products too, within TensorRT's limits.
        max_length: the longest sequence, in tokens; ``attention`` must know it.
    """

    exclude: tuple[str, ...] = ()
    residuals: bool = False
    attention: bool = False
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The decision for one graph.

    Args:
        activations: names of the computed values (and graph inputs) that are quantized, one
            scale each.
        weights: initializers that are quantized, each with the axis of its output channels.
        edges: (node, index of its input) of everything that reads a quantized form.
    """

    activations: tuple[str, ...]
    weights: tuple[tuple[str, int], ...]
    edges: tuple[Edge, ...]
    options: PlacementOptions


def place(model: ir.Model, options: PlacementOptions) -> Placement:
    """Choose what is quantized in an FP32 graph whose nodes are named by role.

    Raises:
        BuildFailed: if the graph holds quantized parts already, or has nothing to quantize.
        UsageError: if an expression is broken or matches nothing, or an attention is beyond
            TensorRT's limits.
    """
    graph = model.graph
    refuse_quantized(graph)
    excluded = _excluded(graph, options.exclude)
    gemms = _over_sequences([node for node in weight_gemms(graph) if node not in excluded])
    wanted = {(node, index) for node in gemms for index in (0, 1)}
    if options.residuals:
        wanted |= set(_residual_edges(gemms))
    if options.attention:
        wanted |= set(_attention_edges(graph, options.max_length, excluded))
    wanted = {(node, index) for node, index in wanted if node not in excluded}
    if not wanted:
        raise BuildFailed(
            "nothing is left to quantize: no product with a weight (MatMul or Gemm) is in the "
            "graph, or all are excluded"
        )
    moved = _quantized_before(wanted)
    edges = [
        (node, index)
        for node in graph
        for index, value in enumerate(node.inputs)
        if (node, index) in wanted and value not in moved
    ]
    return Placement(
        activations=_unique(_input_name(*edge) for edge in edges if weight_axis(*edge) is None),
        weights=_unique(
            (_input_name(*edge), axis) for edge in edges if (axis := weight_axis(*edge)) is not None
        ),
        edges=tuple((node.name or "", index) for node, index in edges),
        options=options,
    )


def refuse_quantized(graph: ir.Graph) -> None:
    """Raise BuildFailed if a graph is quantized already, whole or in part."""
    for node in graph:
        if node.op_type in _QUANTIZED:
            raise BuildFailed(
                f"the graph is quantized already: node {node.name!r} is {node.op_type}; start "
                "from the FP32 graph"
            )


def weight_gemms(graph: ir.Graph) -> list[ir.Node]:
    """The MatMul and Gemm nodes of an activation [.., K] by an FP32 weight of rank 2."""
    return [node for node in graph if weight_axis(node, 1) is not None]


def _over_sequences(gemms: Sequence[ir.Node]) -> Sequence[ir.Node]:
    """Without those that see one row of each sequence; all, where the graph tells none apart."""
    found = [node for node in gemms if _has_sequence_axis(node.inputs[0])]
    return found or gemms


def _has_sequence_axis(value: ir.Value | None) -> bool:
    """Whether an axis depends on the sequence's length, or may."""
    if value is None or value.shape is None:
        return True
    dims = [dim.value for dim in value.shape if not isinstance(dim, int)]
    return any(dim is None or SEQUENCE in dim for dim in dims)


def weight_axis(node: ir.Node, index: int) -> int | None:
    """The axis of the output channels where this input is the weight of such a product."""
    if index != 1 or node.op_type not in ("MatMul", "Gemm"):
        return None
    activation, weight = node.inputs[:2]
    if activation is None or activation.const_value is not None or not _is_float(activation):
        return None
    tensor = weight.const_value if weight is not None else None
    if tensor is None or not _is_float(weight) or len(tensor.shape) != 2:
        return None
    return 0 if node.attributes.get_int("transB", 0) else 1


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _input_name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return (value.name or "") if value is not None else ""


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))


def _excluded(graph: ir.Graph, exclude: Sequence[str]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    for pattern in exclude:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}") from error
        matches = {node for node in graph if expression.fullmatch(node.name or "")}
        if not matches:
            raise UsageError(
                f"nothing in the graph matches {pattern}; names look like "
                "layers.0.attention.query.gemm, 'attn-export inspect' lists operators"
            )
        found |= matches
    return found


def _residual_edges(gemms: Sequence[ir.Node]) -> Iterator[tuple[ir.Node, int]]:
    """Who reads a product's result (its bias added), and the other operands of residual adds."""
    for gemm in gemms:
        result = _with_bias(gemm)
        yield from _readers(result)
        for add in result.consumers():
            if add.op_type == "Add" and all(_is_computed(value) for value in add.inputs):
                yield from ((add, 0), (add, 1))


def _with_bias(gemm: ir.Node) -> ir.Value:
    result = gemm.outputs[0]
    readers = list(result.consumers())
    if len(readers) == 1 and not result.is_graph_output():
        add = readers[0]
        if add.op_type == "Add" and not all(_is_computed(value) for value in add.inputs):
            return add.outputs[0]
    return result


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is None and _is_float(value)


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Everything that may read a quantized form of a value."""
    for node, index in value.uses():
        if node.op_type not in _NEVER_OPS and role_of(node.name or "") not in _NEVER_ROLES:
            yield node, index


def _attention_edges(
    graph: ir.Graph, max_length: int | None, excluded: set[ir.Node]
) -> Iterator[tuple[ir.Node, int]]:
    """Before both products, which includes the softmax's result, and after the second.

    TensorRT fuses an INT8 attention only with all of these ("before the first batched matrix
    multiplication, after softmax, and after the second": developer guide); V is the second
    product's other operand.
    """
    found = False
    for node in graph:
        role = role_of(node.name or "")
        if role not in (roles.SCORES, roles.CONTEXT):
            continue
        found = True
        if node in excluded:
            continue
        _check_limits(node, role, max_length)
        yield from ((node, 0), (node, 1))
        if role == roles.CONTEXT:
            yield from _readers(node.outputs[0])
    if not found:
        raise UsageError("no attention was found in the graph: there are no products to quantize")


def _check_limits(product: ir.Node, role: str, max_length: int | None) -> None:
    head = product.inputs[0] if role == roles.SCORES else product.outputs[0]
    size = _dims(product, head)[-1]
    if size not in HEAD_SIZES:
        raise UsageError(
            f"{product.name}: the head size is {size}; TensorRT fuses INT8 attention for "
            f"{', '.join(map(str, HEAD_SIZES))}; leave the attention's products out of INT8"
        )
    scores = product.outputs[0] if role == roles.SCORES else product.inputs[0]
    for dim in _dims(product, scores)[-2:]:
        length = _longest(product, dim, max_length)
        if length > MAX_LENGTH:
            folded = " (query heads are folded into it: export with --lowering expand)"
            raise UsageError(
                f"{product.name}: a sequence axis has up to {length} entries"
                f"{folded if '*' in str(dim) else ''}; TensorRT fuses INT8 attention up to "
                f"{MAX_LENGTH}; leave the attention's products out of INT8"
            )


def _dims(product: ir.Node, value: ir.Value | None) -> list[int | str | None]:
    shape = value.shape if value is not None else None
    if shape is None or len(shape) < 2:
        raise UsageError(
            f"{product.name}: the graph does not say its shapes, and TensorRT fuses INT8 "
            "attention only for some; leave the attention's products out of INT8"
        )
    return [dim if isinstance(dim, int) else dim.value for dim in shape]


def _longest(product: ir.Node, dim: int | str | None, max_length: int | None) -> int:
    if isinstance(dim, int):
        return dim
    match = _MULTIPLE.fullmatch((dim or "").replace(" ", ""))
    if match is None or max_length is None:
        raise UsageError(
            f"{product.name}: how long its axis {dim!r} becomes is not known, and TensorRT fuses "
            f"INT8 attention up to {MAX_LENGTH}; give the longest sequence, or leave the "
            "attention's products out of INT8"
        )
    return int(match[1] or 1) * max_length


def _quantized_before(wanted: set[tuple[ir.Node, int]]) -> set[ir.Value]:
    """Values that only move what was read quantized already: a second rounding adds nothing."""
    found = set()
    for node, index in wanted:
        value = node.inputs[index]
        mover = value.producer() if value is not None else None
        while mover is not None and mover.op_type in _MOVES and value is not None:
            if (mover, 0) in wanted:
                found.add(value)
            source = mover.inputs[0]
            mover = source.producer() if source is not None else None
    return found
