"""Move scale from activations into weights, so that one large channel does not cost all others.

SmoothQuant (Xiao et al. 2023, arXiv:2211.10438, equation 4): channel j of a LayerNorm's output is
divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), row j of the weights that read it is
multiplied by s_j. The division is put into the norm's own scale and bias, so the function stays
the same and costs nothing.

That is exact only where products with weights are all that read the norm's output, as in a
pre-norm model. In a post-norm encoder (BERT) the residual reads it too, and would need a
multiplication of its own to get the old values back: such norms are left as they are and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from attn_export.errors import BuildFailed, InputError, UsageError

from .placement import refuse_quantized, weight_axis
from .qdq import constant, write_checked

Array = np.ndarray[Any, Any]
_SMALLEST = 1e-5  # as the paper's own code has it: a scale must not make weights vanish


@dataclass(frozen=True, kw_only=True)
class SmoothSummary:
    """What was moved.

    Args:
        smoothed: the norms whose output was smoothed, by node name.
        skipped: the other norms, each with the reason.
    """

    smoothed: tuple[str, ...]
    skipped: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def smoothable(model: ir.Model) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The norms that can be smoothed, each with the products that read it; the others' reasons.

    A norm's output has its node's name: these are the tensors whose channels must be measured.
    """
    found: dict[str, list[str]] = {}
    skipped: dict[str, str] = {}
    for node in model.graph:
        if node.op_type != "LayerNormalization":
            continue
        reason = _obstacle(node)
        if reason:
            skipped[node.name or ""] = reason
        else:
            found[node.name or ""] = [n.name or "" for n, _ in node.outputs[0].uses()]
    return found, skipped


def write_smoothed(
    graph: Path, maxima: Mapping[str, Array], out: Path, *, alpha: float = 0.5
) -> SmoothSummary:
    """Write the smoothed form of an FP32 graph, which computes the same; calibrate it anew.

    Args:
        maxima: by tensor, the largest magnitude of each channel [M], for every norm that
            :func:`smoothable` names.
        alpha: how much of the difficulty moves into the weights, between 0 and 1.

    Raises:
        UsageError: if alpha is outside 0 to 1.
        InputError: if the maxima of a norm are missing, of the wrong shape or not finite.
        BuildFailed: if the graph is quantized already, or no norm can be smoothed; the reason
            is named.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}; it must be between 0 and 1")
    model = ir.load(graph)
    refuse_quantized(model.graph)
    found, skipped = smoothable(model)
    if not found:
        first = next(iter(skipped.items()), ("the graph", "it has no LayerNormalization"))
        raise BuildFailed(f"no norm can be smoothed exactly: {first[0]}: {first[1]}")
    nodes = {node.name or "": node for node in model.graph}
    for name, readers in found.items():
        _smooth(model.graph, nodes[name], [nodes[r] for r in readers], maxima, alpha)
    write_checked(model, out)
    return SmoothSummary(smoothed=tuple(found), skipped=skipped)


def _obstacle(norm: ir.Node) -> str:
    output = norm.outputs[0]
    if output.is_graph_output():
        return "its output is an output of the graph"
    for value in norm.inputs[1:]:
        if value is not None and value.const_value is None:
            return "its scale or bias is computed in the graph"
        if (
            value is not None
            and value.const_value is not None
            and len(value.const_value.shape) != 1
        ):
            return "it normalises more than one axis"
    for reader, index in output.uses():
        if index != 0 or weight_axis(reader, 1) is None:
            return f"{reader.name} reads its output too and would need the old values"
        if reader.attributes.get_int("transA", 0):
            return f"{reader.name} reads its output transposed"
    return "" if output.uses() else "nothing reads its output"


def _smooth(
    graph: ir.Graph,
    norm: ir.Node,
    readers: list[ir.Node],
    maxima: Mapping[str, Array],
    alpha: float,
) -> None:
    name = norm.name or ""
    weights = [(reader, _rows_last(reader)) for reader in readers]
    largest = np.max([np.abs(rows).max(axis=0) for _, rows in weights], axis=0)
    scales = smoothing_scales(_checked(maxima, name, largest.size), largest, alpha)
    _replace(graph, norm, 1, _array(norm, 1) / scales)
    if len(norm.inputs) > 2 and norm.inputs[2] is not None:
        _replace(graph, norm, 2, _array(norm, 2) / scales)
    for reader, rows in weights:
        scaled = rows * scales
        _replace(graph, reader, 1, scaled if weight_axis(reader, 1) == 0 else scaled.T)


def smoothing_scales(activations: Array, weights: Array, alpha: float) -> Array:
    """Equation 4 for channels' largest magnitudes; 1 where a channel is never used."""
    used = (activations > 0) & (weights > 0)
    x = np.where(used, activations, 1).astype(np.float64)
    w = np.where(used, weights, 1).astype(np.float64)
    return np.asarray(np.maximum(x**alpha / w ** (1 - alpha), _SMALLEST))


def _rows_last(reader: ir.Node) -> Array:
    """A product's weight with its input channels last: [N, K]."""
    weight = _array(reader, 1)
    return weight if weight_axis(reader, 1) == 0 else weight.T


def _array(node: ir.Node, index: int) -> Array:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy()).astype(np.float64)


def _checked(maxima: Mapping[str, Array], name: str, size: int) -> Array:
    if name not in maxima:
        raise InputError(f"the largest magnitudes of {name} are missing; measure its channels")
    array = np.asarray(maxima[name])
    if array.shape != (size,) or not np.all(np.isfinite(array) & (array >= 0)):
        raise InputError(
            f"{name}: the largest magnitudes have shape {array.shape}, from {array.min()} to "
            f"{array.max()}; {size} finite numbers from 0 up are needed"
        )
    return array


def _replace(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> None:
    """Give one reader its own constant: others may share the old one."""
    old = node.inputs[index]
    assert old is not None
    new = np.ascontiguousarray(array, np.float32)
    if len(old.uses()) == 1:
        old.const_value = ir.tensor(new, name=old.name)
    else:
        node.replace_input_with(index, constant(graph, f"{node.name}.{old.name}.smoothed", new))
