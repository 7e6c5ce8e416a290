"""The portable half of a build: graphs, golden file and manifest, the same on every machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import attn_export
from attn_export.bucketing import BucketOptions, choose_buckets
from attn_export.bundle import REFERENCE, disk_errors, file_record
from attn_export.errors import GateFailed, MissingPackage
from attn_export.lazy import require
from attn_export.manifest import GraphRecord, Manifest
from attn_export.spec import TensorSpec

if TYPE_CHECKING:
    from attn_export.benchmarks.cases import Case
    from attn_export.exporter.attention import Lowering
    from attn_export.exporter.source import LoadedModel, ModelSource

GRAPH = "model.onnx"
PACKED_GRAPH = "model.packed.onnx"
FP16_GRAPH = "model.fp16.onnx"
FP16_TWIN = "model.fp16.twin.onnx"
# The packages whose versions the manifest keeps.
RECORDED = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "numpy",
)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Fp16Options:
    """What stays FP32 in the FP16 graph, and whether its inputs and outputs are FP16 too."""

    nodes_to_exclude: Sequence[str] = ()
    op_types_to_exclude: Sequence[str] = ()
    fp16_io: bool = False


def export(
    source: ModelSource, output: Path, *, lowering: Lowering, say: Say
) -> tuple[dict[str, Any], str, list[str]]:
    """Write one FP32 graph and compare it with eager PyTorch.

    Returns:
        The graph's summary, a sentence on the comparison, and notes on what TensorRT 8.6 would
        refuse, misread or not fuse.

    Raises:
        GateFailed: if the graph is not equal to the model; nothing is written then.
        AttnExportError: as :func:`load_model` and :func:`export_graph` raise.
    """
    require_export()
    from attn_export.exporter.export import export_graph
    from attn_export.exporter.finding import report
    from attn_export.exporter.graph_file import read_graph
    from attn_export.exporter.lint import lint
    from attn_export.exporter.source import load_model
    from attn_export.exporter.summary import summarise

    say("making the model")
    model = load_model(source)
    say("running eager PyTorch")
    matrix = _eager_matrix(model, sorted({min(8, model.max_length), model.max_length}))
    with disk_errors(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=".attn-export-") as folder:
            draft = Path(folder) / output.name
            say("exporting to ONNX")
            metadata = _metadata(model, lowering)
            outputs = export_graph(model, draft, lowering=lowering, metadata=metadata)
            say("comparing the graph with eager PyTorch")
            verdict = _compare_draft(model, draft, outputs, matrix)
            for path in sorted(Path(folder).iterdir(), key=lambda item: item == draft):
                path.replace(output.parent / path.name)
    graph = read_graph(output)
    notes = [f"TensorRT 8.6: {line}" for line in report(lint(graph, "tensorrt-8.6"))]
    return summarise(graph), verdict, notes


def require_export() -> None:
    """Fail before any work where the packages of the extra ``export`` are missing."""
    for module in ("torch", "onnx", "onnxscript", "onnx_ir"):
        require(module, extra="export")


def write_portable(
    source: ModelSource,
    staging: Path,
    *,
    lowering: Lowering,
    buckets: BucketOptions,
    fp16: Fp16Options | None,
    command: str,
    say: Say,
    packed: bool = False,
) -> Manifest:
    """Write graphs and golden file; returns the manifest, which names no engine yet.

    Args:
        packed: also a graph of rows that several texts share.

    Raises:
        UsageError: if such a graph is asked for and the model cannot be packed.
    """
    from attn_export.benchmarks.cases import save_reference
    from attn_export.exporter.export import export_graph
    from attn_export.exporter.packed import packed_model
    from attn_export.exporter.source import load_model, weights_sha256

    say("making the model")
    model = load_model(source)
    on_rows = packed_model(model) if packed else None
    edges = choose_buckets(buckets, model)
    model_facts = {
        "name": source.name,
        "source": source.to_json(),
        "builtin": source.builtin,
        "spec": asdict(source.spec()) if source.builtin else None,
        "parameters": model.parameters,
        "weights_sha256": weights_sha256(model.module),
        "lowering": lowering,
        "max_length": model.max_length,
    }
    say("running eager PyTorch for the golden file")
    reference, graph = staging / REFERENCE, staging / GRAPH
    save_reference(reference, *_eager_matrix(model, edges["edges"]))
    say("exporting to ONNX")
    metadata = _metadata(model, lowering)
    outputs = export_graph(model, graph, lowering=lowering, metadata=metadata)
    graphs = {"fp32": graph_record(graph, "fp32")}
    if fp16 is not None:
        say("typing the graph to FP16")
        graphs["fp16"] = write_fp16(fp16, graph, staging)
    if on_rows is not None:
        say("exporting the packed graph")
        path = staging / PACKED_GRAPH
        export_graph(on_rows, path, lowering=lowering, metadata=metadata)
        graphs["packed"] = graph_record(path, "fp32")
    return Manifest(
        model=model_facts,
        inputs=list(model.inputs),
        outputs=list(outputs),
        buckets=edges,
        graphs=graphs,
        reference=file_record(reference, root=staging),
        tool=_tool(),
        command=command,
    )


def _eager_matrix(
    model: LoadedModel, edges: Sequence[int]
) -> tuple[list[Case], list[dict[str, Any]]]:
    """The parity matrix through the textbook module, before it is lowered for export."""
    from attn_export.benchmarks.cases import parity_cases
    from attn_export.benchmarks.eager import run_case

    cases = parity_cases(model.inputs, edges)
    return cases, [run_case(model, case) for case in cases]


def write_fp16(options: Fp16Options, graph: Path, staging: Path) -> GraphRecord:
    """Type an FP32 graph, and write it with its rounding twin.

    Raises:
        UsageError: if an exclusion matches nothing.
        BuildFailed: if nothing is left to be FP16.
    """
    from attn_export.exporter.export import write_checked
    from attn_export.exporter.fp16 import to_fp16
    from attn_export.exporter.graph_file import read_graph
    from attn_export.exporter.keep import keep_list, rounding_report
    from attn_export.exporter.twin import write_twin

    model = read_graph(graph)
    keep = keep_list(model, nodes=options.nodes_to_exclude, op_types=options.op_types_to_exclude)
    warnings = rounding_report(model, keep)
    casts = to_fp16(model, keep, fp16_io=options.fp16_io)
    places = write_checked(model, staging / FP16_GRAPH)
    write_twin(staging / FP16_GRAPH, places, staging / FP16_TWIN)
    record = graph_record(staging / FP16_GRAPH, "fp16")
    record.twin = file_record(staging / FP16_TWIN, root=staging)
    record.keep_fp32, record.warnings, record.fp16_io = keep, warnings, options.fp16_io
    record.summary["casts_inserted"] = casts
    return record


def graph_record(path: Path, precision: str) -> GraphRecord:
    """Describe a graph file; external data stands beside it."""
    from attn_export.exporter.graph_file import read_graph
    from attn_export.exporter.lint import unreadable_by
    from attn_export.exporter.summary import summarise

    files = [path, *sorted(path.parent.glob(f"{path.name}.data"))]
    graph = read_graph(path)
    return GraphRecord(
        precision=precision,
        files=[file_record(item, root=path.parent) for item in files],
        summary=summarise(graph),
        lint=unreadable_by(graph),
    )


def _compare_draft(
    model: LoadedModel,
    draft: Path,
    outputs: Sequence[TensorSpec],
    matrix: tuple[list[Case], list[dict[str, Any]]],
) -> str:
    """Hold a lone graph to eager PyTorch at several shapes, where ONNX Runtime is installed."""
    from attn_export.benchmarks.metrics import Comparer
    from attn_export.benchmarks.tolerances import Tolerances
    from attn_export.engines.onnxruntime import open_graph

    buckets = [model.max_length]
    try:
        session = open_graph(
            draft, inputs=model.inputs, outputs=outputs, buckets=buckets, threads=1
        )
    except MissingPackage as error:
        return f"not compared with eager PyTorch: {error}"
    allowed = {spec.name: Tolerances().allowed(spec.name, "fp32") for spec in outputs}
    comparers = {n: Comparer(n, atol=atol, rtol=rtol) for n, (atol, rtol) in allowed.items()}
    with contextlib.closing(session):
        for case, expected in zip(*matrix, strict=True):
            # What a user's own mask logic makes of a fully masked row is not the exporter's doing.
            if case.mask != "masked_row" or model.source.builtin:
                for name, array in session.run(case.feeds).items():
                    comparers[name].add(array, expected[name], case=case.name)
    results = [comparer.result() for comparer in comparers.values()]
    worst = max(results, key=lambda result: result.max_abs)
    if not all(result.passed for result in results):
        raise GateFailed(
            f"the graph differs from eager PyTorch: output {worst.output!r}: {worst.verdict}, "
            f"max |difference| {worst.max_abs:.3g}; nothing was written"
        )
    cases = len(matrix[0])
    return f"equal to eager PyTorch in {cases} cases, max |difference| {worst.max_abs:.1e}"


def _metadata(model: LoadedModel, lowering: Lowering) -> dict[str, str]:
    return {
        "version": attn_export.__version__,
        "model": model.source.name,
        "parameters": str(model.parameters),
        "lowering": lowering,
        "max_length": str(model.max_length),
    }


def _tool() -> dict[str, Any]:
    packages = (
        "torch",
        "onnx",
        "onnxscript",
        "onnx-ir",
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "numpy",
    )
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "version": attn_export.__version__,
        "python": platform.python_version(),
        "packages": versions,
    }
