"""How fast are a bundle's engines, beside eager PyTorch and beside what they could reach?

Throughput counts real samples, never padding; ratios are taken round by round.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.calibration.lengths import length_histogram
from attn_export.engines.buckets import padded_tokens
from attn_export.engines.doctor import examine
from attn_export.errors import BundleError, InputError, UsageError
from attn_export.manifest import EngineRecord

from .bench_report import BenchReport, CandidateResult
from .candidates import Settings, longest_of
from .devices import CPU, GPU, device_of
from .gpu_watch import GpuWatch
from .interpreter import Interpreter, other_interpreter, this_interpreter
from .judge import runs_on_cpu
from .lineup import Lineup
from .rounds import FULL, QUICK, Entry, Rounds, Say
from .stats import median_interval, percentiles, ratio_interval
from .workload import Ids, synthetic_sequences

SYNTHETIC = "2,000 synthetic sequences: uniform ids, as long as tweets"


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
    say: Say = lambda text: None,
) -> BenchReport:
    """Measure every engine of a bundle that this host can run, or one, beside eager PyTorch FP32.

    Eager runs on the device of the engine that it is compared with; where torch cannot use the
    GPU it runs on the CPU, and a note says so.

    Args:
        sequences: int32 ids, each of shape [tokens]; None for synthetic ones as long as tweets.
        quick: short turns and two rounds: a first impression.
        batch_size: samples in a batch of the padded candidates.
        threads: CPU threads of every candidate, or None for each CPU that this process may use.
        allow_host_code: run the code that a version-compatible plan may carry.
        eager_python: the interpreter of eager candidates, with torch; None is this one.
        engine_python: the interpreter of engines: Python 3.10 or later with numpy and the
            backend's packages; None is this one.
        say: told each step.

    Raises:
        UsageError: unknown engine or interpreter; a number below 1; more threads than CPUs.
        InputError: no sequences, or one that is empty or longer than the engines take.
        BundleError: no engine, or an altered file.
        HostError: if this host cannot run the named engine, or none at all.
        AttnExportError: if an engine fails. Eager candidates that fail are skipped with a reason.
    """
    plan = QUICK if quick else FULL
    count = plan.rounds if rounds is None else rounds
    cpus = len(os.sched_getaffinity(0))
    threads = cpus if threads is None else threads
    _check_numbers(batch_size=batch_size, rounds=count, threads=threads)
    if threads > cpus:
        raise UsageError(f"threads is {threads}; this process may use {cpus} CPUs")
    chosen = _chosen(bundle, engine)
    data = SYNTHETIC if sequences is None else f"{len(sequences)} given sequences"
    sequences = _sequences(bundle, chosen, sequences)
    common = Settings(
        candidate="",
        engine=None,
        threads=threads,
        batch_size=batch_size,
        allow_host_code=allow_host_code,
    )
    before = os.getloadavg()[0]
    watch = GpuWatch()
    with ExitStack() as stack:
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
        lineup.start(chosen, named=engine is not None)
        field.prepare()
        for number in range(1, count + 1):
            field.run(f"round {number} of {count}")
        latencies = field.latencies()
        needed = field.stop()
    return BenchReport(
        model=str(bundle.manifest.model.get("name", "")),
        data=data,
        sequences=len(sequences),
        mean_length=float(np.mean([len(ids) for ids in sequences])),
        max_length=bundle.manifest.max_length,
        batch_size=batch_size,
        threads=threads,
        rounds=count,
        quick=quick,
        padded_shares=_padded_shares(sequences, bundle.manifest.buckets["edges"]),
        results=[_result(bundle, entry, field.entries, needed) for entry in field.entries],
        skipped={**lineup.skipped, **field.skipped},
        environment=_environment(watch),
        load_average=(before, os.getloadavg()[0]),
        latencies=latencies,
        notes=[*lineup.notes(), *watch.notes],
    )


def _check_numbers(**given: int) -> None:
    for name, value in given.items():
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")


def _chosen(bundle: Bundle, engine: str | None) -> dict[str, EngineRecord]:
    engines = bundle.manifest.engines
    if not engines:
        raise BundleError(
            f"{bundle.directory} has no engine yet; make one with 'attn-export compile'"
        )
    if engine is not None and engine not in engines:
        raise UsageError(f"unknown engine {engine!r}; the bundle has: {', '.join(engines)}")
    return {name: engines[name] for name in (engines if engine is None else [engine])}


def _sequences(
    bundle: Bundle, chosen: Mapping[str, EngineRecord], given: Sequence[Ids] | None
) -> Sequence[Ids]:
    """The given sequences, if all engines take them; or synthetic ones that they take."""
    longest = min(longest_of(bundle, record) for record in chosen.values())
    if given is None:
        return synthetic_sequences(bundle.manifest.inputs, longest)
    if not given:
        raise InputError("there are no sequences to measure with; give at least one")
    for index, ids in enumerate(given):
        if not 1 <= len(ids) <= longest:
            raise InputError(
                f"sequence {index} (from 0) has {len(ids)} tokens; the engines take 1 to {longest}"
            )
    return given


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


def _environment(watch: GpuWatch) -> dict[str, Any]:
    found = examine()
    packages = {p.name: p.version for extra in found.extras.values() for p in extra if p.version}
    return {
        "attn_export": found.attn_export,
        "python": found.python,
        "platform": found.platform,
        "cpu": asdict(found.cpu),
        "memory_mib": found.memory_mib,
        "packages": packages,
        **({"cuda": asdict(found.cuda), "gpu": watch.found} if watch.found else {}),
    }


def _result(
    bundle: Bundle, entry: Entry, entries: Sequence[Entry], needed: Mapping[str, dict[str, Any]]
) -> CandidateResult:
    settings = entry.settings
    record = bundle.manifest.engines[settings.engine] if settings.engine else None
    widened = record is not None and runs_on_cpu(record) and record.precision == "fp16"
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
        **needed[settings.name],
        **entry.started,
    )


def _is_baseline(other: Settings, of: Settings) -> bool:
    """Whether they are compared: the same engine, or eager on the device that belongs to it."""
    if other.engine is None:
        return other.eager_device == of.eager_device
    return other.engine == of.engine
