"""What keeping nodes in FP32 costs: the islands that they form in an FP16 graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from attn_export.exporter.keep import floats
from attn_export.roles import CONTEXT, MASK_ADD, SCORES, SOFTMAX, role_of

_FUSED = {SCORES, MASK_ADD, SOFTMAX, CONTEXT}


@dataclass(frozen=True, kw_only=True)
class Island:
    """FP32 nodes that are connected.

    Args:
        nodes: their names, in graph order.
        casts: how many tensors change their type at its border.
        flops_share: share of the whole graph's floating-point operations.
        splits_attention: FP16 fused attention kernels do not take it: a part of an attention is
            FP32 (TensorRT fuses the whole pattern in one type, or not at all).
    """

    nodes: tuple[str, ...]
    casts: int
    flops_share: float
    splits_attention: bool

    def __str__(self) -> str:
        """In one line."""
        first, more = self.nodes[0], len(self.nodes) - 1
        names = f"{first} and {more} more" if more else first
        nodes = f"{len(self.nodes)} node{'s' if more else ''}"
        fused = "; this attention is no longer fused" if self.splits_attention else ""
        return f"{names}: {nodes}, {self.casts} casts, {self.flops_share:.2%} of FLOPs{fused}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**asdict(self), "nodes": list(self.nodes)}


def islands(
    model: ir.Model, pinned: Collection[str], kept: Collection[str], flops: Mapping[str, int]
) -> list[Island]:
    """The islands of an FP32 graph's nodes.

    Args:
        pinned: names of the nodes to account for.
        kept: names of all nodes that stay FP32, these among them.
        flops: floating-point operations by node.
    """
    total = sum(flops.values())
    found = []
    for group in _connected([node for node in model.graph if node.name in pinned]):
        names = tuple(node.name or "" for node in group)
        found.append(
            Island(
                nodes=names,
                casts=_casts(group, set(kept)),
                flops_share=sum(flops.get(name, 0) for name in names) / total if total else 0.0,
                splits_attention=any(role_of(name) in _FUSED for name in names),
            )
        )
    return found


def _connected(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Groups of neighbours, each in graph order, by their first node."""
    order = {node: index for index, node in enumerate(nodes)}
    left = dict.fromkeys(nodes)
    groups = []
    while left:
        queue = [next(iter(left))]
        group = []
        while queue:
            node = queue.pop()
            if node not in left:
                continue
            del left[node]
            group.append(node)
            queue += [p for value in floats(node.inputs) if (p := value.producer()) in left]
            queue += [c for v in floats(node.outputs) for c in v.consumers() if c in left]
        groups.append(sorted(group, key=order.__getitem__))
    return groups


def _casts(island: Sequence[ir.Node], kept: set[str]) -> int:
    """Activations that come from FP16 or go to it; weights are stored in either type."""
    into, out = set[ir.Value](), set[ir.Value]()
    for node in island:
        for value in floats(node.inputs):
            producer = value.producer()
            if producer is not None and producer.name not in kept:
                into.add(value)
        for value in floats(node.outputs):
            if any(consumer.name not in kept for consumer in value.consumers()):
                out.add(value)
    return len(into) + len(out)
