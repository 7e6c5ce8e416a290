"""The one orchestrator: model -> graphs -> engines -> verdict -> bundle.

Stages do not call each other; they meet here and in the bundle's files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from attn_export.bucketing import BucketOptions
from attn_export.bundle import Bundle, disk_errors, locked, staged, write_manifest
from attn_export.errors import GateFailed, HostError
from attn_export.lazy import require
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
    tolerances: Tolerances | None = None
    command: str = ""


def build(plan: BuildPlan, directory: Path, *, say: Say) -> ParityReport:
    """Make a bundle: export, type, compile, prove.

    A bundle whose engines fail parity is written all the same, with that verdict in it, so that
    it can be looked into; ``load`` refuses its engines.

    Raises:
        AttnExportError: of the class that the failing step documents; nothing is written then.
        GateFailed: by :func:`require_parity`, which the caller applies to the report.
    """
    from attn_export.benchmarks.report import write_report

    require_export()
    _require_backend(plan.backend)
    with staged(directory) as staging:
        manifest = write_portable(
            plan.source,
            staging,
            lowering=plan.lowering,
            buckets=plan.buckets,
            fp16=plan.fp16,
            command=plan.command,
            say=say,
        )
        bundle = Bundle(staging, manifest)
        report = _compile_and_prove(bundle, plan.backend, plan.tolerances, say)
        write_manifest(staging, manifest)
        write_report(bundle, "parity", report)
    return report


def compile_bundle(
    directory: Path, *, backend: str, tolerances: Tolerances | None, say: Say
) -> ParityReport:
    """Compile a bundle's graphs for this host and prove the engines; no torch is needed.

    Raises:
        BundleError: if the bundle is broken or altered.
        HostError: if it cannot be written or another process is writing it.
    """
    from attn_export.benchmarks.report import write_report

    _require_backend(backend)
    Bundle.open(directory)
    with disk_errors(directory), locked(directory):
        bundle = Bundle.open(directory)
        report = _compile_and_prove(bundle, backend, tolerances, say)
        write_manifest(directory, bundle.manifest)
    write_report(bundle, "parity", report)
    return report


def parity(
    directory: Path,
    *,
    engine: str | None,
    reference: ReferenceKind,
    tolerances: Tolerances | None,
) -> tuple[ParityReport, str | None]:
    """Prove a bundle's engines again, and record the verdicts where the bundle can be written.

    Returns:
        The report, and a note saying why it was not recorded, or None.
    """
    from attn_export.benchmarks.parity import run_parity, summary
    from attn_export.benchmarks.report import write_report

    bundle = Bundle.open(directory)
    report = run_parity(bundle, engine=engine, reference=reference, tolerances=tolerances)
    try:
        with disk_errors(directory), locked(directory):
            manifest = Bundle.open(directory).manifest
            if manifest.graphs != bundle.manifest.graphs:
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


def _require_backend(name: str) -> None:
    """Fail on an unknown or uninstalled backend before minutes of work, not after."""
    from attn_export.engines.session import BACKENDS, backend

    chosen = resolve_backend(name)
    backend(chosen)
    if chosen in BACKENDS:
        require(chosen, extra={"onnxruntime": "cpu"}.get(chosen, chosen))


def resolve_backend(name: str) -> str:
    """The backend that ``auto`` means on this host."""
    return "onnxruntime" if name == "auto" else name


def _compile_and_prove(
    bundle: Bundle, backend_name: str, tolerances: Tolerances | None, say: Say
) -> ParityReport:
    from attn_export.benchmarks.parity import run_parity, summary
    from attn_export.engines.session import backend

    name = resolve_backend(backend_name)
    module = backend(name)
    for precision in bundle.manifest.graphs:
        say(f"compiling {precision} for {name}")
        record = module.compile(bundle, precision)
        bundle.manifest.engines[record.name] = record
    say("proving the engines equal to eager PyTorch")
    report = run_parity(bundle, tolerances=tolerances)
    for result in report.engines:
        bundle.manifest.engines[result.engine].parity = summary(report, result.engine)
    return report
