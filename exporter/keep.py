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
FP16_HALF_LEAST = 2.0**-25  # a smaller number is 0 in FP16
_KEPT_ROLES = (MASK, NORM_STATISTICS)
# What keeps a divisor from being 0, and what divides by it.
_GUARDS = {"Add", "Clip", "Max"}
_DIVISIONS = {"Div", "Log", "Pow", "Reciprocal", "Sqrt"}
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
    ``operator``, ``weight_range`` (a weight beyond FP16's largest number, 65504) and ``guard`` (a
    bound such as 1e-9 that is 0 in FP16, and the division that it guards).

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
    return "guard" if _is_guard(node) or _is_guarded(node) else None


def _is_guard(node: ir.Node) -> bool:
    """Whether it holds a value away from 0 by a constant that FP16 does not have."""
    return node.op_type in _GUARDS and any(_vanishes(value) for value in inputs_of(node))


def _is_guarded(node: ir.Node) -> bool:
    """Whether it divides by (or takes the root of) what a guard gives, also when only moved."""
    if node.op_type not in _DIVISIONS:
        return False
    value = node.inputs[-1] if node.op_type == "Div" else node.inputs[0]
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("Expand", "Reshape", "Unsqueeze"):
        value = producer.inputs[0]
        producer = value.producer() if value is not None else None
    return producer is not None and _is_guard(producer)


def _vanishes(value: ir.Value) -> bool:
    """Whether it is one small constant that is not 0 in FP32 and is 0 in FP16."""
    tensor = value.const_value
    if tensor is None or value.dtype != ir.DataType.FLOAT or tensor.size != 1:
        return False
    number = abs(float(tensor.numpy().reshape(-1)[0]))
    return 0 < number <= FP16_HALF_LEAST


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
