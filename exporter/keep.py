"""Which nodes stay FP32: one keep-list, from which every kind of FP16 graph is made."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attn_export.errors import UsageError
from attn_export.roles import MASK, NORM_STATISTICS, role_of

from .attention_pattern import inputs_of

FP16_MAX = 65504.0
FP16_TINY = 2.0**-14  # the smallest normal number
_KEPT_ROLES = (MASK, NORM_STATISTICS)
# Their FP16 forms are missing from ONNX, or make random numbers that would not be the same ones.
_KEPT_OPS = {"Resize", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}

KeepList = dict[str, list[str]]


def floats(values: Sequence[ir.Value | None]) -> list[ir.Value]:
    """The FP32 tensors among some values."""
    return [v for v in values if v is not None and v.dtype == ir.DataType.FLOAT]


def keep_list(
    model: ir.Model, *, nodes: Sequence[str] = (), op_types: Sequence[str] = ()
) -> KeepList:
    """Node names that stay FP32, by reason.

    The reasons are roles (``mask``, ``norm_statistics``), ``excluded`` (the user's choice),
    ``operator`` and ``weight_range`` (a weight beyond FP16's largest number, 65504).

    Args:
        nodes: regular expressions; a node is excluded when one matches its whole name.
        op_types: operator names.

    Raises:
        UsageError: if an expression is broken, or an expression or operator matches nothing.
    """
    patterns = [_compiled(pattern) for pattern in nodes]
    unused = {*nodes, *op_types}
    keep: KeepList = {}
    for node in model.graph:
        hits = {p.pattern for p in patterns if p.fullmatch(node.name or "")}
        hits |= {node.op_type} & set(op_types)
        unused -= hits
        reason = _reason(node, excluded=bool(hits))
        if reason and floats([*node.inputs, *node.outputs]):
            keep.setdefault(reason, []).append(node.name or "")
    if unused:
        raise UsageError(
            f"nothing in the graph matches {', '.join(sorted(unused))}; "
            "'attn-export inspect' lists operators, and names look like layers.0.attention.scores"
        )
    return keep


def _reason(node: ir.Node, *, excluded: bool) -> str | None:
    role = role_of(node.name or "")
    if role in _KEPT_ROLES:
        return role
    if excluded:
        return "excluded"
    if node.op_type in _KEPT_OPS:
        return "operator"
    if any(_beyond_range(value) for value in inputs_of(node)):
        return "weight_range"
    return None


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from error


def _beyond_range(value: ir.Value) -> bool:
    if value.const_value is None or value.dtype != ir.DataType.FLOAT:
        return False
    if "beyond" not in value.meta:
        array = value.const_value.numpy()
        value.meta["beyond"] = bool(array.size) and not bool(np.abs(array).max() <= FP16_MAX)
    return bool(value.meta["beyond"])


def rounding_report(model: ir.Model, keep: KeepList) -> list[str]:
    """What FP16 does to the weights, in sentences; empty when nothing is lost but precision."""
    pinned = {name for names in keep.values() for name in names}
    zeros = subnormals = total = 0
    worst = ("", 0.0)
    for name, value in model.graph.initializers.items():
        used = any(consumer.name not in pinned for consumer in value.consumers())
        if value.dtype != ir.DataType.FLOAT or value.const_value is None or not used:
            continue
        size = np.abs(value.const_value.numpy())
        lost = int(np.count_nonzero((size > 0) & (size.astype(np.float16) == 0)))
        small = int(np.count_nonzero((size > 0) & (size < FP16_TINY))) - lost
        zeros, subnormals, total = zeros + lost, subnormals + small, total + size.size
        share = (lost + small) / max(size.size, 1)
        if share > worst[1]:
            worst = (name, share)
    report = [
        f"{node} stays FP32: a weight is beyond FP16's range"
        for node in keep.get("weight_range", [])
    ]
    if zeros or subnormals:
        report.append(
            f"of {total} weights {zeros} become zero in FP16 and {subnormals} subnormal "
            f"({(zeros + subnormals) / total:.3%}); most in {worst[0]} ({worst[1]:.3%})"
        )
    return report
