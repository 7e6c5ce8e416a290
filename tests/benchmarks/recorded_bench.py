"""A report of 'attn-export bench' as if it had been measured here a moment ago."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from attn_export.benchmarks.bench_report import BenchReport, CandidateResult
from attn_export.benchmarks.bench_settings import SYNTHETIC, comparable_settings
from attn_export.benchmarks.loops import Prepared
from attn_export.benchmarks.machine_state import quota_cpus
from attn_export.benchmarks.stats import median_interval, ratio_interval
from attn_export.benchmarks.workload import synthetic_sequences
from attn_export.bundle import Bundle
from attn_export.engines.doctor import examine

ENGINE, EAGER = "engine-bucketed:onnxruntime-fp32", "eager-padded"


def recorded_bench(
    bundle: Bundle, *, engine: Sequence[float] = (80.0,) * 9, eager: Sequence[float] = (10.0,) * 9
) -> BenchReport:
    """With these samples/s in each round."""
    found = examine()
    sequences = synthetic_sequences(bundle.manifest.inputs, bundle.manifest.max_length)
    given = {"batch_size": 64, "threads": len(os.sched_getaffinity(0)), "quick": False}
    settings = comparable_settings(bundle, sequences, data=SYNTHETIC, **given)
    return BenchReport(
        model=settings["model"],
        data=SYNTHETIC,
        sequences=len(sequences),
        mean_length=30.0,
        max_length=settings["max_length"],
        batch_size=64,
        threads=given["threads"],
        rounds=len(engine),
        quick=False,
        padded_shares={},
        results=[
            _result(EAGER, None, eager, {}),
            _result(ENGINE, "onnxruntime-fp32", engine, {EAGER: eager}),
        ],
        skipped={},
        environment={
            "cpu": asdict(found.cpu),
            "machine": {"quota_cpus": quota_cpus(Path("/"))},
        },
        load_average=(0.0, 0.0),
        settings=settings,
    )


def _result(
    name: str, engine: str | None, rounds: Sequence[float], beside: dict[str, Sequence[float]]
) -> CandidateResult:
    return CandidateResult(
        name=name,
        candidate=name.partition(":")[0],
        engine=engine,
        note="",
        prepared=Prepared(samples=64, tokens=640, computed_tokens=700, batches=2),
        samples_per_s=median_interval(rounds),
        rounds=list(rounds),
        batch_ms=None,
        ratios={other: ratio_interval(rounds, rates) for other, rates in beside.items()},
        cold_start_s=1.0,
        cold_start_with_imports_s=2.0,
        peak_mib=100.0,
    )
