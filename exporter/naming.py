"""Name every node by module scope and role, every value by its node, and forget the exporter."""

from __future__ import annotations

import ast
import re
from collections import Counter

import onnx_ir as ir

from attn_export import roles

from .attention_pattern import attention_roles, inputs_of, is_constant, is_float
from .norm_pattern import norm_statistics

SCOPES = "pkg.torch.onnx.name_scopes"
WRAPPER = re.compile(r"^inner(\.|$)")  # the adapter around the user's module


def name_by_role(model: ir.Model) -> None:
    """Rename nodes, values and weights in place. Graph inputs and outputs keep their names."""
    graph = model.graph
    found = attention_roles(graph)
    found.update(dict.fromkeys(norm_statistics(graph), roles.NORM_STATISTICS))
    taken: Counter[str] = Counter(v.name for v in [*graph.inputs, *graph.outputs] if v.name)
    renames: list[tuple[ir.Value, str]] = []
    for node in graph:
        scope = _scope(node)
        label = found.get(node) or _role(node)
        node.name = _unique(f"{scope}.{label}" if scope else label, taken)
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                renames.append((value, f"{node.name}:{index}" if index else node.name))
        for value in inputs_of(node):
            if is_constant(value):
                _name_weight(value, scope, node, taken, renames)
    _rename(graph, renames)
    _forget_exporter(model)


def _rename(graph: ir.Graph, renames: list[tuple[ir.Value, str]]) -> None:
    """The table of weights is emptied first: a new name may be another weight's old one."""
    weights = [(value, name) for value, name in renames if is_constant(value)]
    graph.initializers.clear()
    for value, name in renames:
        value.name = name
    for value, name in weights:
        graph.initializers[name] = value


def _scope(node: ir.Node) -> str:
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return ""
    inner = scopes[-2] if len(scopes) > 1 else ""
    return WRAPPER.sub("", inner) if WRAPPER.match(inner) else ""


def _role(node: ir.Node) -> str:
    """The role of a node outside attention and norms, from what it reads."""
    op, operands = node.op_type, inputs_of(node)
    if op in ("MatMul", "Gemm") and any(is_constant(v) for v in operands[:2]):
        return roles.GEMM
    if op == "LayerNormalization":
        return roles.NORM
    if _is_lookup(node):
        return roles.EMBEDDING
    if op == "Add" and is_float(node.outputs[0]):
        return _role_of_add(operands)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op).lower()


def _role_of_add(operands: list[ir.Value]) -> str:
    producers = [value.producer() for value in operands]
    if any(is_constant(value) for value in operands):
        gemm = any(p is not None and p.op_type == "MatMul" for p in producers)
        return roles.BIAS if gemm else "add"
    lookups = [p is not None and _is_lookup(p) for p in producers]
    return roles.EMBEDDING if any(lookups) else roles.RESIDUAL


def _is_lookup(node: ir.Node) -> bool:
    """Rows taken from a table of weights."""
    return (
        node.op_type in ("Gather", "Slice")
        and is_constant(node.inputs[0])
        and is_float(node.inputs[0])
    )


def _name_weight(
    value: ir.Value,
    scope: str,
    node: ir.Node,
    taken: Counter[str],
    renames: list[tuple[ir.Value, str]],
) -> None:
    """A parameter keeps the module's name for it; the exporter's own constants get a place."""
    if value.meta.get("named"):
        return
    value.meta["named"] = True
    own = value.name or ""
    if WRAPPER.match(own):
        wanted = WRAPPER.sub("", own)
    else:
        kind = "weight" if node.op_type in ("MatMul", "Gemm") else "constant"
        wanted = f"{scope}.{kind}" if scope else kind
    renames.append((value, _unique(wanted, taken)))


def _unique(name: str, taken: Counter[str]) -> str:
    while True:
        taken[name] += 1
        numbered = name if taken[name] == 1 else f"{name}_{taken[name]}"
        if numbered == name or not taken[numbered]:
            taken[numbered] = max(1, taken[numbered])
            return numbered


def _forget_exporter(model: ir.Model) -> None:
    """The exporter's notes hold local paths and stack traces."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
