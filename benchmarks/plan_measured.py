"""A bench.json or matrix.json as options of a plan."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attn_export.bundle import MANIFEST, REPORTS, Bundle
from attn_export.errors import BundleError, UsageError

from .bench_report import BenchReport
from .candidates import BUCKETED, EAGER_DYNAMIC
from .devices import CPU
from .latency import Latency
from .matrix_cell import BUCKETED as BUCKETED_CELL
from .matrix_cell import EAGER_AUTOCAST, EAGER_FP32, ENGINES, Cell
from .matrix_report import MatrixReport
from .plan_option import PRECISIONS, Option, Refused, Service

HOW = (
    "give a bench.json or matrix.json of 'attn-export bench', or the folder that holds it: a "
    "bundle, or what 'bench --matrix' wrote"
)
# The batch of a straight line from one request to a full load, in a bench.json.
FULL_LOAD = 128
WIDENED = "a CPU computes FP16 in FP32: FP32 is as fast, and more exact"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware of a measurement."""

    cpu: str
    cores: int | None
    gpus: tuple[str, ...]

    @property
    def described(self) -> str:
        """In words."""
        return ", ".join([*self.gpus, f"{self.cpu} ({self.cores} cores)"])


@dataclass(kw_only=True)
class Found:
    """One file: its options with the device that each ran on."""

    path: Path
    machine: Machine
    mean_length: float | None
    is_matrix: bool
    options: list[tuple[Option, str]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_result(path: Path) -> Found:
    """Read a file, or the one result of a folder."""
    bundle = None
    if path.is_dir():
        if (path / MANIFEST).is_file():
            bundle, path = Bundle.open(path), path / REPORTS / "bench.json"
        else:
            path /= "matrix.json"
    else:
        bundle = _bundle_around(path)
    data = _json(path)
    try:
        if isinstance(data, dict) and "cells" in data:
            return _of_matrix(path, MatrixReport.from_json(data))
        return _of_bench(path, BenchReport.from_json(data), bundle)
    except (UsageError, BundleError) as error:
        raise type(error)(f"{path}: {error}") from error


def _bundle_around(path: Path) -> Bundle | None:
    """The bundle that has a file in its reports."""
    reports = path.resolve().parent
    inside = reports.name == REPORTS and (reports.parent / MANIFEST).is_file()
    return Bundle.open(reports.parent) if inside else None


def _json(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the result {path} cannot be read: {error.strerror}; {HOW}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the result {path} is not a text file; {HOW}") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"the result {path} is not JSON ({error}); {HOW}") from error


def machine_of(environment: Mapping[str, Any]) -> Machine:
    """The hardware that a report's environment names."""
    cpu, cuda = (environment.get(key) or {} for key in ("cpu", "cuda"))
    return Machine(
        cpu=str(cpu.get("model", "an unknown CPU")),
        cores=cpu.get("cores"),
        gpus=tuple(str(gpu["name"]) for gpu in cuda.get("gpus", ())),
    )


def _quick(report: Mapping[str, Any] | BenchReport, path: Path) -> list[str]:
    quick = report.quick if isinstance(report, BenchReport) else report.get("quick")
    return [f"QUICK: {path} is a first impression; measure without --quick"] if quick else []


def _of_bench(path: Path, report: BenchReport, bundle: Bundle | None) -> Found:
    """One request's latency and the samples/s of a full load, for each engine and eager PyTorch."""
    found = Found(
        path=path,
        machine=machine_of(report.environment),
        mean_length=report.mean_length,
        is_matrix=False,
        notes=_bench_notes(path, report, bundle),
    )
    for result in report.results:
        engine = result.engine
        if result.candidate not in (BUCKETED, EAGER_DYNAMIC):
            continue
        runner, precision = engine or result.name, _precision(engine)
        alone = _alone(report, runner)
        reason = _no_option(bundle, engine, precision, result.device, has_latency=bool(alone))
        if reason:
            name = f"{report.model} {runner}"
            found.refused.append(Refused(name=name, model=report.model, reason=reason))
            continue
        option = Option(
            model=report.model,
            runner=runner,
            precision=precision,
            batching="buckets",
            edges=tuple(bundle.manifest.buckets["edges"]) if bundle else (),
            weights=report.settings.get("weights_sha256"),
            service=_line(alone, 1 / result.samples_per_s.median),
        )
        found.options.append((option, result.device))
    return found


def _bench_notes(path: Path, report: BenchReport, bundle: Bundle | None) -> list[str]:
    notes = [
        *_quick(report, path),
        f"{path.name}: between one request and a full load, a batch's time is on a straight "
        "line; 'bench --matrix' measures the batches between",
    ]
    if any(len(_alone(report, runner)) == 1 for runner in report.latencies):
        notes.append(
            f"{path.name}: the p99 of one request is that of its typical length, long ones are not "
            "in it; run 'attn-export bench' again"
        )
    if bundle is None:
        notes.append(
            f"{path.name}: whether its engines passed parity is not known; give the bundle instead"
        )
    return notes


def _alone(report: BenchReport, runner: str) -> list[Latency]:
    """Of one request: of typical length first, then of a long one."""
    return [item for item in report.latencies.get(runner, ()) if item.batch == 1]


def _line(alone: Sequence[Latency], each: float) -> Service:
    """From one request to a full load, of which a request takes ``each`` seconds."""
    seconds, usual = (alone[0].host_ms[key] / 1e3 for key in ("p50", "p99"))
    late = max(item.host_ms["p99"] / 1e3 for item in alone)
    # A batch cannot be faster than the full load, whatever one request takes.
    points = max(seconds, each), max(seconds, each) + (FULL_LOAD - 1) * each
    # In a full load lengths even out: of n requests their spread is the square root of n smaller.
    full = usual + (late - usual) / math.sqrt(FULL_LOAD)
    return Service(
        batches=(1, FULL_LOAD),
        seconds=points,
        p99_s=(points[0] * late / seconds, points[1] * full / seconds),
    )


def _precision(engine: str | None) -> str:
    """An engine is named by its backend, its precision and what else sets it apart."""
    parts = engine.split("-") if engine else ["eager", "fp32"]
    return next((part for part in parts if part in PRECISIONS), "")


def _no_option(
    bundle: Bundle | None, engine: str | None, precision: str, device: str, *, has_latency: bool
) -> str | None:
    """Why a result is no option, if it is none."""
    if not precision:
        return "its precision is not known"
    if device == CPU and precision == "fp16":
        return WIDENED
    if not has_latency:
        return "the latency of one request was not measured"
    if bundle is None or engine is None:
        return None
    record = bundle.manifest.engines.get(engine)
    if record is None:
        return "the bundle no longer has it"
    return None if bundle.manifest.passed(record) else "parity was not passed"


def _of_matrix(path: Path, report: MatrixReport) -> Found:
    """The latency and samples/s of each batch, for each model, variant and mode."""
    settings = report.settings
    found = Found(
        path=path,
        machine=machine_of(report.environment),
        mean_length=settings.get("mean_length"),
        is_matrix=True,
        notes=[
            *_quick(settings, path),
            f"{path.name}: fewer requests than its smallest batch take as long as that; a "
            "bench.json of the same bundles, given too, knows the latency of one",
        ],
    )
    for (model, variant, mode), cells in _rows(report.cells):
        is_eager = variant in (EAGER_FP32, EAGER_AUTOCAST)
        device = settings.get("eager_device" if is_eager else "device", CPU)
        measured = [c for c in cells if c.samples_per_s and c.latency_ms]
        if not measured:
            reason = next((c.failed or c.note for c in cells if c.failed or c.note), None)
            name = f"{model} {variant}, {mode}"
            found.refused.append(Refused(name=name, model=model, reason=reason or "not measured"))
            continue
        about = (settings.get("models") or {}).get(model, {})
        edges = about.get("edges", ())
        option = Option(
            model=model,
            runner=measured[0].engine or variant,
            precision=_variant_precision(variant, settings),
            batching="buckets" if mode == BUCKETED_CELL else "padded",
            edges=tuple(edges) if mode == BUCKETED_CELL else (),
            weights=about.get("weights_sha256"),
            service=_service(measured),
        )
        found.options.append((option, device))
    return found


def _rows(cells: Iterable[Cell]) -> Iterator[tuple[tuple[str, str, str], list[Cell]]]:
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.model, cell.variant, cell.mode), []).append(cell)
    for key, row in rows.items():
        yield key, sorted(row, key=lambda cell: cell.batch)


def _variant_precision(variant: str, settings: Mapping[str, Any]) -> str:
    named = {engine: precision for precision, engine in ENGINES.items()}
    autocast = str(settings.get(EAGER_AUTOCAST, "bf16"))
    return {**named, EAGER_FP32: "fp32", EAGER_AUTOCAST: autocast}[variant]


def _service(cells: Sequence[Cell]) -> Service:
    seconds, late = [], []
    for cell in cells:
        assert cell.samples_per_s
        assert cell.latency_ms
        seconds.append(cell.batch / cell.samples_per_s.median)
        late.append(max(seconds[-1], cell.latency_ms["p99"] / 1e3))
    return Service(
        batches=tuple(cell.batch for cell in cells), seconds=tuple(seconds), p99_s=tuple(late)
    )
