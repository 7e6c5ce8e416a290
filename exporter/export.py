"""A PyTorch module -> a checked FP32 ONNX graph at opset 17 with nodes named by role."""

from __future__ import annotations

import contextlib
import errno
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch

import attn_export
from attn_export.errors import AttnExportError, BuildFailed
from attn_export.spec import SEQUENCE, TensorSpec

from .attention import Lowering
from .encoder import lower
from .graph_file import Place, in_places, read_graph, write_graph
from .integer_casts import skip_integer_casts
from .naming import name_by_role
from .opset import OPSET, to_opset_17
from .query_scale import fold_scales
from .reshapes import simplify_reshapes
from .shape_slices import pick_from_whole_shapes
from .source import LoadedModel

MAX_BATCH = 1 << 16


def export_graph(
    model: LoadedModel, path: Path, *, lowering: Lowering, metadata: dict[str, str]
) -> tuple[TensorSpec, ...]:
    """Write the model's FP32 graph to ``path`` and return its outputs.

    The module is left in its export form (:func:`lower`). Memory peaks below 2.5 times the
    weights, the module's own included.

    Raises:
        BuildFailed: if torch cannot trace it, or the graph fails a check.
    """
    lower(model.module, lowering)
    model.module.eval()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        raw = Path(folder) / "raw.onnx"
        _trace(model, raw)
        graph = read_graph(raw)
        outputs = transform(graph, model)
        graph.producer_name, graph.producer_version = "attn-export", attn_export.__version__
        graph.metadata_props.update({f"attn_export.{k}": v for k, v in metadata.items()})
        write_checked(graph, path)
    return outputs


def transform(graph: ir.Model, model: LoadedModel) -> tuple[TensorSpec, ...]:
    """All graph passes, in place; the outputs' specs."""
    _refuse_control_flow(graph)
    passes.InlinePass()(graph)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    to_opset_17(graph)
    simplify_reshapes(graph.graph)
    skip_integer_casts(graph.graph)
    pick_from_whole_shapes(graph.graph)
    fold_scales(graph.graph)
    passes.IdentityEliminationPass()(graph)
    passes.CommonSubexpressionEliminationPass()(graph)
    passes.RemoveUnusedNodesPass()(graph)
    passes.DeduplicateInitializersPass()(graph)
    passes.TopologicalSortPass()(graph)
    outputs = _name_outputs(graph, model)
    name_by_role(graph)
    graph.graph.name = model.source.name
    return outputs


def write_checked(graph: ir.Model, path: Path, *, opset: int = OPSET) -> dict[str, Place]:
    """Write a graph and hold it to onnx's full check and strict shape inference.

    The check reads the weights where the file has them, because it would load the file twice.

    Raises:
        BuildFailed: if it is not valid at ``opset``.
    """
    names = [node.name for node in graph.graph]
    if len(set(names)) != len(names):
        raise BuildFailed("two nodes share a name; this is a defect of attn-export")
    if graph.opset_imports.get("") != opset:
        raise BuildFailed(f"{path.name} is at opset {graph.opset_imports.get('')}, not {opset}")
    places = write_graph(graph, path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".check-", suffix=".onnx") as file:
        file.write(in_places(graph, places).SerializeToString())
        file.flush()
        try:
            onnx.checker.check_model(file.name, full_check=True)
        except Exception as error:  # onnx raises several unrelated classes here
            raise BuildFailed(f"{path.name} is not a valid graph: {error}") from error
    return places


def _trace(model: LoadedModel, path: Path) -> None:
    axes = {axis for spec in model.inputs for axis in spec.shape if isinstance(axis, str)}
    most = {SEQUENCE: model.max_length}
    dims = {a: torch.export.Dim(a, min=1, max=most.get(a, MAX_BATCH)) for a in sorted(axes)}
    shapes = tuple(
        {axis: dims[name] for axis, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in model.inputs
    )
    try:
        with _quiet():
            torch.onnx.export(
                model.module,
                model.examples,
                str(path),
                input_names=[spec.name for spec in model.inputs],
                opset_version=18,
                dynamo=True,
                external_data=True,
                dynamic_shapes=(shapes,),
                verbose=False,
            )
    except AttnExportError:
        raise
    except Exception as error:  # whatever the user's own code or torch raises
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cause from error
        raise BuildFailed(
            f"torch could not export {model.source.model}: {type(cause).__name__}: {cause}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about torchvision, axis names and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _refuse_control_flow(graph: ir.Model) -> None:
    for node in graph.graph:
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise BuildFailed(
                    f"node {node.name!r} ({node.op_type}) holds control flow, which engines of "
                    "this kind cannot take; write the branch as tensor operations"
                )


def _name_outputs(graph: ir.Model, model: LoadedModel) -> tuple[TensorSpec, ...]:
    specs = []
    for value, name in zip(graph.graph.outputs, model.module.output_names, strict=True):
        value.name = name
        dims: list[int | str] = []
        for dim in value.shape or ():
            size: Any = dim if isinstance(dim, int) else str(dim.value)
            dims.append(size)
        dtype = value.dtype
        if dtype is None or value.shape is None:
            raise BuildFailed(f"the shape of output {name!r} is unknown to the exporter")
        specs.append(TensorSpec(name=name, dtype=str(dtype.numpy()), shape=tuple(dims)))
    return tuple(specs)
