"""How fast are a bundle's engines, beside eager PyTorch and beside what they could reach?

Throughput counts real samples, never padding; ratios are taken round by round.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.calibration.lengths import length_histogram
from attn_export.engines.buckets import padded_tokens
from attn_export.engines.doctor import examine
from attn_export.errors import BundleError, InputError, UsageError
from attn_export.manifest import EngineRecord

from .candidates import BUCKETED, EAGER, EAGER_MHA, ENGINE, Prepared, Settings
from .rounds import FULL, QUICK, Entry, Rounds, Say
from .stats import Interval, median_interval, percentiles, ratio_interval
from .workload import Ids, synthetic_sequences

SCHEMA_VERSION = 1
SYNTHETIC = "2,000 synthetic sequences: uniform ids, as long as tweets"


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """What one candidate reached.

    Args:
        name: the candidate, and the engine where it runs one.
        prepared: what each turn ran.
        samples_per_s: real samples; the median over rounds, with its interval.
        rounds: samples a second in each round.
        batch_ms: p50, p90, p99 of a batch, where batches run one after the other.
        ratios: how many times each baseline, by the baseline's name.
        cold_start_s: loading and the first request, in a fresh process after its imports (the
            files are in the page cache); ``cold_start_with_imports_s`` is from its start.
        peak_mib: the process's largest resident size.
    """

    name: str
    candidate: str
    engine: str | None
    note: str
    prepared: Prepared
    samples_per_s: Interval
    rounds: list[float]
    batch_ms: dict[str, float] | None
    ratios: dict[str, Interval]
    cold_start_s: float
    cold_start_with_imports_s: float
    peak_mib: float

    @property
    def padded_share(self) -> float:
        """Padding, as a share of all tokens computed."""
        return 1 - self.prepared.tokens / self.prepared.computed_tokens


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The result of :func:`run_bench`.

    Args:
        padded_shares: padding as a share of all tokens, if every sequence were padded to the
            maximum or to its bucket's edge; what each candidate computed is in its result.
        skipped: candidates that could not run here, and why.
        load_average: of the last minute, before and after.
    """

    model: str
    data: str
    sequences: int
    mean_length: float
    max_length: int
    batch_size: int
    threads: int
    rounds: int
    quick: bool
    padded_shares: dict[str, float]
    results: list[CandidateResult]
    skipped: dict[str, str]
    environment: dict[str, Any]
    load_average: tuple[float, float]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        data = asdict(self)
        for entry, result in zip(data["results"], self.results, strict=True):
            entry["padded_share"] = result.padded_share
        return data


def run_bench(
    bundle: Bundle,
    *,
    sequences: Sequence[Ids] | None = None,
    quick: bool = False,
    engine: str | None = None,
    batch_size: int = 64,
    rounds: int | None = None,
    threads: int | None = None,
    say: Say = lambda text: None,
) -> BenchReport:
    """Measure every engine of a bundle, or one, beside eager PyTorch FP32.

    Args:
        sequences: int32 ids, each of shape [tokens]; None for synthetic ones as long as tweets.
        quick: short turns and two rounds: a first impression.
        batch_size: samples in a batch of the padded candidates.
        threads: CPU threads of every candidate, or None for each CPU that this process may use.
        say: told each step.

    Raises:
        UsageError: unknown engine; a number below 1; more threads than CPUs.
        InputError: no sequences, or one that is empty or longer than the engines take.
        BundleError: no engine, or an altered file.
        AttnExportError: if an engine fails. Eager candidates that fail are skipped with a reason.
    """
    plan = QUICK if quick else FULL
    count = plan.rounds if rounds is None else rounds
    cpus = len(os.sched_getaffinity(0))
    threads = cpus if threads is None else threads
    _check_numbers(batch_size=batch_size, rounds=count, threads=threads)
    if threads > cpus:
        raise UsageError(f"threads is {threads}; this process may use {cpus} CPUs")
    longest = bundle.manifest.max_length
    data = SYNTHETIC if sequences is None else f"{len(sequences)} given sequences"
    if sequences is None:
        sequences = synthetic_sequences(bundle.manifest.inputs, longest)
    _check_sequences(sequences, longest)
    candidates, skipped = _candidates(bundle, engine)
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        field = Rounds(bundle, sequences, plan, say, stack)
        for kind, name in candidates:
            field.start(
                Settings(candidate=kind, engine=name, threads=threads, batch_size=batch_size)
            )
        field.prepare()
        for number in range(1, count + 1):
            field.run(f"round {number} of {count}")
        peaks = field.stop()
    return BenchReport(
        model=str(bundle.manifest.model.get("name", "")),
        data=data,
        sequences=len(sequences),
        mean_length=float(np.mean([len(ids) for ids in sequences])),
        max_length=longest,
        batch_size=batch_size,
        threads=threads,
        rounds=count,
        quick=quick,
        padded_shares=_padded_shares(sequences, bundle.manifest.buckets["edges"]),
        results=[_result(bundle, entry, field.entries, peaks) for entry in field.entries],
        skipped={**skipped, **field.skipped},
        environment=_environment(),
        load_average=(before, os.getloadavg()[0]),
    )


def _check_numbers(**given: int) -> None:
    for name, value in given.items():
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")


def _check_sequences(sequences: Sequence[Ids], longest: int) -> None:
    if not sequences:
        raise InputError("there are no sequences to measure with; give at least one")
    for index, ids in enumerate(sequences):
        if not 1 <= len(ids) <= longest:
            raise InputError(
                f"sequence {index} (from 0) has {len(ids)} tokens; the engines take 1 to {longest}"
            )


def _candidates(
    bundle: Bundle, engine: str | None
) -> tuple[list[tuple[str, str | None]], dict[str, str]]:
    """Every (candidate, engine) of this bundle, baselines first; and what is left out, and why."""
    engines = bundle.manifest.engines
    if not engines:
        raise BundleError(
            f"{bundle.directory} has no engine yet; make one with 'attn-export compile'"
        )
    if engine is not None and engine not in engines:
        raise UsageError(f"unknown engine {engine!r}; the bundle has: {', '.join(engines)}")
    model, skipped = bundle.manifest.model, {}
    if not model.get("builtin"):
        skipped[EAGER_MHA] = "only a built-in model has an MHA of the same size"
    elif model.get("name") == "mha":
        skipped[EAGER_MHA] = "the model is that MHA itself: see eager-padded"
    chosen: list[tuple[str, str | None]] = [(kind, None) for kind in EAGER if kind not in skipped]
    for name in engines if engine is None else [engine]:
        # A CPU computes FP16 in FP32: one row shows that it gains nothing.
        kinds = (BUCKETED,) if _is_widened(engines[name]) else ENGINE
        chosen += [(kind, name) for kind in kinds]
    return chosen, skipped


def _is_widened(record: EngineRecord) -> bool:
    return (record.backend, record.precision) == ("onnxruntime", "fp16")


def _padded_shares(sequences: Sequence[Ids], edges: Sequence[int]) -> dict[str, float]:
    histogram = length_histogram(sequences)
    tokens = sum(length * number for length, number in histogram.items())
    return {
        name: 1 - tokens / (tokens + padded_tokens(histogram, upto))
        for name, upto in (("maximum", edges[-1:]), ("bucket edges", edges))
    }


def _environment() -> dict[str, Any]:
    found = examine()
    packages = {p.name: p.version for extra in found.extras.values() for p in extra if p.version}
    return {
        "attn_export": found.attn_export,
        "python": found.python,
        "platform": found.platform,
        "cpu": asdict(found.cpu),
        "memory_mib": found.memory_mib,
        "packages": packages,
    }


def _result(
    bundle: Bundle, entry: Entry, entries: Sequence[Entry], peaks: Mapping[str, float]
) -> CandidateResult:
    settings = entry.settings
    record = bundle.manifest.engines[settings.engine] if settings.engine else None
    widened = record is not None and _is_widened(record)
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
            if other is not entry and other.settings.engine in (None, settings.engine)
        },
        peak_mib=peaks[settings.name],
        **entry.started,
    )
