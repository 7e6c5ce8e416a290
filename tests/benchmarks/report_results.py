"""Results as the commands write them, with numbers that a test can count on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attn_export.benchmarks.bench_report import BenchReport, CandidateResult, Failure
from attn_export.benchmarks.check_report import CheckReport, GateResult
from attn_export.benchmarks.devices import CPU, GPU, Device
from attn_export.benchmarks.latency import Latency, histogram
from attn_export.benchmarks.loops import Prepared
from attn_export.benchmarks.matrix_cell import BATCHES, Cell
from attn_export.benchmarks.matrix_report import MatrixReport
from attn_export.benchmarks.packing_study import Cell as PackingCell
from attn_export.benchmarks.packing_study import PackingStudy
from attn_export.benchmarks.self_test import SelfTestReport
from attn_export.benchmarks.stats import Interval, median_interval, percentiles, ratio_interval

ENVIRONMENT = {
    "attn_export": "0.1.0",
    "python": "3.11.7",
    "platform": "Linux x86_64",
    "cpu": {"model": "A CPU", "cores": 4, "features": {"avx2": True, "amx_int8": False}},
    "memory_mib": 24105,
    "packages": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
}
GPU_ENVIRONMENT = {**ENVIRONMENT, "gpu": {"before": {"name": "Tesla T4", "driver": "570.1"}}}
# Noise that is the same in each round for all: ratios are exact.
WEATHER = (1.0, 0.98, 1.02, 1.01, 0.99, 1.03, 0.97)
FACTS = {
    "precision": "fp32",
    "max_abs": 2e-6,
    "cosine": 0.999999,
    "passed": True,
    "version": "2026.4.0",
    "how": "THROUGHPUT hint with an AsyncInferQueue",
    "docs": "https://docs.openvino.ai/",
}


def interval(value: float) -> Interval:
    """A narrow interval that leaves 1 out where the value is not near it."""
    return Interval(median=value, low=value * 0.97, high=value * 1.03, confidence=0.98)


def candidate(
    name: str,
    rate: float,
    *,
    engine: str | None = None,
    facts: dict[str, Any] | None = None,
    device: Device = CPU,
    weather: tuple[float, ...] = WEATHER,
) -> CandidateResult:
    rounds = [rate * factor for factor in weather]
    is_eager = engine is None and not name.startswith("peer-")
    where = "@gpu" if device == GPU else ""
    return CandidateResult(
        name=f"{name}:{engine}" if engine else f"{name}{where}",
        candidate=name,
        engine=engine,
        note="",
        prepared=Prepared(samples=100, tokens=3000, computed_tokens=3200, batches=4),
        samples_per_s=median_interval(rounds),
        rounds=rounds,
        batch_ms={"p50": 100.0, "p90": 110.0, "p99": 120.0} if is_eager else None,
        ratios={
            f"{other}{where}": ratio_interval(rounds, [base * factor for factor in weather])
            for other, base in (("eager-mha-padded", 10.0), ("eager-padded", 12.0))
            if other != name
        },
        cold_start_s=0.5,
        cold_start_with_imports_s=2.0,
        peak_mib=500.0,
        device=device,
        eager_device=device,
        facts=facts or {},
    )


def bench(results: list[CandidateResult] | None = None, **changed: Any) -> dict[str, Any]:
    """bench.json: 200 samples/s in FP32, 500 in INT8, eager 10, the best peer 160."""
    times = [5.0 + 0.1 * (index % 13) for index in range(200)]
    latency = Latency(
        batch=1, length=30, runs=200, host_ms=percentiles(times), histogram=histogram(times)
    )
    values: dict[str, Any] = {
        "model": "mqa",
        "data": "2000 given sequences",
        "sequences": 2000,
        "mean_length": 10.0,
        "max_length": 16,
        "batch_size": 64,
        "threads": 4,
        "rounds": len(WEATHER),
        "quick": False,
        "padded_shares": {"maximum": 0.766, "bucket edges": 0.108},
        "skipped": {"peer-optimum": "optimum is not installed"},
        "environment": ENVIRONMENT,
        "load_average": (0.5, 3.9),
        "latencies": {"onnxruntime-fp32": [latency]},
        "settings": {"batch_size": 64, "quick": False},
    }
    made = [
        candidate("eager-mha-padded", 10.0),
        candidate("eager-padded", 12.0),
        candidate("engine-bucketed", 200.0, engine="onnxruntime-fp32"),
        candidate("hand-sorted", 220.0, engine="onnxruntime-fp32"),
        candidate("engine-bucketed", 500.0, engine="onnxruntime-int8"),
        candidate("peer-openvino-fp32", 160.0, facts=FACTS),
    ]
    return BenchReport(**{**values, "results": results or made, **changed}).to_json()


def failed_bench() -> dict[str, Any]:
    """bench.json of a run in which a peer crashed."""
    return bench(failed={"peer-torch-int8": Failure(error="HostError", reason="it was killed")})


def check(verdict: Any = "pass") -> dict[str, Any]:
    """check.json with one gate."""
    gate = GateResult(
        gate="speedup",
        engine="onnxruntime-fp32",
        verdict=verdict,
        text="19.9 times eager-padded, 15 are asked",
        ratio=interval(19.9),
        limit=15.0,
        noise=0.02,
    )
    return CheckReport(
        bundle="mqa",
        model="mqa",
        baseline=None,
        results=[gate],
        settings={},
        load_average=(0.5, 0.6),
    ).to_json()


def self_test() -> dict[str, Any]:
    """self-test.json of two runs without a difference."""
    same = Interval(median=1.0, low=0.99, high=1.01)
    return SelfTestReport(
        engine="onnxruntime-fp32",
        ratios=[same, same],
        plain=[same, same],
        practical=0.03,
        environment=ENVIRONMENT,
        settings={},
    ).to_json()


def matrix(*, quick: bool = False) -> dict[str, Any]:
    """matrix.json; MQA is twice MHA, an engine ten times eager, buckets three times padding."""
    weather = WEATHER[:3] if quick else WEATHER
    cells = [
        Cell(
            model=model,
            variant=variant,
            engine="onnxruntime-fp32" if variant.startswith("engine") else None,
            batch=batch,
            mode=mode,
            samples_per_s=interval(times * speed * gain * batch**0.2),
            rounds=[times * speed * gain * batch**0.2 * factor for factor in weather],
            latency_ms={"p50": 10.0, "p90": 11.0, "p99": 12.0},
            groups=20,
            peak_mib=1000.0 / times,
        )
        for model, times in (("mha", 1.0), ("gqa", 1.7), ("mqa", 2.0))
        for variant, speed in (("eager-fp32", 5.0), ("eager-autocast", 8.0), ("engine-int8", 50.0))
        for mode, gain in (("padded", 1.0), ("bucketed", 3.0))
        for batch in BATCHES
    ]
    cells.append(
        Cell(
            model="mha",
            variant="engine-fp16",
            engine="onnxruntime-fp16",
            batch=16,
            mode="padded",
            note="a CPU computes FP16 in FP32",
        )
    )
    return MatrixReport(
        settings={
            "sequences": 2500,
            "max_length": 128,
            "quick": quick,
            "peak_mib": "resident memory",
        },
        environment=ENVIRONMENT,
        load_average=(0.5, 3.9),
        cells=cells,
        notes=[],
    ).to_json()


def sensitivity() -> dict[str, Any]:
    """sensitivity.json: one layer at 20 dB, one without noise."""
    rows: list[dict[str, Any]] = [
        {"name": "layers.1", "kind": "layer", "nodes": ["layers.1.attention.query.gemm"]},
        {"name": "layers.0", "kind": "layer", "nodes": ["layers.0.attention.query.gemm"]},
    ]
    numbers: tuple[dict[str, Any], ...] = (
        {"sqnr_db": 20.0, "labels": 0.875},
        {"sqnr_db": None, "labels": 1.0},
    )
    return {
        "rows": [
            {**row, **found, "cosine": 0.99} for row, found in zip(rows, numbers, strict=True)
        ],
        "excludes": ["layers.1.attention.query.gemm"],
        "nodes": 2,
        "before": [],
        "after": [],
        "requests": 64,
        "sampled": 64,
        "notes": [],
    }


def packing() -> dict[str, Any]:
    """packing.json: packing is 1.25 times buckets, and as fast where groups of 8 come."""
    cells = [
        PackingCell(
            lengths="tweets",
            group=group,
            requests=512,
            ratios={"packed": interval(times), "padded": interval(0.5)},
            cpu={"packed": interval(2.0), "padded": interval(0.4)},
            empty={"packed": 0.0, "bucketed": 0.125, "at edges": 0.25},
            arithmetic={"bucketed": 1.1, "at edges": 1.3},
        )
        for group, times in ((None, 1.25), (8, 1.0))
    ]
    return PackingStudy(
        model="mqa",
        packed="onnxruntime-fp32-packed",
        bucketed="onnxruntime-fp32",
        rounds=7,
        cells=cells,
        cpus=4,
        load_average=(0.5, 3.9),
    ).to_json()


def put(directory: Path, name: str, content: Any) -> None:
    """Write one file of results."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
