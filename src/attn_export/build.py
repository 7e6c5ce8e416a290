"""The one orchestrator: model -> graphs -> engines -> verdict -> bundle.

Stages do not call each other; they meet here and in the bundle's files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
from attn_export.errors import HostError, MissingPackage, UsageError
from attn_export.int8 import measure_engines, quantize, study
from attn_export.int8_options import Int8Options, require_data
from attn_export.manifest import Manifest
from attn_export.portable import Fp16Options, Say, require_export, write_portable

if TYPE_CHECKING:
    from attn_export.benchmarks.oracle import ReferenceKind
    from attn_export.benchmarks.parity import ParityReport
    from attn_export.benchmarks.sensitivity_report import SensitivityReport
    from attn_export.benchmarks.tolerances import Tolerances
    from attn_export.calibration.requests import Request
    from attn_export.exporter.attention import Lowering
    from attn_export.exporter.source import ModelSource


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
        GateFailed: by :func:`attn_export.gates.require_parity`, which the caller applies.
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
        bundle, requests = _write_portable(plan, staging, directory / CACHE, say)
        options = replace(plan.options, cache=directory / CACHE, say=say)
        judge = (
            None
            if plan.int8 is None
            else partial(measure_engines, requests=requests, options=plan.int8)
        )
        report = compile_and_prove(bundle, names, options, plan.tolerances, judge=judge)
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
        bundle, _ = _write_portable(plan, staging, directory / CACHE, say)
        write_manifest(staging, bundle.manifest)


def _write_portable(
    plan: BuildPlan, staging: Path, cache: Path, say: Say
) -> tuple[Bundle, Sequence[Request]]:
    """All that needs no engine, and the requests that INT8 was judged by."""
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
    if plan.int8 is None:
        return bundle, ()
    options = replace(plan.int8, say=say)
    return bundle, quantize(bundle, options, fp16=plan.fp16, cache=cache)


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
    judge: Callable[[Bundle], None] | None = None,
) -> ParityReport:
    """Make the engines of some backends of a staged bundle's graphs, prove them, and race them.

    Args:
        judge: holds INT8 engines to FP32 on requests, where there are some.
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
    if judge is not None:
        options.say("measuring the INT8 engines on the requests")
        judge(bundle)
    for engine in made:
        race_int8(bundle, engine, options.say)
    choose_fastest(bundle, options.goal, options.say)
    return report
