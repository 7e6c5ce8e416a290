"""Hold a graph to the rules of TensorRT's ONNX importers, before a GPU is there to say no.

Rules come from the importers' sources and documents, not from builds. Weights are not read: only
scales, zero points, axes and the constants of masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from attn_export.errors import BundleError, UsageError

from .finding import Finding, error, sentences, warning
from .graph_file import read_graph
from .lint_attention import attention_findings
from .lint_quantization import quantization_findings
from .tensorrt_importers import IMPORTERS, VERSIONS, Importer

# Importers of opset 17 take the axes of these from an attribute and do not look at the input.
_BLIND_REDUCTIONS = {
    *("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSumSquare"),
}


def lint(model: ir.Model, version: str) -> list[Finding]:
    """Everything that one version of TensorRT would refuse, misread or not fuse.

    Args:
        version: one of ``VERSIONS``: ``"tensorrt-8.6"``, ``"tensorrt-10"``, ``"tensorrt-11"``.

    Returns:
        The findings, those of the whole graph first; empty where the graph fits.

    Raises:
        UsageError: if the version is unknown.
    """
    importer = IMPORTERS.get(version)
    if importer is None:
        raise UsageError(f"unknown version {version!r}; choose one of {', '.join(VERSIONS)}")
    _note_constants(model)
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    findings = [*_opset(opset, importer), *_bindings(model.graph), *_dtypes(model, importer)]
    for node in _nodes(model):
        findings += _operator(node, importer, model)
        findings += _constant_input(node, importer)
        if importer.opset < 18:
            findings += _newer_forms(node, importer)
        findings += quantization_findings(node, importer, opset)
    return [*findings, *attention_findings(model.graph)]


def lint_file(path: Path, version: str) -> list[Finding]:
    """The same for a file.

    Raises:
        BundleError: if it cannot be read as an ONNX graph.
        UsageError: if the version is unknown.
    """
    try:
        model = read_graph(path)
    except Exception as cause:  # protobuf and onnx-ir raise unrelated classes
        raise BundleError(f"{path} cannot be read as an ONNX graph: {cause}") from cause
    return lint(model, version)


def unreadable_by(model: ir.Model) -> dict[str, list[str]]:
    """The versions that cannot read a graph, each with the reasons as sentences."""
    found = {}
    for version in VERSIONS:
        reasons = sentences(item for item in lint(model, version) if item.severity == "error")
        if reasons:
            found[version] = reasons
    return found


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes, those in branches, loops and local functions included."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        yield from ir.traversal.RecursiveGraphIterator(body)


def _note_constants(model: ir.Model) -> None:
    """A Constant node's value is as constant as an initializer; the pattern finder asks for it."""
    for node in _nodes(model):
        if node.op_type == "Constant" and node.outputs[0].const_value is None:
            value = node.outputs[0]
            value.const_value = ir.convenience.get_const_tensor(value, propagate_shape_type=True)


def _opset(opset: int, importer: Importer) -> Iterator[Finding]:
    if opset > importer.opset:
        silent = ", does not check it and misreads newer forms" if importer.opset < 18 else ""
        yield error(
            None,
            f"the graph is at opset {opset}; every release of {importer.title} reads up to "
            f"{importer.opset}{silent}; export it at opset {importer.opset} or lower",
        )


def _bindings(graph: ir.Graph) -> Iterator[Finding]:
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.dtype == ir.DataType.INT64:
                yield warning(
                    None,
                    f"{kind} {value.name!r} is int64: TensorRT 8.6 binds it as int32, 10 and "
                    "newer as int64; make it int32, which all bind alike",
                )


def _dtypes(model: ir.Model, importer: Importer) -> Iterator[Finding]:
    """One finding for each element type that is not there, however many tensors have it."""
    counts: Counter[ir.DataType] = Counter()
    first: dict[ir.DataType, ir.Value] = {}
    inner = (value for node in _nodes(model) for value in node.outputs)
    graph = model.graph
    for value in (*graph.inputs, *graph.initializers.values(), *inner):
        dtype = value.dtype or ir.DataType.UNDEFINED
        if dtype != ir.DataType.UNDEFINED and dtype.name not in importer.dtypes:
            counts[dtype] += 1
            first.setdefault(dtype, value)
    for dtype, count in counts.items():
        node = first[dtype].producer()
        what = f"{count} tensors are {dtype.name}, the first {first[dtype].name!r}"
        if dtype == ir.DataType.DOUBLE:
            yield warning(node, f"{what}; TensorRT computes and binds them as FP32; make them FP32")
        else:
            allowed = ", ".join(sorted(importer.dtypes))
            yield error(node, f"{what}; {importer.title} has {allowed}; cast them to one of these")


def _operator(node: ir.Node, importer: Importer, model: ir.Model) -> Iterator[Finding]:
    if node.op_identifier() in model.functions:
        if importer.opset < 18:
            yield error(
                node, f"{importer.title} reads no local functions; inline them before you save"
            )
    elif node.domain not in ("", "ai.onnx"):
        yield error(
            node,
            f"operator {node.domain}.{node.op_type} is not of the ONNX standard, {importer.title} "
            "imports no other; write it with standard operators",
        )
    elif node.op_type not in importer.operators:
        yield error(
            node,
            f"{importer.title} does not import {node.op_type}; write it with operators that it "
            "imports, or target a newer TensorRT",
        )
    elif node.op_type in importer.later:
        yield warning(
            node,
            f"only TensorRT {importer.later[node.op_type]} and newer import {node.op_type}; "
            "build there, or write it with older operators",
        )


def _constant_input(node: ir.Node, importer: Importer) -> Iterator[Finding]:
    rule = importer.constant_inputs.get(node.op_type)
    value = _input(node, rule.index) if rule is not None else None
    if rule is None or value is None or value.const_value is not None:
        return
    what = f"its {rule.name} {value.name!r} are computed in the graph"
    if rule.since:
        yield warning(
            node, f"{what}, which only TensorRT {rule.since} and newer can read; make them constant"
        )
    else:
        yield error(node, f"{what}, {importer.title} wants a constant; fold or write it as one")


def _newer_forms(node: ir.Node, importer: Importer) -> Iterator[Finding]:
    """Forms that the importer of 8.6 takes for older ones, in silence."""
    if node.op_type in _BLIND_REDUCTIONS and _input(node, 1) is not None:
        yield error(
            node,
            f"its axes are an input (opset 18), which {importer.title} ignores: it would reduce "
            "all axes and say nothing; export at opset 17, where axes are an attribute",
        )
    elif node.op_type == "Split" and "num_outputs" in node.attributes:
        yield error(
            node,
            f"num_outputs (opset 18) is ignored by {importer.title}, which cuts uneven parts "
            "wrongly; export at opset 17, with the parts' sizes where they are uneven",
        )
    elif node.op_type == "Shape" and {"start", "end"} & set(node.attributes):
        # Seen with the importer of 8.6.0: Slice then fails, arithmetic runs with both dimensions.
        yield error(
            node,
            f"start and end (opset 15) are ignored by {importer.title}, which gives the whole "
            "shape; take the whole shape and Gather from it",
        )
    elif node.op_type == "Pad" and _input(node, 3) is not None:
        yield error(
            node,
            f"its axes are an input (opset 18), which {importer.title} ignores; pad all axes",
        )


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
