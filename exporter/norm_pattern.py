"""Find norms that are written out in parts (RMSNorm, older LayerNorm): their statistics.

Statistics are the squares, means and roots between a row and the factor it is divided by. FP16
has no room for them: the square of 300 is beyond its range.
"""

from __future__ import annotations

from collections import deque

import onnx_ir as ir

from .attention_pattern import inputs_of, is_constant, is_float

_MEANS = {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"}
_ROOTS = {"Sqrt", "Pow", "Reciprocal"}
_SQUARES = {"Pow", "Mul", "Sub"}
_BOUNDS = {"Add", "Clip", "Expand", "Max"}  # the least divisor is far below FP16's smallest number
_STEPS = {"Add", "Mul", "Div", "Sub", "Max", "Clip", *_ROOTS}
_REACH = 5


def norm_statistics(graph: ir.Graph) -> set[ir.Node]:
    """All nodes of such statistics, from the square to the product with the row."""
    found: set[ir.Node] = set()
    for mean in graph:
        if mean.op_type in _MEANS and is_float(mean.outputs[0]):
            down = _down_to_root(mean)
            if mean.op_type == "ReduceL2":
                down |= _users_of_root(mean)  # it is mean and root in one
            if down or mean.op_type == "ReduceL2":
                found |= {mean, *down, *_squares(mean)}
    _add_centring(found)
    return found


def _down_to_root(mean: ir.Node) -> set[ir.Node]:
    """The nodes from a mean through its root to the division that uses it; empty if no root."""
    queue: deque[tuple[ir.Node, tuple[ir.Node, ...]]] = deque([(mean, (mean,))])
    while queue:
        node, path = queue.popleft()
        for consumer in (c for output in node.outputs for c in output.consumers()):
            if consumer.op_type not in _STEPS or len(path) > _REACH:
                continue
            longer = (*path, consumer)
            if consumer.op_type in ("Sqrt", "Reciprocal"):
                return {*longer[1:], *_users_of_root(consumer)}
            if consumer.op_type == "Pow" and path[-1].op_type != "Sub":
                return {*longer[1:], *_users_of_root(consumer)}
            queue.append((consumer, longer))
    return set()


def _users_of_root(root: ir.Node) -> set[ir.Node]:
    users: set[ir.Node] = set()
    for consumer in root.outputs[0].consumers():
        if consumer.op_type == "Reciprocal":
            users |= {consumer, *_users_of_root(consumer)}
        elif consumer.op_type in ("Mul", "Div"):
            users.add(consumer)
        elif consumer.op_type in _BOUNDS and _computed_floats(consumer) == 1:
            division = _users_of_root(consumer)
            users |= {consumer, *division} if division else set()
    return users


def _computed_floats(node: ir.Node) -> int:
    return sum(is_float(value) and not is_constant(value) for value in inputs_of(node))


def _squares(mean: ir.Node) -> set[ir.Node]:
    producer = mean.inputs[0].producer() if mean.inputs[0] is not None else None
    return {producer} if producer is not None and producer.op_type in _SQUARES else set()


def _add_centring(found: set[ir.Node]) -> None:
    """The mean that is subtracted before the square, and that subtraction."""
    for node in list(found):
        for value in inputs_of(node):
            producer = value.producer()
            if producer is not None and producer.op_type == "Sub":
                found.add(producer)
                for operand in inputs_of(producer):
                    above = operand.producer()
                    if above is not None and above.op_type in _MEANS:
                        found.add(above)
