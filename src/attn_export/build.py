"""The one orchestrator: model -> graphs -> engines -> verdict -> bundle.

Stages do not call each other; they meet here and in the bundle's files.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn_export.bucketing import BucketOptions
from attn_export.bundle import (
    CACHE,
    REPORTS,
    Bundle,
    disk_errors,
    extended,
    locked,
    staged,
    write_manifest,
)
from attn_export.engines.session import CompileOptions
from attn_export.errors import GateFailed, HostError, Inconclusive, MissingPackage, UsageError
from attn_export.int8 import measure_engines, quantize, study
from attn_export.int8_options import Int8Options, require_data
from attn_export.manifest import EngineRecord, Manifest
from attn_export.portable import Fp16Options, Say, require_export, write_portable

if TYPE_CHECKING:
    from attn_export.benchmarks.oracle import ReferenceKind
    from attn_export.benchmarks.parity import ParityReport
    from attn_export.benchmarks.sensitivity_report import SensitivityReport
    from attn_export.benchmarks.tolerances import Tolerances
    from attn_export.exporter.attention import Lowering
    from attn_export.exporter.source import ModelSource

log = logging.getLogger("attn_export")


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything ``build`` is asked to do."""

    source: ModelSource
    lowering: Lowering = "fold"
    buckets: BucketOptions = field(default_factory=BucketOptions)
    fp16: Fp16Options | None = None
    backend: str = "auto"
    int8: Int8Options | None = None
    packed: bool = False
    options: CompileOptions = field(default_factory=CompileOptions)
    tolerances: Tolerances | None = None
    command: str = ""


def build(plan: BuildPlan, directory: Path, *, say: Say) -> ParityReport:
    """Make a bundle: export, type, compile, prove.

    A bundle whose engines fail parity is written all the same, with that verdict in it, so that
    it can be looked into; ``load`` refuses its engines. A bundle for a GPU that is not here is
    written without an engine, before the error says so.

    Raises:
        AttnExportError: of the class that the failing step documents; nothing is written then.
        HostError: if the engines cannot be made here; the rest of the bundle is written.
        GateFailed: by :func:`require_parity`, which the caller applies to the report.
    """
    from attn_export.benchmarks.report_file import write_report

    require_export()
    if plan.int8 is not None:
        require_data(plan.int8)
    names = resolve_backends(plan.backend, plan.options)
    elsewhere = _elsewhere(names, plan.options)
    if elsewhere is not None:
        portable_bundle(plan, directory, say=say)
        raise HostError(
            f"{elsewhere}; {directory} is complete but for its engines: on that machine, run "
            f"'attn-export compile {directory}'"
        )
    with staged(directory) as staging:
        bundle = _write_portable(plan, staging, directory / CACHE, say)
        options = replace(plan.options, cache=directory / CACHE, say=say)
        report = compile_and_prove(bundle, names, options, plan.tolerances, int8=plan.int8)
        write_report(bundle, "parity", report)
        write_manifest(staging, bundle.manifest)
    return report


def portable_bundle(plan: BuildPlan, directory: Path, *, say: Say) -> None:
    """Make a bundle without engines: ``compile_bundle`` adds them on the machine that runs them.

    Raises:
        AttnExportError: of the class that the failing step documents; nothing is written then.
    """
    require_export()
    with staged(directory) as staging:
        bundle = _write_portable(plan, staging, directory / CACHE, say)
        write_manifest(staging, bundle.manifest)


def _write_portable(plan: BuildPlan, staging: Path, cache: Path, say: Say) -> Bundle:
    manifest = write_portable(
        plan.source,
        staging,
        lowering=plan.lowering,
        buckets=plan.buckets,
        fp16=plan.fp16,
        packed=plan.packed,
        command=plan.command,
        say=say,
    )
    bundle = Bundle(staging, manifest)
    if plan.int8 is not None:
        quantize(bundle, replace(plan.int8, say=say), fp16=plan.fp16, cache=cache)
    return bundle


def calibrate_bundle(directory: Path, options: Int8Options) -> Manifest:
    """Add INT8 graphs to a bundle, or make them anew; its INT8 engines go with the old ones.

    Raises:
        AttnExportError: of the class that the failing step documents; nothing is written then.
    """
    with extended(directory) as bundle:
        manifest = bundle.manifest
        fp16 = manifest.graphs.get("fp16")
        kept = Fp16Options(fp16_io=fp16.fp16_io) if fp16 else None
        _forget_int8(bundle)
        quantize(bundle, options, fp16=kept, cache=directory / CACHE)
    return manifest


def study_bundle(directory: Path, options: Int8Options) -> tuple[SensitivityReport, list[str]]:
    """Measure INT8's cost by layer and role, and write table data, plot and exclude list.

    Returns:
        The report, and a line for each file that was written or could not be.

    Raises:
        AttnExportError: of the class that the failing step documents.
    """
    from attn_export.benchmarks.report_file import write_report
    from attn_export.benchmarks.sensitivity_plot import plot_sensitivity
    from attn_export.benchmarks.sensitivity_report import write_excludes

    bundle = Bundle.open(directory)
    bundle.verify_graph(bundle.graph("fp32"))
    report = study(bundle, options, cache=directory / CACHE)
    write_report(bundle, "sensitivity", report)
    folder = directory / REPORTS
    excludes, plot = folder / "int8-exclude.txt", folder / "sensitivity.png"
    write_excludes(report, excludes)
    said = [f"{excludes}: for 'attn-export calibrate {directory} --int8-exclude @{excludes}'"]
    try:
        plot_sensitivity(report, plot)
        said.append(f"{plot}: the plot")
    except MissingPackage as error:
        said.append(f"no plot: {error}")
    return report, said


def _forget_int8(bundle: Bundle) -> None:
    """Take the INT8 graphs and their engines out of a staged bundle.

    The staged files are second names of the bundle's own: they must go before others are written.
    """
    manifest = bundle.manifest
    graphs = {key: graph for key, graph in manifest.graphs.items() if graph.quantization}
    engines = [name for name, engine in manifest.engines.items() if engine.graph in graphs]
    old = [record for graph in graphs.values() for record in graph.files]
    old += [record for name in engines for record in manifest.engines[name].files]
    old += [manifest.calibration] if manifest.calibration else []
    for record in old:
        (bundle.directory / record.file).unlink(missing_ok=True)
    for name in engines:
        del manifest.engines[name]
    for key in graphs:
        del manifest.graphs[key]
    if manifest.choice and manifest.choice["engine"] in engines:
        manifest.choice = None
    manifest.calibration = None


def compile_bundle(
    directory: Path,
    *,
    backend: str,
    options: CompileOptions,
    tolerances: Tolerances | None,
    say: Say,
) -> ParityReport:
    """Compile a bundle's graphs for this host and prove the engines; no torch is needed.

    Raises:
        BundleError: if the bundle is broken or altered.
        UsageError: if an option is not for this backend.
        HostError: if the engines cannot be made here, the bundle cannot be written, or another
            process is writing it; it is unchanged then.
    """
    from attn_export.benchmarks.report_file import write_report

    Bundle.open(directory)
    names = resolve_backends(backend, options)
    elsewhere = _elsewhere(names, options)
    if elsewhere is not None:
        here = ", or with --backend onnxruntime for this one" if names == ("tensorrt",) else ""
        raise HostError(f"{elsewhere}; {directory} is unchanged: run this on that machine{here}")
    if options.profiles and options.provider == "cpu" and "onnxruntime" in names:
        raise UsageError(
            "-b and -s are for a GPU: on a CPU an engine takes every shape up to the bundle's "
            "longest bucket"
        )
    with extended(directory) as bundle:
        options = replace(options, cache=directory / CACHE, say=say)
        report = compile_and_prove(bundle, names, options, tolerances)
        write_report(bundle, "parity", report)
    return report


def parity(
    directory: Path,
    *,
    engine: str | None,
    reference: ReferenceKind,
    tolerances: Tolerances | None,
    allow_host_code: bool = False,
) -> tuple[ParityReport, str | None]:
    """Prove a bundle's engines again, and record the verdicts where the bundle can be written.

    Returns:
        The report, and a note saying why it was not recorded, or None.
    """
    from attn_export.benchmarks.parity import run_parity, summary
    from attn_export.benchmarks.report_file import write_report

    bundle = Bundle.open(directory)
    report = run_parity(
        bundle,
        engines=None if engine is None else [engine],
        reference=reference,
        tolerances=tolerances,
        allow_host_code=allow_host_code,
    )
    try:
        with disk_errors(directory), locked(directory):
            manifest = Bundle.open(directory).manifest
            if manifest.files != bundle.manifest.files:
                return report, "the bundle was rebuilt meanwhile; run parity again"
            for result in report.engines:
                manifest.engines[result.engine].parity = summary(report, result.engine)
            write_manifest(directory, manifest)
    except HostError as error:
        return report, f"the verdict is not recorded in the bundle: {error}"
    write_report(bundle, "parity", report)
    return report, None


def require_worth(directory: Path, report: ParityReport, *, speed_gate: bool = True) -> None:
    """The gates on the INT8 engines of a report: near enough to FP32, and faster than FP32 or FP16.

    Of several backends one has to pass; what the others lack becomes a warning, and ``load`` does
    not take them.

    Raises:
        GateFailed: if an engine is not near enough, or slower, and no other one passes.
        Inconclusive: if the noise hides which is faster, and no other one passes.
    """
    manifest = Bundle.open(directory).manifest
    made = [manifest.engines[result.engine] for result in report.engines]
    quantized = [record for record in made if record.precision == "int8"]
    found = [_unworthy(manifest, record, speed_gate=speed_gate) for record in quantized]
    failures = [error for error in found if error is not None]
    if failures and len(failures) == len(quantized):
        raise failures[0]
    for failure in failures:
        log.warning("%s", failure)


def _unworthy(
    manifest: Manifest, engine: EngineRecord, *, speed_gate: bool
) -> GateFailed | Inconclusive | None:
    try:
        _require_worth(manifest, engine, speed_gate=speed_gate)
    except (GateFailed, Inconclusive) as error:
        return error
    return None


def _require_worth(manifest: Manifest, engine: EngineRecord, *, speed_gate: bool) -> None:
    from attn_export.benchmarks.race import require_faster
    from attn_export.benchmarks.stats import Interval

    quantization = manifest.graphs[engine.graph].quantization
    measured = engine.accuracy or {
        "accepted": quantization.get("accepted"),
        "results": quantization.get("accuracy"),
    }
    if measured["accepted"] is False:
        raise GateFailed(
            f"{engine.name} is not near enough to FP32 on the data "
            f"({_said(measured['results'])}); calibrate with more or other data, exclude "
            "layers ('attn-export calibrate --sensitivity' finds them), or ask for less with "
            "--min-agreement or --min-cosine"
        )
    if engine.race and speed_gate:
        found = Interval(**{key: engine.race[key] for key in ("median", "low", "high")})
        require_faster(found, candidate=engine.name, rival=engine.race["rival"])


def _said(accuracy: list[dict[str, Any]]) -> str:
    labels = [f"{item['labels']:.2%} equal labels, " if item["labels"] else "" for item in accuracy]
    pairs = zip(labels, accuracy, strict=True)
    return "; ".join(f"{item['output']}: {text}cosine {item['cosine']:.4f}" for text, item in pairs)


def require_parity(report: ParityReport) -> None:
    """Turn a failed report into the gate's error.

    Raises:
        GateFailed: if an engine is not equal to eager PyTorch.
    """
    failed = [result.engine for result in report.engines if not result.passed]
    if failed:
        raise GateFailed(f"parity failed: {', '.join(failed)} differs from eager PyTorch FP32")


def resolve_backends(name: str, options: CompileOptions) -> tuple[str, ...]:
    """The backends that ``auto`` means: TensorRT for a target or where a GPU and it are here.

    On a CPU they are ONNX Runtime and, where it is installed, OpenVINO; both are measured.
    """
    from attn_export.engines.cuda_driver import probe

    if name != "auto":
        return (name,)
    if options.provider != "cpu":
        return ("onnxruntime",)
    if options.target or (_installed("tensorrt") and probe().problem is None):
        return ("tensorrt",)
    return tuple(name for name in ("onnxruntime", "openvino") if _installed(name)) or (
        "onnxruntime",
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _elsewhere(names: Sequence[str], options: CompileOptions) -> HostError | None:
    """Why these engines can only be made on another machine, or None.

    Raises:
        UsageError: if the backend or the target is unknown.
        MissingPackage: if the backend's package is all that is missing here.
    """
    from attn_export.engines.session import backend

    if options.bf16 and "openvino" not in names:
        raise UsageError(
            f"--bf16 is for OpenVINO, and the backend here is {names[0]}; leave it out, or install "
            "attn-export[openvino] and use --backend openvino or auto"
        )
    try:
        for name in names:
            backend(name).require_host(options)
    except MissingPackage:
        raise
    except HostError as error:
        return error
    return None


def compile_and_prove(
    bundle: Bundle,
    names: Sequence[str],
    options: CompileOptions,
    tolerances: Tolerances | None,
    int8: Int8Options | None = None,
) -> ParityReport:
    """Make the engines of some backends of a staged bundle's graphs, prove them, and race them.

    Args:
        int8: where the requests are that INT8 engines are held to FP32 with, too.
    """
    from attn_export.benchmarks.parity import run_parity, summary
    from attn_export.contest import choose_fastest, race_int8
    from attn_export.engines.session import backend

    made = []
    for name in names:
        module = backend(name)
        for precision in module.graphs(bundle, options):
            options.say(f"compiling {precision} for {name}")
            record = module.compile(bundle, precision, options)
            bundle.manifest.engines[record.name] = record
            made.append(record.name)
    options.say("proving the engines equal to eager PyTorch")
    # What a plan of ours carries was put there a moment ago, on this machine.
    report = run_parity(bundle, engines=made, tolerances=tolerances, allow_host_code=True)
    for result in report.engines:
        bundle.manifest.engines[result.engine].parity = summary(report, result.engine)
    if int8 is not None:
        measure_engines(bundle, replace(int8, say=options.say))
    for engine in made:
        race_int8(bundle, engine, options.say)
    choose_fastest(bundle, options.goal, options.say)
    return report
