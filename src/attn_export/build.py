"""The one orchestrator: model -> graphs -> engines -> verdict -> bundle.

Stages do not call each other; they meet here and in the bundle's files.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from attn_export.bucketing import BucketOptions
from attn_export.bundle import (
    CACHE,
    Bundle,
    disk_errors,
    extended,
    locked,
    staged,
    write_manifest,
)
from attn_export.engines.session import CompileOptions
from attn_export.errors import GateFailed, HostError, MissingPackage, UsageError
from attn_export.portable import Fp16Options, Say, require_export, write_portable

if TYPE_CHECKING:
    from attn_export.benchmarks.oracle import ReferenceKind
    from attn_export.benchmarks.parity import ParityReport
    from attn_export.benchmarks.tolerances import Tolerances
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
    name = resolve_backend(plan.backend, plan.options)
    elsewhere = _elsewhere(name, plan.options)
    if elsewhere is not None:
        portable_bundle(plan, directory, say=say)
        raise HostError(
            f"{elsewhere}; {directory} is complete but for its engines: on that machine, run "
            f"'attn-export compile {directory}'"
        )
    with staged(directory) as staging:
        bundle = _write_portable(plan, staging, say)
        options = replace(plan.options, cache=directory / CACHE, say=say)
        report = _compile_and_prove(bundle, name, options, plan.tolerances)
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
        write_manifest(staging, _write_portable(plan, staging, say).manifest)


def _write_portable(plan: BuildPlan, staging: Path, say: Say) -> Bundle:
    manifest = write_portable(
        plan.source,
        staging,
        lowering=plan.lowering,
        buckets=plan.buckets,
        fp16=plan.fp16,
        command=plan.command,
        say=say,
    )
    return Bundle(staging, manifest)


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
    name = resolve_backend(backend, options)
    elsewhere = _elsewhere(name, options)
    if elsewhere is not None:
        here = ", or with --backend onnxruntime for this one" if name == "tensorrt" else ""
        raise HostError(f"{elsewhere}; {directory} is unchanged: run this on that machine{here}")
    if options.profiles and options.provider == "cpu" and name == "onnxruntime":
        raise UsageError(
            "-b and -s are for a GPU: on a CPU an engine takes every shape up to the bundle's "
            "longest bucket"
        )
    with extended(directory) as bundle:
        options = replace(options, cache=directory / CACHE, say=say)
        report = _compile_and_prove(bundle, name, options, tolerances)
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


def require_parity(report: ParityReport) -> None:
    """Turn a failed report into the gate's error.

    Raises:
        GateFailed: if an engine is not equal to eager PyTorch.
    """
    failed = [result.engine for result in report.engines if not result.passed]
    if failed:
        raise GateFailed(f"parity failed: {', '.join(failed)} differs from eager PyTorch FP32")


def resolve_backend(name: str, options: CompileOptions) -> str:
    """The backend that ``auto`` means: TensorRT for a target or where a GPU and it are here."""
    from attn_export.engines.cuda_driver import probe

    if name != "auto":
        return name
    if options.provider != "cpu":
        return "onnxruntime"
    if options.target:
        return "tensorrt"
    installed = importlib.util.find_spec("tensorrt") is not None
    return "tensorrt" if installed and probe().problem is None else "onnxruntime"


def _elsewhere(name: str, options: CompileOptions) -> HostError | None:
    """Why these engines can only be made on another machine, or None.

    Raises:
        UsageError: if the backend or the target is unknown.
        MissingPackage: if the backend's package is all that is missing here.
    """
    from attn_export.engines.session import backend

    try:
        backend(name).require_host(options)
    except MissingPackage:
        raise
    except HostError as error:
        return error
    return None


def _compile_and_prove(
    bundle: Bundle, name: str, options: CompileOptions, tolerances: Tolerances | None
) -> ParityReport:
    from attn_export.benchmarks.parity import run_parity, summary
    from attn_export.engines.session import backend

    module = backend(name)
    made = []
    for precision in bundle.manifest.graphs:
        options.say(f"compiling {precision} for {name}")
        record = module.compile(bundle, precision, options)
        bundle.manifest.engines[record.name] = record
        made.append(record.name)
    options.say("proving the engines equal to eager PyTorch")
    # What a plan of ours carries was put there a moment ago, on this machine.
    report = run_parity(bundle, engines=made, tolerances=tolerances, allow_host_code=True)
    for result in report.engines:
        bundle.manifest.engines[result.engine].parity = summary(report, result.engine)
    return report
