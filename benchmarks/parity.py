"""Are a bundle's engines equal to eager PyTorch? Run the matrix, compare, give a verdict."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from attn_export.bundle import Bundle
from attn_export.errors import BuildFailed, BundleError, HostError, InputError, UsageError
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
    """One engine's verdict, bound by ``sha256`` to the plan or graph it was reached on."""

    engine: str
    backend: str
    precision: str
    sha256: str
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
        skipped: engines that this host cannot run, and why.
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
    skipped: dict[str, str] = field(default_factory=dict)
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
    engines: Sequence[str] | None = None,
    reference: ReferenceKind = "auto",
    tolerances: Tolerances | None = None,
    allow_host_code: bool = False,
) -> ParityReport:
    """Compare engines of a bundle with eager PyTorch FP32.

    With ``"auto"`` the reference is the model rebuilt in eager PyTorch where torch is installed
    and its weights are the bundle's; otherwise the bundle's golden file.

    Args:
        engines: by name; None for all that this host can run.
        allow_host_code: run the code that a version-compatible plan may carry.

    Raises:
        UsageError: unknown engine, output or reference; an FP16 tolerance over 1e-2.
        BundleError: an altered or missing file, no engine, no rounding twin, no golden file.
        HostError: if this host cannot run a named engine, or none at all.
        MissingPackage, BuildFailed: the asked reference cannot be had.
    """
    names = [spec.name for spec in bundle.manifest.outputs]
    tolerances = tolerances or Tolerances()
    tolerances.check_outputs(names)
    chosen = _chosen(bundle, engines)
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        judges = {}
        for name, record in chosen.items():
            with _may_skip(skipped, name, only_named=engines is not None):
                judges[name] = open_judges(
                    bundle, record, tolerances, stack, allow_host_code=allow_host_code
                )
        if not judges:
            raise HostError(
                "this machine can run no engine of the bundle: "
                + "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            )
        oracle = choose_oracle(bundle, reference)
        floor = None
        if oracle.model and any(chosen[name].precision == "fp16" for name in judges):
            floor = NoiseFloor(oracle.model, names)
        cases = _judge_all(bundle, oracle, judges, floor)
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
        engines=[_verdict(bundle, name, chosen[name], judges[name], noise) for name in judges],
        skipped=skipped,
    )


@contextmanager
def _may_skip(skipped: dict[str, str], name: str, *, only_named: bool) -> Iterator[None]:
    """An engine that this host cannot run is skipped with the reason, unless it was named."""
    try:
        yield
    except HostError as error:
        if only_named:
            raise
        skipped[name] = str(error)


@contextmanager
def _no_skipping(name: str, case: Case) -> Iterator[None]:
    """An engine that could be opened here and then fails is broken, whatever its error says."""
    try:
        yield
    except (HostError, InputError) as error:
        raise BuildFailed(f"{name} failed on the case {case.name}: {error}") from error


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
        "sha256": found.sha256,
        "twin_sha256": found.twin_sha256,
        "reference": report.reference,
        "judge": found.judge.what,
        **{key: max(getattr(result, key) for result in found.judge.outputs) for key in worst},
        "cases": report.cases,
        "rows": report.rows,
    }


def _chosen(bundle: Bundle, names: Sequence[str] | None) -> dict[str, EngineRecord]:
    engines = bundle.manifest.engines
    if not engines:
        raise BundleError(
            f"{bundle.directory} has no engine yet; make one with 'attn-export compile'"
        )
    for name in names or ():
        if name not in engines:
            raise UsageError(f"unknown engine {name!r}; the bundle has: {', '.join(engines)}")
    return {name: engines[name] for name in names or engines}


def _judge_all(
    bundle: Bundle,
    oracle: Oracle,
    judges: Mapping[str, Sequence[Judge]],
    floor: NoiseFloor | None,
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
        for name, own in judges.items():
            with _no_skipping(name, case):
                for judge in own:
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
        sha256=bundle.manifest.shipped(record).sha256,
        twin_sha256=graph.twin.sha256 if graph.twin and len(judges) > 1 else None,
        runs=[judge.result(noise if is_half else None) for judge in judges],
    )
