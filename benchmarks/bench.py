"""How fast are a bundle's engines, beside eager PyTorch and beside what they could reach?

Throughput counts real samples, never padding; ratios are taken round by round.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.calibration.lengths import length_histogram
from attn_export.engines.buckets import padded_tokens
from attn_export.engines.doctor import examine
from attn_export.errors import HostError

from .bench_report import BenchReport, CandidateResult, Failure
from .bench_settings import (
    checked_threads,
    chosen_engines,
    comparable_settings,
    described,
    fitting_sequences,
)
from .candidates import Settings
from .devices import CPU, GPU, device_of
from .environment import environment
from .gpu_watch import GpuWatch
from .interpreter import Interpreter, other_interpreter, this_interpreter
from .judge import is_widened
from .latency import Latency
from .lineup import Lineup
from .machine_state import MachineWatch
from .rounds import FULL, QUICK, Entry, Plan, Rounds, Say
from .stats import median_interval, percentiles, ratio_interval
from .steadiness import STEADY_CV
from .workload import Ids

# Beyond it a candidate's rounds are called noisy.
NOISY_CV = 0.05


def run_bench(
    bundle: Bundle,
    *,
    sequences: Sequence[Ids] | None = None,
    quick: bool = False,
    engine: str | None = None,
    batch_size: int = 64,
    rounds: int | None = None,
    threads: int | None = None,
    allow_host_code: bool = False,
    eager_python: str | None = None,
    engine_python: str | None = None,
    peers: Sequence[str] = (),
    say: Say = lambda text: None,
) -> BenchReport:
    """Measure every engine of a bundle that this host can run, or one, beside eager PyTorch FP32.

    Eager runs on the device of the engine that it is compared with; where torch cannot use the
    GPU it runs on the CPU, and a note says so.

    Args:
        sequences: int32 ids, each of shape [tokens]; None for synthetic ones as long as tweets.
        quick: short turns and fewer rounds: a first impression.
        batch_size: samples in a batch of the padded candidates.
        threads: CPU threads of every candidate, or None for each CPU that this process may use.
        allow_host_code: run the code that a version-compatible plan may carry.
        eager_python: the interpreter of eager candidates, with torch; None is this one.
        engine_python: the interpreter of engines: Python 3.10 or later with numpy and the
            backend's packages; None is this one.
        peers: what else to run beside the engines, by the names of
            :data:`~attn_export.benchmarks.peers.PEERS`.
        say: told each step.

    A candidate that crashes, hangs or fails is in the report's ``failed``; see
    :meth:`~attn_export.benchmarks.bench_report.BenchReport.require_complete`. One that cannot be
    loaded here is skipped with a reason: eager PyTorch, a peer, an engine for another GPU.

    Raises:
        UsageError: unknown engine or interpreter; a number below 1; more threads than CPUs.
        InputError: no sequences, or one that is empty or longer than the engines take.
        BundleError: no engine.
        HostError: if this host cannot run the named engine, or none at all.
        AttnExportError: if no engine could be loaded: why the first one could not.
    """
    plan = QUICK if quick else FULL
    plan = replace(plan, rounds=plan.rounds if rounds is None else rounds)
    threads = checked_threads(threads, batch_size=batch_size, rounds=plan.rounds)
    chosen = chosen_engines(bundle, engine)
    data, sequences = described(sequences), fitting_sequences(bundle, chosen, sequences)
    common = Settings(
        candidate="",
        engine=None,
        threads=threads,
        batch_size=batch_size,
        allow_host_code=allow_host_code,
    )
    host, watch, machine = examine(), GpuWatch(), MachineWatch()
    with machine, ExitStack() as stack:
        if any(device_of(record) == GPU for record in chosen.values()):
            stack.enter_context(watch)
        field = Rounds(
            bundle,
            sequences,
            plan,
            eager=_interpreter(eager_python, stack),
            engine=_interpreter(engine_python, stack),
            say=say,
            stack=stack,
        )
        lineup = Lineup(bundle, field, common)
        try:
            lineup.start(chosen, named=engine is not None, peers=peers)
        except HostError as error:
            for failure in field.failed.values():
                raise failure from error
            raise
        measured = _measure(field, plan)
    return _report(
        bundle,
        sequences,
        measured,
        data=data,
        quick=quick,
        plan=plan,
        common=common,
        skipped=lineup.skipped,
        notes=[*lineup.notes(), *watch.notes, *machine.notes],
        environment=environment(host, watch, machine),
        load_average=machine.load_average,
    )


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What the workers said; ``needed`` is their memory, the rates are in the field's entries."""

    field: Rounds
    latencies: dict[str, list[Latency]]
    needed: dict[str, dict[str, Any]]


def _measure(field: Rounds, plan: Plan) -> _Measured:
    field.prepare()
    for number in range(1, plan.rounds + 1):
        field.run(f"round {number} of {plan.rounds}")
    latencies = field.latencies()
    return _Measured(field=field, latencies=latencies, needed=field.stop())


def _report(
    bundle: Bundle,
    sequences: Sequence[Ids],
    measured: _Measured,
    *,
    data: str,
    quick: bool,
    plan: Plan,
    common: Settings,
    skipped: Mapping[str, str],
    notes: Sequence[str],
    **found: Any,
) -> BenchReport:
    field = measured.field
    results = [_result(bundle, entry, field.entries, measured.needed) for entry in field.entries]
    failed = {n: Failure(error=type(e).__name__, reason=str(e)) for n, e in field.failed.items()}
    given = {"batch_size": common.batch_size, "threads": common.threads, "quick": quick}
    return BenchReport(
        model=str(bundle.manifest.model.get("name", "")),
        data=data,
        sequences=len(sequences),
        mean_length=float(np.mean([len(ids) for ids in sequences])),
        max_length=bundle.manifest.max_length,
        batch_size=common.batch_size,
        threads=common.threads,
        rounds=plan.rounds,
        quick=quick,
        padded_shares=_padded_shares(sequences, bundle.manifest.buckets["edges"]),
        results=results,
        skipped=_skipped({**skipped, **field.skipped}, failed),
        failed=failed,
        latencies=measured.latencies,
        notes=[*notes, *_noise_notes(results)],
        settings=comparable_settings(bundle, sequences, data=data, **given, **asdict(plan)),
        **found,
    )


def _skipped(found: dict[str, str], failed: Mapping[str, Failure]) -> dict[str, str]:
    """Without what has a row of its own as a failure."""
    reasons = [failure.reason for failure in failed.values()]
    return {name: reason for name, reason in found.items() if reason not in reasons}


def _interpreter(python: str | None, stack: ExitStack) -> Interpreter:
    if python is None or python == sys.executable:
        return this_interpreter()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return other_interpreter(python, Path(folder))


def _padded_shares(sequences: Sequence[Ids], edges: Sequence[int]) -> dict[str, float]:
    histogram = length_histogram(sequences)
    tokens = sum(length * number for length, number in histogram.items())
    return {
        name: 1 - tokens / (tokens + padded_tokens(histogram, upto))
        for name, upto in (("maximum", edges[-1:]), ("bucket edges", edges))
    }


def _result(
    bundle: Bundle, entry: Entry, entries: Sequence[Entry], needed: Mapping[str, dict[str, Any]]
) -> CandidateResult:
    settings = entry.settings
    record = bundle.manifest.engines[settings.engine] if settings.engine else None
    widened = record is not None and is_widened(record)
    return CandidateResult(
        name=settings.name,
        candidate=settings.candidate,
        engine=settings.engine,
        note="a CPU computes FP16 in FP32" if widened else entry.prepared.detail,
        prepared=entry.prepared,
        samples_per_s=median_interval(entry.rounds),
        rounds=entry.rounds,
        batch_ms=percentiles(entry.batch_ms) if entry.batch_ms else None,
        ratios={
            other.settings.name: ratio_interval(entry.rounds, other.rounds)
            for other in entries
            if other is not entry and _is_baseline(other.settings, settings)
        },
        device=GPU if entry.on_gpu else CPU,
        eager_device=settings.eager_device,
        stable=entry.stable,
        warm_up_cv=entry.warm_up_cv,
        **needed[settings.name],
        **entry.started,
    )


def _noise_notes(results: Sequence[CandidateResult]) -> list[str]:
    """Which numbers are less certain than they look, and why."""
    noisy = [f"{r.name} {r.cv:.0%}" for r in results if r.cv > NOISY_CV]
    unsteady = [f"{r.name} {r.warm_up_cv:.0%}" for r in results if not r.stable]
    notes = []
    if noisy:
        notes.append(
            f"the rounds of these vary by more than {NOISY_CV:.0%} (coefficient of variation): "
            + ", ".join(noisy)
        )
    if unsteady:
        notes.append(
            f"the warm-up of these ended by its time limit, not because times were within "
            f"{STEADY_CV:.0%} (coefficient of variation): {', '.join(unsteady)}"
        )
    return notes


def _is_baseline(other: Settings, of: Settings) -> bool:
    """Whether they are compared: the same engine, or eager on the device that belongs to it."""
    if other.engine is None:
        return other.eager_device == of.eager_device
    return other.engine == of.engine
