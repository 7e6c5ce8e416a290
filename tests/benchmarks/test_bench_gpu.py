"""A whole measurement of a TensorRT engine, which runs on doubles in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attn_export.bundle import Bundle, write_manifest

CALL = """
import json, sys
import numpy as np
from rich.console import Console
from attn_export.benchmarks import bench
from attn_export.benchmarks.report import render_bench
from attn_export.benchmarks.rounds import Plan
from attn_export.bundle import Bundle, write_manifest
from attn_export.engines import tensorrt
from attn_export.engines.session import CompileOptions

directory, python = sys.argv[1:]
bench.QUICK = Plan(rounds=2, turn_s=0.02, all_s=0.02, warm_up_s=0.0, latency_s=5.0)
bundle = Bundle.open(directory)
engine = tensorrt.compile(bundle, "fp32", CompileOptions())
bundle.manifest.engines = {engine.name: engine}
write_manifest(bundle.directory, bundle.manifest)
sequences = [np.full(n, 3, np.int32) for n in (2, 4, 4, 8, 9, 16, 3, 1)]
report = bench.run_bench(
    bundle, sequences=sequences, quick=True, batch_size=4, threads=1, engine_python=python
)
Console(width=80, file=sys.stderr).print(render_bench(report))
print(json.dumps(report.to_json()))
"""
SMI = """#!/bin/sh
case "$*" in *compute-apps*) exit 0 ;; *loop-ms*) exec sleep 600 ;; esac
echo "Tesla T4, 580.82.07, Enabled, 300, 5001, 1590, 5001, 40, 30.5, 70.00, 3, 0x1"
"""


@pytest.fixture
def measured(
    bundle: Bundle, child_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> tuple[dict[str, Any], str]:
    """The report, and what the terminal showed."""
    bundle.manifest.model["name"] = "mha"  # one eager candidate less
    write_manifest(bundle.directory, bundle.manifest)
    environment = child_environment("10.16.1.11")
    log = tmp_path / "log"
    scripts = {
        "nvidia-smi": SMI,
        "python": f'#!/bin/sh\necho x >> {log}\nexec {sys.executable} "$@"',
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment["PATH"] = os.pathsep.join([str(tmp_path), environment["PATH"]])
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(bundle.directory), str(tmp_path / "python")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(log.read_text().split()) == 3  # the engine's candidates, and no other
    return json.loads(done.stdout), done.stderr


def test_an_engine_on_a_gpu_is_measured_whole(measured: tuple[dict[str, Any], str]) -> None:
    report, text = measured
    engine = "tensorrt-fp32-sm75-10.16.1"
    results = {result["name"]: result for result in report["results"]}
    assert list(results) == [
        *("eager-padded", "eager-dynamic"),
        *(f"{kind}:{engine}" for kind in ("engine-padded", "engine-bucketed", "hand-sorted")),
    ]
    padded = results[f"engine-padded:{engine}"]
    assert (padded["device"], padded["eager_device"]) == ("gpu", "cpu")
    assert {"eager-padded", "eager-dynamic"} < set(padded["ratios"])
    assert padded["device_mib"] > 0
    assert padded["versions"]["tensorrt"] == "10.16.1.11"
    assert "torch" not in padded["versions"]
    single, long, batch = report["latencies"][engine]
    assert (single["batch"], single["length"], single["runs"]) == (1, 4, 200)
    assert (long["batch"], long["length"]) == (1, 16)
    assert (batch["batch"], batch["length"]) == (4, 16)
    assert single["host_ms"]["p50"] <= single["host_ms"]["p99"]
    assert single["overhead_us"] == pytest.approx(
        1e3 * (single["host_ms"]["p50"] - single["device_ms"]["p50"]), rel=0.5
    )
    assert report["notes"][0].startswith("EAGER ON THE CPU: torch ")
    gpu = report["environment"]["gpu"]
    assert (gpu["before"]["name"], gpu["during"]["samples"]) == ("Tesla T4", 0)
    assert gpu["after"]["temperature_c"] == 40
    assert report["environment"]["cuda"]["version"] == "12.8"

    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert "EAGER ON THE CPU" in text
    assert engine in [line.strip() for line in lines]
    (row,) = [line for line in lines if line.startswith("engine-padded ")]
    assert f"{padded['samples_per_s']['median']:.1f}" in row.split()
    assert "batch 1 of 4 tokens takes p50 " in text
    assert "; the device " in text
