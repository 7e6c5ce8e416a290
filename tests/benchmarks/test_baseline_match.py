"""A record is compared only where hardware and settings are the same."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.baseline import RecordedBaseline
from attn_export.benchmarks.baseline_match import (
    circumstances,
    other_versions,
    require_same_circumstances,
)
from attn_export.benchmarks.bench_settings import SYNTHETIC
from attn_export.benchmarks.workload import synthetic_sequences
from attn_export.bundle import Bundle
from attn_export.errors import UsageError

from .recorded_bench import recorded_bench


def here(bundle: Bundle) -> dict[str, Any]:
    sequences = synthetic_sequences(bundle.manifest.inputs, bundle.manifest.max_length)
    threads = len(os.sched_getaffinity(0))
    return circumstances(
        bundle, sequences, data=SYNTHETIC, batch_size=64, threads=threads, quick=False
    )


def test_the_same_machine_and_settings_are_comparable(bundle: Bundle) -> None:
    baseline = RecordedBaseline(path=Path("bench.json"), report=recorded_bench(bundle))
    require_same_circumstances(baseline, here(bundle), on_gpu=False)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("model", "mha"),
        ("parameters", 1),
        ("data (sha256)", "0" * 64),
        ("sequences", 5),
        ("max length", 512),
        ("dimensions", {"num_heads": 1}),
        ("batch size", 32),
        ("threads", 99),
        ("quick", True),
        ("CPU", "Another CPU"),
        ("CPUs", 99),
        ("CPU quota", 0.5),
    ],
)
def test_each_difference_is_named(bundle: Bundle, name: str, other: object) -> None:
    baseline = RecordedBaseline(path=Path("bench.json"), report=recorded_bench(bundle))
    found = here(bundle)
    assert name in found
    with pytest.raises(UsageError) as caught:
        require_same_circumstances(baseline, {**found, name: other}, on_gpu=False)
    assert f"{name}: {found[name]!r} there, {other!r} here. Measure" in str(caught.value)


def test_gpus_count_only_where_an_engine_runs_on_one(bundle: Bundle) -> None:
    baseline = RecordedBaseline(path=Path("bench.json"), report=recorded_bench(bundle))
    found = {**here(bundle), "GPUs": ["Tesla T4"]}
    require_same_circumstances(baseline, found, on_gpu=False)
    with pytest.raises(UsageError, match=r"GPUs: \[\] there, \['Tesla T4'\] here"):
        require_same_circumstances(baseline, found, on_gpu=True)


def test_other_versions_are_said_and_not_refused(bundle: Bundle) -> None:
    report = recorded_bench(bundle)
    baseline = RecordedBaseline(path=Path("bench.json"), report=report)
    assert other_versions(baseline) is None
    here = {"onnxruntime": version("onnxruntime"), "numpy": "0.1"}
    report.environment["packages"] = here
    assert other_versions(baseline) is None
    report.environment["packages"] = {**here, "onnxruntime": "1.0.0", "tensorrt": "8.6.0"}
    assert other_versions(baseline) == (
        f"the baseline was measured with onnxruntime 1.0.0, here {version('onnxruntime')}"
    )
