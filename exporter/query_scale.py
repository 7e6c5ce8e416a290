"""Put a scale by a power of two into the weights of the linear layer before it.

1/sqrt(D) is one for head sizes 16, 64 and 256. Scaling weights and bias by it is exact, the query
is still scaled before the product, and the graph has one pass over the query less.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .attention_pattern import is_constant


def fold_scales(graph: ir.Graph) -> None:
    """Rewrite in place every such Mul whose linear layer feeds nothing else."""
    for node in list(graph):
        if node.op_type != "Mul" or len(node.inputs) != 2:
            continue
        for value, factor in (node.inputs, node.inputs[::-1]):
            scale = _power_of_two(factor)
            weights = _linear_weights(value) if scale is not None else None
            if scale is None or weights is None or value is None:
                continue
            for weight in weights:
                weight.const_value = _scaled(weight, scale)
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            break


def _power_of_two(value: ir.Value | None) -> float | None:
    tensor = value.const_value if value is not None else None
    if tensor is None or tensor.size != 1:
        return None
    number = float(tensor.numpy().reshape(()))
    return number if number > 0 and math.frexp(number)[0] == 0.5 else None


def _linear_weights(value: ir.Value | None) -> list[ir.Value] | None:
    """The weight, and bias if any, of the linear layer that makes ``value`` and nothing else."""
    found: list[ir.Value] = []
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.op_type not in ("Add", "MatMul"):
            return None
        constants = [v for v in node.inputs if v is not None and is_constant(v)]
        if len(constants) != 1 or len(constants[0].uses()) != 1:
            return None
        found += constants
        if node.op_type == "MatMul":
            return found
        value = next(v for v in node.inputs if v is not None and not is_constant(v))
    return None


def _scaled(value: ir.Value, scale: float) -> ir.TensorProtocol | None:
    tensor = value.const_value
    if tensor is None:
        return None

    def compute() -> ir.TensorProtocol:
        return ir.tensor((tensor.numpy() * np.float32(scale)).astype(np.float32), name=value.name)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(compute, dtype=tensor.dtype, shape=shape, name=value.name)
