"""What is in a graph: the facts that ``inspect`` shows and the manifest keeps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir

from attn_export.errors import BundleError
from attn_export.roles import ROLES, role_of

from .attention_pattern import is_float
from .graph_file import read_graph


def summarise(model: ir.Model) -> dict[str, Any]:
    """Counts of operators, roles and stored dtypes; inputs and outputs; opset and provenance."""
    graph = model.graph
    weights = [v for v in graph.initializers.values() if v.const_value is not None]
    floats = [v for v in weights if is_float(v)]
    stored = Counter[str]()
    for value in weights:
        if value.const_value is not None:
            stored[_dtype(value)] += value.const_value.nbytes
    operators = Counter(node.op_type for node in graph)
    names = Counter(role_of(node.name or "") for node in graph)
    return {
        "opset": model.opset_imports.get(""),
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "nodes": sum(operators.values()),
        "operators": dict(operators.most_common()),
        "roles": {role: names[role] for role in sorted(ROLES) if names[role]},
        "casts": operators["Cast"],
        "stored_floats": sum(v.const_value.size for v in floats if v.const_value is not None),
        "weight_bytes": dict(stored.most_common()),
        "inputs": [_tensor(value) for value in graph.inputs],
        "outputs": [_tensor(value) for value in graph.outputs],
        "metadata": dict(model.metadata_props),
    }


def summarise_file(path: Path) -> dict[str, Any]:
    """The same for a file.

    Raises:
        BundleError: if it cannot be read as an ONNX graph.
    """
    try:
        return summarise(read_graph(path))
    except Exception as error:  # protobuf and onnx-ir raise unrelated classes
        raise BundleError(f"{path} cannot be read as an ONNX graph: {error}") from error


def _dtype(value: ir.Value) -> str:
    return str(value.dtype.numpy()) if value.dtype is not None else "unknown"


def _tensor(value: ir.Value) -> dict[str, Any]:
    shape = [d if isinstance(d, int) else str(d.value) for d in value.shape or ()]
    return {"name": value.name, "dtype": _dtype(value), "shape": shape}
