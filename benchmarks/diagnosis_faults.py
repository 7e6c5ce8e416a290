"""Where a typed graph leaves FP32: the first operator that breaks it, and what to pin.

What "first" means:

* Where values become NaN or infinite, it is the first operator in graph order whose result is not
  finite while all that it reads is, and which, typed alone in an FP32 graph, breaks an output.
  (A mask of -3.4e38 becomes -inf in FP16 and harms nothing: it is passed over.) Where no such
  operator breaks an output alone, it is the first of them if an output is not finite.
* Where all is finite and an output is outside the tolerance, it is the operator whose typing
  costs most: of all typed operators those of the first half and those of the second are typed
  alone, the half with the larger output error is halved again, down to one operator; where an
  operator whose result it reads costs half as much or more, that one is named, and so on upwards.

The error is that of the outputs against the FP32 graph's, as a multiple of what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attn_export.exporter.keep import FP16_MAX

from .diagnosis_error import Allowed, Error, measure, worst
from .diagnosis_pair import Pair
from .diagnosis_prefixes import Array, Feeds, open_prefix
from .diagnosis_survey import OpReport, described, survey

Kind = Literal["overflow", "nan", "underflow", "rounding", "quantization"]
Target = tuple[Feeds, Mapping[str, Array]]

_FLUSHED = 0.5  # of an operator's values: more is an underflow and no mere rounding


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What breaks a typed graph.

    Args:
        kind: ``"overflow"``: beyond FP16's largest number, 65504; ``"nan"``; ``"underflow"``: zero
            in FP16 and not in FP32; ``"rounding"`` and ``"quantization"``: finite, but too far.
        culprit: the operator that is named.
        others: operators with the same fault that are mended with it: those beyond the range that
            adjoin it or have its role, or the same one in other layers, where it costs all that is
            allowed, or half as much as the culprit.
        alone: the outputs' error when the culprit alone is typed.
        flops: floating-point operations of each node, for the cost of pinning it.
    """

    kind: Kind
    culprit: OpReport
    others: tuple[OpReport, ...]
    alone: Error
    flops: Mapping[str, int]

    @property
    def node(self) -> str:
        """The name of the operator."""
        return self.culprit.node

    @property
    def role(self) -> str:
        """Its role in the attention."""
        return self.culprit.role

    def __str__(self) -> str:
        """In one sentence."""
        op = self.culprit
        what = {
            "overflow": f"overflows: {op.fp32_max:.4g} in FP32, FP16 ends at {FP16_MAX:.0f}",
            "nan": f"makes NaN; in FP32 its largest value is {op.fp32_max:.4g}",
            "underflow": f"underflows: {op.flushed:.0%} of its values become zero",
            "rounding": f"is rounded too much: alone it costs {self.alone}",
            "quantization": f"is quantized too coarsely: alone it costs {self.alone}",
        }[self.kind]
        more = f" (and {len(self.others)} like it)" if self.others else ""
        return f"{op.node} ({described(op.role)}) {what}{more}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "kind": self.kind,
            "node": self.node,
            "role": self.role,
            "culprit": self.culprit.to_json(),
            "others": [op.to_json() for op in self.others],
            "alone": self.alone.to_json(),
        }


def find_fault(
    fp32: Path, typed: Path, feeds: Sequence[Feeds], *, allowed: Allowed
) -> Fault | None:
    """Find the operator that breaks a typed graph, or None where its outputs are close enough.

    Args:
        typed: the rounding twin of an FP16 graph (a CPU does not show overflow in the graph
            itself), or a Q/DQ graph of the same opset; its values must mean what the FP32 graph's
            values of the same names mean.
        feeds: inputs in the FP32 graph's dtypes; few and small ones that show the fault.
        allowed: (atol, rtol) by output.

    Raises:
        BundleError: if the typed graph is not one of this FP32 graph.
        MissingPackage: if ONNX Runtime is not installed.
    """
    pair = Pair(fp32, typed)
    exact = open_prefix(pair, pair.outputs, low=())
    return fault_of(pair, [(one, exact.run(one)) for one in feeds], allowed)


def fault_of(pair: Pair, targets: Sequence[Target], allowed: Allowed) -> Fault | None:
    """The same for opened graphs; where an expected value is NaN, it need only be finite."""
    return _Search(pair, targets, allowed).fault()


def prescribe(fault: Fault) -> list[str]:
    """The nodes to keep in FP32: those at fault, and those that would round their results.

    These are what reads such a result (through operators that only move it); on the way from
    Q K^T to the softmax all of it; of a norm in parts all its statistics. What is quantized is
    quantized where it is read, so that the nodes at fault are enough.
    """
    found: dict[str, None] = {}
    for op in (fault.culprit, *fault.others):
        near = () if fault.kind == "quantization" else op.neighbours
        found.update(dict.fromkeys((op.node, *near)))
    return list(found)


class _Search:
    def __init__(self, pair: Pair, targets: Sequence[Target], allowed: Allowed) -> None:
        self._pair, self._allowed = pair, allowed
        exact = open_prefix(pair, pair.outputs, low=())
        self._targets = [(feeds, _held(exact.run(feeds), right)) for feeds, right in targets]

    def fault(self) -> Fault | None:
        everything = [node.name or "" for node in self._pair.nodes]
        whole = self._error(everything)
        if whole.passed:
            return None
        ops = survey(self._pair, [feeds for feeds, _ in self._targets])
        suspects = [self._suspect(op, ops) for op in ops.values() if op.starts]
        for kind, op in suspects:
            alone = self._error([op.node])
            if not alone.passed:
                return self._fault(kind, op, alone, ops)
        if suspects and whole.nonfinite:
            kind, op = suspects[0]
            return self._fault(kind, op, self._error([op.node]), ops)
        return self._finite(ops)

    def _suspect(self, op: OpReport, ops: Mapping[str, OpReport]) -> tuple[Kind, OpReport]:
        """What makes an operator's result not finite: its range, or a zero that it reads."""
        if op.fp32_max > FP16_MAX and self._pair.is_rounded(op.node):
            return "overflow", op
        source = self._flushed_source(op, ops)
        if source is not None:
            return "underflow", source
        return "nan" if op.nan else "overflow", op

    def _finite(self, ops: Mapping[str, OpReport]) -> Fault | None:
        group: Sequence[str] = [name for name in self._pair.typed_nodes if name in ops]
        while len(group) > 1:
            halves = group[: len(group) // 2], group[len(group) // 2 :]
            group = max(halves, key=lambda half: self._error(half).excess)
        if not group:
            return None
        op, alone = ops[group[0]], self._error(group)
        if self._pair.is_quantized(op.node):
            return self._fault("quantization", op, alone, ops)
        if op.fp32_max > FP16_MAX:
            return self._fault("overflow", op, alone, ops)
        op, alone = self._climb(op, alone, ops)
        return self._fault("underflow" if op.flushed > _FLUSHED else "rounding", op, alone, ops)

    def _climb(
        self, op: OpReport, alone: Error, ops: Mapping[str, OpReport]
    ) -> tuple[OpReport, Error]:
        """Up to the first operator whose results it reads and that costs half as much or more."""
        enough = alone.excess / 2
        while True:
            above = [ops[name] for name in self._pair.makers(op.node) if name in ops]
            costs = [(self._error([other.node]), other) for other in above]
            cost, other = max(costs, key=lambda item: item[0].excess, default=(Error(), op))
            if cost.excess == 0 or cost.excess < enough:
                return op, alone
            op, alone = other, cost

    def _fault(self, kind: Kind, op: OpReport, alone: Error, ops: Mapping[str, OpReport]) -> Fault:
        others = self._beyond(op, ops) if kind == "overflow" else self._siblings(op, alone, ops)
        flops = {name: report.flops for name, report in ops.items()}
        return Fault(kind=kind, culprit=op, others=tuple(others), alone=alone, flops=flops)

    def _error(self, low: Collection[str]) -> Error:
        mix = open_prefix(self._pair, self._pair.outputs, low=low)
        return worst(
            measure(mix.run(feeds), expected, self._allowed) for feeds, expected in self._targets
        )

    def _beyond(self, op: OpReport, ops: Mapping[str, OpReport]) -> Iterator[OpReport]:
        """The others beyond FP16's range that have its role or adjoin one of these."""
        beyond = {
            name: other
            for name, other in ops.items()
            if other.fp32_max > FP16_MAX and self._pair.is_rounded(name)
        }
        near = {name: set(other.neighbours) & beyond.keys() for name, other in beyond.items()}
        queue = [op.node, *(name for name, other in beyond.items() if other.role == op.role)]
        found: set[str] = set()
        while queue:
            name = queue.pop()
            if name not in found:
                found.add(name)
                queue += [*near.get(name, ()), *(n for n, there in near.items() if name in there)]
        return (other for name, other in beyond.items() if name in found and name != op.node)

    def _siblings(
        self, op: OpReport, alone: Error, ops: Mapping[str, OpReport]
    ) -> Iterator[OpReport]:
        """The same operator in other layers, where it costs too much, or half as much."""
        for other in ops.values():
            if other is op or _layerless(other.node) != _layerless(op.node):
                continue
            cost = self._error([other.node]).excess
            if cost > 0 and cost >= min(1, alone.excess / 2):
                yield other

    def _flushed_source(self, op: OpReport, ops: Mapping[str, OpReport]) -> OpReport | None:
        """The first operator above whose values became zero, if they reach this one."""
        nodes = {node.name or "": node for node in self._pair.nodes}
        source, here = None, op.node
        while True:
            above = [v.producer() for v in nodes[here].inputs if v is not None]
            names = [node.name or "" for node in above if node is not None]
            flushed = [name for name in names if name in ops and ops[name].flushed > 0]
            if not flushed:
                return source
            here = max(flushed, key=lambda name: ops[name].flushed)
            if here in self._pair.typed_nodes:
                source = ops[here]


def _held(exact: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, Array]:
    """The FP32 graph's outputs, not held where the expected ones are not."""
    return {
        name: np.where(np.isnan(expected[name]), np.nan, array)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in exact.items()
    }


def _layerless(name: str) -> str:
    return re.sub(r"\d+", "*", name)
