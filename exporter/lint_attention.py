"""What keeps TensorRT from fusing an attention, or makes it inaccurate in FP16.

The fused kernel is taken for MatMul, mask Add, Softmax, MatMul on [B, H, S, D] with the query
scaled before the first product (TensorRT documentation, fused attention).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from attn_export import roles

from .attention_pattern import attention_roles, inputs_of, is_float
from .finding import Finding, warning
from .keep import FP16_MAX

_NOT_FUSED = "so this attention will not be fused"
_HEAD_SIZES = range(16, 257, 8)
_REACH = 8


def attention_findings(graph: ir.Graph) -> Iterator[Finding]:
    """Warnings on every attention of a graph."""
    found = attention_roles(graph)
    for node, role in found.items():
        if role == roles.SCORES:
            yield from _rank(node)
            yield from _head_size(node)
            yield from _before_softmax(node, found)
        elif role == roles.CONTEXT:
            yield from _rank(node)
        elif role == roles.SOFTMAX:
            yield from _after_softmax(node, found)
        elif role in (roles.MASK, roles.MASK_ADD):
            yield from _mask_constants(node)


def _rank(product: ir.Node) -> Iterator[Finding]:
    ranks = [len(v.shape) for v in (*inputs_of(product), *product.outputs) if v.shape is not None]
    if ranks and max(ranks) > 4:
        yield warning(
            product,
            f"the product has rank {max(ranks)}, TensorRT fuses rank 4 [B, H, S, D], {_NOT_FUSED}; "
            "fold the axes",
        )


def _head_size(scores: ir.Node) -> Iterator[Finding]:
    query = scores.inputs[0]
    size = query.shape[-1] if query is not None and query.shape is not None else None
    if isinstance(size, int) and size not in _HEAD_SIZES:
        yield warning(
            scores,
            f"the head size is {size}, TensorRT fuses multiples of 8 from 16 to 256 (10.14 and "
            f"newer may pad others), {_NOT_FUSED}; choose such a size",
        )


def _before_softmax(scores: ir.Node, found: dict[ir.Node, str]) -> Iterator[Finding]:
    for node in _between(scores, roles.SOFTMAX, found):
        if found.get(node) == roles.SCALE:
            yield warning(
                node,
                f"the scores are scaled after the product, TensorRT wants the query scaled before "
                f"it, {_NOT_FUSED}, and FP16 may overflow; scale the query",
            )
        elif node.op_type == "Cast":
            yield warning(node, _cast_text())


def _after_softmax(softmax: ir.Node, found: dict[ir.Node, str]) -> Iterator[Finding]:
    for node in _between(softmax, roles.CONTEXT, found):
        if node.op_type in ("Where", "IsNaN"):
            yield warning(
                node,
                f"it stands between softmax and the next product, {_NOT_FUSED}; use a finite "
                "additive mask, which needs no repair after the softmax",
            )
        elif node.op_type == "Cast":
            yield warning(node, _cast_text())


def _cast_text() -> str:
    return (
        "the type changes inside the attention, which TensorRT before 11.3 cannot fuse; keep "
        "scores, softmax and context in one type"
    )


def _between(start: ir.Node, goal: str, found: dict[ir.Node, str]) -> set[ir.Node]:
    """The nodes on any way from ``start`` down to the nearest nodes of role ``goal``."""
    return _ways(start, goal, found, _REACH) or set()


def _ways(start: ir.Node, goal: str, found: dict[ir.Node, str], depth: int) -> set[ir.Node] | None:
    """None if no way leads there."""
    reached: set[ir.Node] | None = None
    for consumer in start.outputs[0].consumers():
        if found.get(consumer) == goal:
            reached = reached or set()
        elif depth and consumer.op_type not in ("MatMul", "Gemm", "Softmax"):
            rest = _ways(consumer, goal, found, depth - 1)
            if rest is not None:
                reached = (reached or set()) | {consumer} | rest
    return reached


def _mask_constants(node: ir.Node) -> Iterator[Finding]:
    tensors = [v.const_value for v in inputs_of(node) if is_float(v)]
    filled = node.attributes.get("value")  # ConstantOfShape
    if filled is not None and filled.type == ir.AttributeType.TENSOR:
        tensors.append(filled.as_tensor())
    for tensor in tensors:
        if tensor is None or not tensor.dtype.is_floating_point() or not tensor.size:
            continue
        largest = float(np.abs(np.asarray(tensor.numpy()).astype(np.float64)).max())
        if not largest <= FP16_MAX:
            yield warning(
                node,
                f"the mask holds a constant of size {largest:.3g}, infinite in FP16 (largest "
                f"{FP16_MAX:.0f}): a fully masked row becomes NaN; use -1e4",
            )
