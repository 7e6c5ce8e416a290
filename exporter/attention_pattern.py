"""Find the attention in any graph: scores, mask add, softmax, context, and the mask's arithmetic.

Works on structure alone, so a user's own module gets the same roles as the reference models.
"""

from __future__ import annotations

import onnx_ir as ir

from attn_export import roles

_BETWEEN = {"Add", "Sub", "Where", "Mul", "Div", "Cast", "Identity", "Clip", "Max", "Min", "Tanh"}
_AFTER = {"Cast", "Identity", "Where", "Mul"}
_MOVES = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity", "Cast"}
_DEPTH = 8


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a weight or constant of the graph."""
    return value is not None and value.const_value is not None


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is known to hold floats."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def inputs_of(node: ir.Node) -> list[ir.Value]:
    """The inputs that are there; optional ones may be left out."""
    return [value for value in node.inputs if value is not None]


def is_product(node: ir.Node | None) -> bool:
    """A MatMul of two activations."""
    return (
        node is not None
        and node.op_type == "MatMul"
        and not any(is_constant(value) for value in node.inputs)
    )


def attention_roles(graph: ir.Graph) -> dict[ir.Node, str]:
    """The role of every node that belongs to an attention."""
    found: dict[ir.Node, str] = {}
    for softmax in graph:
        if softmax.op_type != "Softmax":
            continue
        path = _path_from_scores(softmax.inputs[0], _DEPTH)
        if path is None:
            continue
        found[softmax] = roles.SOFTMAX
        found[path[0]] = roles.SCORES
        _label_path(path, found)
        _label_query_scale(path[0], found)
        context = _context(softmax.outputs[0], _DEPTH)
        if context is not None:
            found[context] = roles.CONTEXT
    return found


def _path_from_scores(value: ir.Value | None, depth: int) -> list[ir.Node] | None:
    """The nodes from Q K^T down to ``value``, or None if no product leads there."""
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return None
    if is_product(node):
        return [node]
    if node.op_type in _BETWEEN:
        for operand in node.inputs:
            path = _path_from_scores(operand, depth - 1)
            if path is not None:
                return [*path, node]
    return None


def _label_path(path: list[ir.Node], found: dict[ir.Node, str]) -> None:
    on_path = set(path)
    for node in path[1:]:
        others = [v for v in inputs_of(node) if v.producer() not in on_path]
        if node.op_type in ("Mul", "Div") and all(is_constant(v) for v in others):
            found[node] = roles.SCALE
        elif node.op_type in ("Add", "Sub", "Where", "Max", "Min") and others:
            found[node] = roles.MASK_ADD
            for value in others:
                _label_mask(value, found)


def _label_mask(value: ir.Value, found: dict[ir.Node, str]) -> None:
    """Everything above a mask operand that is not itself a product with weights."""
    node = value.producer()
    if node is None or node in found:
        return
    reads_weights = any(
        is_constant(operand) and operand.shape is not None and len(operand.shape) > 1
        for operand in inputs_of(node)
        if is_float(operand)
    )
    if reads_weights or node.op_type in ("MatMul", "Gemm", "LayerNormalization"):
        return
    found[node] = roles.MASK
    for operand in inputs_of(node):
        _label_mask(operand, found)


def _label_query_scale(scores: ir.Node, found: dict[ir.Node, str]) -> None:
    for operand in inputs_of(scores):
        node = operand.producer()
        while node is not None and node.op_type in _MOVES:
            first = node.inputs[0]
            node = first.producer() if first is not None else None
        if node is not None and node.op_type in ("Mul", "Div"):
            constants = [v for v in inputs_of(node) if is_constant(v)]
            if constants and all(v.shape is not None and v.shape.is_static() for v in constants):
                found.setdefault(node, roles.SCALE)


def _context(value: ir.Value, depth: int) -> ir.Node | None:
    for consumer in value.consumers():
        if is_product(consumer):
            return consumer
        if depth and consumer.op_type in _AFTER:
            deeper = _context(consumer.outputs[0], depth - 1)
            if deeper is not None:
                return deeper
    return None
