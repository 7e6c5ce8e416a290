"""Are a bundle's engines equal to eager PyTorch? Run the matrix, compare, give a verdict."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from attn_export.bundle import Bundle
from attn_export.errors import BundleError, UsageError
from attn_export.manifest import EngineRecord

from .cases import ROWS, Case
from .eager import NoiseFloor
from .judge import Judge, Run, open_judges
from .oracle import Oracle, ReferenceKind, choose_oracle
from .tolerances import Tolerances

SCHEMA_VERSION = 1
log = logging.getLogger("attn_export")


@dataclass(frozen=True, kw_only=True)
class EngineParity:
    """One engine's verdict, bound to the bytes it was reached on."""

    engine: str
    backend: str
    precision: str
    graph_sha256: str
    twin_sha256: str | None
    runs: list[Run]

    @property
    def passed(self) -> bool:
        """Whether every run passed."""
        return all(run.passed for run in self.runs)

    @property
    def judge(self) -> Run:
        """The run whose numbers count: the rounding twin's where there is one."""
        return self.runs[-1]


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The result of :func:`run_parity`.

    Args:
        reference: ``"eager"`` or ``"golden"``; ``reason`` says why, in words.
        dropped: cases that did not fit into the golden file.
        noise_floor: largest error of eager FP16 by output, or None and ``noise_reason``.
    """

    model: str
    reference: str
    reason: str
    cases: int
    rows: int
    dropped: list[str]
    noise_floor: dict[str, float] | None
    noise_reason: str
    engines: list[EngineParity]
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether every engine passed."""
        return all(engine.passed for engine in self.engines)

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with the verdicts."""
        data = {**asdict(self), "passed": self.passed}
        for entry, engine in zip(data["engines"], self.engines, strict=True):
            entry["passed"] = engine.passed
            for shown, run in zip(entry["runs"], engine.runs, strict=True):
                shown["passed"] = run.passed
        return data


def run_parity(
    bundle: Bundle,
    *,
    engine: str | None = None,
    reference: ReferenceKind = "auto",
    tolerances: Tolerances | None = None,
) -> ParityReport:
    """Compare every engine of a bundle, or one, with eager PyTorch FP32.

    With ``"auto"`` the reference is the model rebuilt in eager PyTorch where torch is installed
    and its weights are the bundle's; otherwise the bundle's golden file.

    Raises:
        UsageError: unknown engine, output or reference; an FP16 tolerance over 1e-2.
        BundleError: an altered or missing file, no engine, no rounding twin, no golden file.
        MissingPackage, BuildFailed: the asked reference cannot be had.
    """
    names = [spec.name for spec in bundle.manifest.outputs]
    tolerances = tolerances or Tolerances()
    tolerances.check_outputs(names)
    chosen = _chosen(bundle, engine)
    with ExitStack() as stack:
        judges = {
            name: open_judges(bundle, record, tolerances, stack) for name, record in chosen.items()
        }
        oracle = choose_oracle(bundle, reference)
        floor = None
        if oracle.model and any(record.precision == "fp16" for record in chosen.values()):
            floor = NoiseFloor(oracle.model, names)
        cases = _judge_all(bundle, oracle, [j for pair in judges.values() for j in pair], floor)
    noise = floor.max_abs() if floor else None
    needs_eager = "it needs eager PyTorch" if oracle.model is None else "no engine is FP16"
    return ParityReport(
        model=str(bundle.manifest.model.get("name", "")),
        reference=oracle.kind,
        reason=oracle.reason,
        cases=len(cases),
        rows=sum(case.batch for case in cases),
        dropped=oracle.dropped,
        noise_floor=noise,
        noise_reason=floor.reason if floor else needs_eager,
        engines=[_verdict(bundle, name, chosen[name], judges[name], noise) for name in chosen],
    )


def summary(report: ParityReport, engine: str) -> dict[str, Any]:
    """What the manifest keeps of one engine's parity: the verdict, the bytes, the numbers.

    Raises:
        UsageError: if the report does not cover the engine.
    """
    found = next((entry for entry in report.engines if entry.engine == engine), None)
    if found is None:
        have = ", ".join(entry.engine for entry in report.engines)
        raise UsageError(f"the parity report has no engine {engine!r}; it covers: {have}")
    worst = ("max_abs", "mean_abs", "p99_abs", "smallest_tolerance", "atol", "rtol")
    return {
        "passed": found.passed,
        "graph_sha256": found.graph_sha256,
        "twin_sha256": found.twin_sha256,
        "reference": report.reference,
        "judge": found.judge.what,
        **{key: max(getattr(result, key) for result in found.judge.outputs) for key in worst},
        "cases": report.cases,
        "rows": report.rows,
    }


def _chosen(bundle: Bundle, engine: str | None) -> dict[str, EngineRecord]:
    engines = bundle.manifest.engines
    if not engines:
        raise BundleError(
            f"{bundle.directory} has no engine yet; make one with 'attn-export compile'"
        )
    if engine is None:
        return dict(engines)
    if engine not in engines:
        raise UsageError(f"unknown engine {engine!r}; the bundle has: {', '.join(engines)}")
    return {engine: engines[engine]}


def _judge_all(
    bundle: Bundle, oracle: Oracle, judges: Sequence[Judge], floor: NoiseFloor | None
) -> list[Case]:
    """Run every case through every judge; only one case's outputs are in memory."""
    edges = bundle.manifest.buckets["edges"]
    short = min((edge for edge in edges if edge > 1), default=1)
    cases = []
    for case, expected in oracle.stream(bundle):
        # Eager FP16 is slow on a CPU: the floor is taken on the short padded batches alone.
        noise = case.batch == ROWS and case.length == short and case.mask != "masked_row"
        if floor and noise:
            floor.add(case, expected)
        for judge in judges:
            judge.add(case, expected, noise=noise)
        cases.append(case)
        log.debug("parity: %s", case.name)
    return cases


def _verdict(
    bundle: Bundle,
    name: str,
    record: EngineRecord,
    judges: Sequence[Judge],
    noise: Mapping[str, float] | None,
) -> EngineParity:
    graph = bundle.graph(record.graph)
    is_half = record.precision == "fp16"
    return EngineParity(
        engine=name,
        backend=record.backend,
        precision=record.precision,
        graph_sha256=graph.files[0].sha256,
        twin_sha256=graph.twin.sha256 if graph.twin and len(judges) > 1 else None,
        runs=[judge.result(noise if is_half else None) for judge in judges],
    )
