"""What every operator makes in FP32 and in the typed graph: magnitudes, errors, room in FP16."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attn_export.exporter.keep import FP16_MAX
from attn_export.roles import (
    GEMM,
    MASK_ADD,
    NORM,
    NORM_STATISTICS,
    ROLES,
    SCALE,
    SCORES,
    role_of,
)

from .diagnosis_pair import FULL, Pair, only_moves
from .diagnosis_prefixes import Array, Feeds, open_prefix

WINDOW = 32  # nodes whose results are in memory at a time
# Between Q K^T and the softmax a value keeps its magnitude: pinned together or not at all.
_TO_SOFTMAX = (SCALE, SCORES, MASK_ADD)


@dataclass(frozen=True, kw_only=True)
class OpReport:
    """One operator over all feeds. Errors are relative to the tensor's largest FP32 value.

    Args:
        role: of :mod:`attn_export.roles`, or the operator's name.
        fp32_max: the largest |value| of its FP32 result.
        error_before: the largest error among what it reads in the typed graph.
        error_after: the largest error of its result there; infinite where that is not finite.
        nonfinite: how many values are NaN or infinite in the typed graph alone.
        nan: whether some of these are NaN.
        starts: its result is not finite while all that it reads is.
        flushed: share of its values that are zero in the typed graph alone.
        flops: floating-point operations of one feed, the largest.
        neighbours: the nodes that must be FP32 with it, or its result is rounded all the same.
    """

    node: str
    op_type: str
    role: str
    fp32_max: float
    error_before: float
    error_after: float
    nonfinite: int
    nan: bool
    starts: bool
    flushed: float
    flops: int
    neighbours: tuple[str, ...]

    @property
    def headroom(self) -> float:
        """How many times its largest FP32 value fits into FP16's range; below 1 it does not."""
        return FP16_MAX / self.fp32_max if self.fp32_max else math.inf

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        numbers = {
            "error_before": self.error_before,
            "error_after": self.error_after,
            "headroom": self.headroom,
        }
        finite = {key: n if math.isfinite(n) else None for key, n in numbers.items()}
        return {**asdict(self), **finite, "neighbours": list(self.neighbours)}


@dataclass
class _Seen:
    """One tensor's numbers."""

    largest: float = 0.0
    error: float = 0.0
    nonfinite: int = 0
    nan: bool = False
    flushed: float = 0.0
    shape: tuple[int, ...] = ()

    def add(self, exact: Array, typed: Array) -> None:
        here = np.isfinite(exact)
        both = here & np.isfinite(typed)
        self.nonfinite += int((here & ~both).sum())
        self.nan |= bool((here & np.isnan(typed)).any())
        if exact.size >= math.prod(self.shape):
            self.shape = exact.shape
        if here.any():
            self.largest = max(self.largest, float(np.abs(exact[here]).max()))
            lost = (typed[here] == 0) & (exact[here] != 0)
            self.flushed = max(self.flushed, float(lost.mean()))
        if both.any():
            difference = exact[both].astype(np.float64) - typed[both]
            self.error = max(self.error, float(np.abs(difference).max()))

    @property
    def relative(self) -> float:
        if self.nonfinite:
            return math.inf
        return self.error / self.largest if self.largest else self.error


def survey(pair: Pair, feeds: Sequence[Feeds]) -> dict[str, OpReport]:
    """Run both graphs as prefixes that grow by some nodes at a time; reports in graph order."""
    seen: dict[str, _Seen] = {}
    everything = [node.name or "" for node in pair.nodes]
    for start in range(0, len(pair.nodes), WINDOW):
        window = pair.nodes[start : start + WINDOW]
        names = [v.name or "" for node in window for v in node.outputs if v.dtype == FULL]
        if not names:
            continue
        exact = open_prefix(pair, names, low=())
        typed = open_prefix(pair, names, low=everything)
        seen |= {name: _Seen() for name in names}
        for one in feeds:
            right, got = exact.run(one), typed.run(one)
            for name in names:
                seen[name].add(right[name], got[name])
    return {
        node.name or "": _report(pair, node, seen)
        for node in pair.nodes
        if any(value.name in seen for value in node.outputs)
    }


def _report(pair: Pair, node: ir.Node, seen: Mapping[str, _Seen]) -> OpReport:
    made = [seen[v.name or ""] for v in node.outputs if v.name in seen]
    read = [seen[v.name or ""] for v in node.inputs if v is not None and v.name in seen]
    nonfinite = sum(tensor.nonfinite for tensor in made)
    return OpReport(
        node=node.name or "",
        op_type=node.op_type,
        role=_role(pair, node),
        fp32_max=max(tensor.largest for tensor in made),
        error_before=max((tensor.relative for tensor in read), default=0.0),
        error_after=max(tensor.relative for tensor in made),
        nonfinite=nonfinite,
        nan=any(tensor.nan for tensor in made),
        starts=nonfinite > 0 and not any(tensor.nonfinite for tensor in read),
        flushed=max(tensor.flushed for tensor in made),
        flops=_flops(node, made[0], seen),
        neighbours=_neighbours(pair, node),
    )


def _role(pair: Pair, node: ir.Node) -> str:
    """What a norm in parts reads beside its statistics is part of that norm."""
    role = role_of(node.name or "")
    if role not in ROLES:
        readers = {role_of(reader.name or "") for reader in pair.readers(node)}
        return NORM if NORM_STATISTICS in readers and not only_moves(node) else role
    return role


def _neighbours(pair: Pair, node: ir.Node) -> tuple[str, ...]:
    """Readers; on the way to the softmax all up to it; of a norm in parts all its statistics."""
    found: dict[ir.Node, None] = {}
    queue = [node]
    while queue:
        here = queue.pop()
        role = role_of(here.name or "")
        near = list(pair.readers(here)) if here is node or role in _TO_SOFTMAX else []
        if role == NORM_STATISTICS:
            producers = [value.producer() for value in here.inputs if value is not None]
            readers = pair.readers(here)
            near += [
                other
                for other in (*producers, *readers)
                if other is not None and role_of(other.name or "") == NORM_STATISTICS
            ]
        for other in near:
            if other not in found and other is not node:
                found[other] = None
                queue.append(other)
    return tuple(other.name or "" for other in pair.nodes if other in found)


def _flops(node: ir.Node, made: _Seen, seen: Mapping[str, _Seen]) -> int:
    """Two for each multiply-add of a product, one for each value of anything else."""
    size = math.prod(made.shape)
    if node.op_type not in ("MatMul", "Gemm"):
        return 0 if only_moves(node) else size
    first = node.inputs[0]
    if first is None or first.name not in seen:
        return 2 * size
    transposed = node.attributes.get("transA")
    axis = -2 if transposed is not None and transposed.as_int() else -1
    return 2 * size * seen[first.name or ""].shape[axis]


def described(role: str) -> str:
    """A role in words."""
    words = {
        SCORES: "QK^T",
        MASK_ADD: "the mask add",
        SCALE: "the scale of the query or the scores",
        GEMM: "a GEMM's accumulation",
        NORM: "a norm",
        NORM_STATISTICS: "a norm's statistics",
        "residual": "the growth of the residual",
        "context": "the product of softmax and V",
        "bias_add": "a bias add",
        "softmax": "the softmax",
        "embedding": "an embedding",
        "mask": "the mask's arithmetic",
    }
    return words.get(role, f"the operator {role}")
