"""Write the INT8 graph for a CPU: unsigned activations, signed weights, one scale a channel.

A CPU's INT8 instructions (x86: VNNI, AMX) multiply unsigned by signed bytes. ONNX Runtime has
kernels for just that; symmetric activations, as TensorRT wants them, run at the speed of FP32
there. An x86 CPU with neither adds pairs of such products in 16 bits, which can saturate: there
only a measured agreement says whether the graph may be used.

* ``dynamic``: each batch brings its own activation ranges. Standard operators alone, and no
  calibration; but a sample's answer depends a little on the others of its batch.
* ``static``: the ranges of a calibration. Each product is ONNX Runtime's own
  ``com.microsoft.MatMulIntegerToFloat``: with the standard Q and DQ around a MatMul its bias would
  be a pass of its own, a tenth of an encoder's time.

One activation is quantized once, whoever reads it. What has the name of a value of the FP32 graph
means the same value here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import onnx_ir as ir

from attn_export.errors import BuildFailed, UsageError
from attn_export.roles import CONTEXT, RESIDUAL, SCORES, role_of

from .cpu_products import DOMAIN, Products
from .graph_structure import graph_digest
from .placement import PlacementOptions, place, weight_gemms
from .qdq import write_checked
from .ranges import Ranges
from .weight_rounding import Moments

Kind = Literal["dynamic", "static"]
Refine = Literal["none", "weights", "both"]

# What a projection passes on its way to the attention's scores: moves, biases, rotations.
_PASSES = {
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Expand",
    "Flatten",
    "Identity",
    "Mul",
    "Neg",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
}


def write_cpu_int8(
    graph: Path,
    out: Path,
    *,
    kind: Kind,
    ranges: Ranges | None = None,
    exclude: Sequence[str] = (),
    refine: Refine = "none",
    moments: Moments | None = None,
) -> dict[str, Any]:
    """Write the INT8 form of an FP32 graph for ONNX Runtime's CPU; returns what was done.

    The products with weights run in INT8, as :func:`.placement.place` chooses them; the attention's
    own products, the norms and products that see one row of each sequence stay FP32. Memory peaks
    at 3.3 times the FP32 weights.

    Args:
        ranges: of every quantized activation; ``static`` needs them, ``dynamic`` takes none.
        moments: of the quantized activations, from :func:`.weight_rounding.second_moments`: weights
            are rounded for them. Weights whose activation has none are rounded to the nearest.
        exclude: regular expressions of node names; products whose whole name one matches stay FP32.
        refine: spend more INT8 products where INT8 alone costs too much accuracy: ``weights``
            computes the weights' rounding errors too, in a second product, ``both`` those of the
            activations in a third. Products that lead to the attention's scores alone get none:
            the softmax damps their errors.

    Returns:
        ``kind`` and ``refine``; the names of the ``gemms`` in INT8, which of them are ``refined``,
        and the products with weights that are ``left``; how many ``activations`` are quantized;
        the ``contrib_operators`` that only ONNX Runtime has; the file's ``bytes``, external data
        aside.

    Raises:
        UsageError: if ``static`` has no ranges or ``dynamic`` has some, a choice is unknown, or an
            expression is broken or matches nothing.
        BundleError: if the ranges or moments are those of another graph, or ranges lack a tensor.
        BuildFailed: if the graph is quantized already, has nothing to quantize, or holds a weight
            that is not finite.
    """
    _require_fitting(kind, refine, ranges)
    if ranges is not None:
        ranges.require_graph(graph_digest(graph))
    model = ir.load(graph)
    placement = place(model, PlacementOptions(exclude=tuple(exclude)))
    chosen = {name for name, _ in placement.edges}
    gemms = [node for node in weight_gemms(model.graph) if node.name in chosen and _is_plain(node)]
    if not gemms:
        raise BuildFailed("nothing is left to quantize: every Gemm has transA, alpha or beta")
    left = [node.name for node in weight_gemms(model.graph) if node not in set(gemms)]
    names = [node.name for node in gemms]
    refined = {node.name for node in gemms if refine != "none" and not _only_scores(node)}
    products = Products(model.graph, ranges, moments or {})
    for node in gemms:
        products.replace(node, refine=refine if node.name in refined else "none")
    if ranges is not None:
        model.opset_imports[DOMAIN] = 1
    write_checked(model, out)
    return {
        "kind": kind,
        "refine": refine,
        "gemms": names,
        "refined": [name for name in names if name in refined],
        "left": left,
        "activations": products.activations,
        "contrib_operators": sorted(_contrib_operators(model.graph)),
        "bytes": out.stat().st_size,
    }


def _require_fitting(kind: str, refine: str, ranges: Ranges | None) -> None:
    if kind not in get_args(Kind):
        raise UsageError(f"the kind is {kind!r}; the kinds are: {', '.join(get_args(Kind))}")
    if refine not in get_args(Refine):
        raise UsageError(f"refine is {refine!r}; choose: {', '.join(get_args(Refine))}")
    if kind == "static" and ranges is None:
        raise UsageError("a static INT8 graph needs ranges; calibrate first, or ask for a dynamic")
    if kind == "dynamic" and ranges is not None:
        raise UsageError("a dynamic INT8 graph finds its ranges as it runs; give none, or static")


def _is_plain(node: ir.Node) -> bool:
    """Whether it is x W + b and nothing more."""
    attributes = node.attributes
    return (
        not attributes.get_int("transA", 0)
        and attributes.get_float("alpha", 1.0) == 1
        and attributes.get_float("beta", 1.0) == 1
    )


def cheap_values(graph: Path) -> list[str]:
    """The products that make the attention's values, where they are a tenth of the work or less.

    With shared heads they are: there FP32 costs little, and their error is the one that the softmax
    does not damp.
    """
    model = ir.load(graph)
    gemms = weight_gemms(model.graph)
    values = [node for node in gemms if _leads_only_to(node, CONTEXT)]
    return [node.name or "" for node in values] if 10 * _work(values) <= _work(gemms) else []


def shared_head_products(graph: Path) -> list[str]:
    """The products that make keys and values for several query heads each; none with MHA."""
    gemms = weight_gemms(ir.load(graph).graph)
    values = [node for node in gemms if _leads_only_to(node, CONTEXT)]
    scored = [node for node in gemms if _only_scores(node)]
    widest = max((_work([node]) for node in scored), default=0)
    shared = [node for node in (*scored, *values) if _work([node]) < widest]
    return [node.name or "" for node in shared]


def _work(gemms: Sequence[ir.Node]) -> int:
    """Weights to multiply with, for one position."""
    return sum(v.const_value.size for n in gemms if (v := n.inputs[1]) and v.const_value)


def _only_scores(gemm: ir.Node) -> bool:
    return _leads_only_to(gemm, SCORES)


def _leads_only_to(gemm: ir.Node, product: str) -> bool:
    """Whether its result is read for one of the attention's products and for nothing else."""
    pending = list(gemm.outputs)
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return False
        for node in value.consumers():
            role = role_of(node.name or "")
            if role == product:
                continue
            if role == RESIDUAL or node.op_type not in _PASSES:
                return False
            pending += node.outputs
    return True


def _contrib_operators(graph: ir.Graph) -> Iterator[str]:
    yield from {f"{node.domain}.{node.op_type}" for node in graph if node.domain == DOMAIN}
