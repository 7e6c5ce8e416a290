"""The arithmetic of the GPU check's measurements, by hand-worked numbers."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.benchmarks.gpu_check_bench import ratios
from attn_export.benchmarks.gpu_check_cases import (
    largest_error,
    padded_feeds,
    profile_shapes,
    same_bits,
    smallest_cases,
    varied_shapes,
    within,
)
from attn_export.benchmarks.gpu_check_host import work as host_facts
from attn_export.benchmarks.gpu_check_layers import make_profiler, summarise
from attn_export.engines.inspector import read_layers
from attn_export.engines.profiles import Profile
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

PROFILES = (
    Profile(batch=(1, 8, 8), sequence=(1, 16, 16)),
    Profile(batch=(2, 4, 4), sequence=(17, 32, 32)),
)
INPUTS = (
    TensorSpec(name="input_ids", dtype="int32", shape=(BATCH, SEQUENCE), role="ids", limit=50),
    TensorSpec(name="attention_mask", dtype="int32", shape=(BATCH, SEQUENCE), role="mask"),
)


# The bench's gates


def test_the_gates_take_the_better_eager_fp16() -> None:
    rates: dict[tuple[str, str | None], float] = {
        ("eager-padded", None): 100.0,
        ("eager-half-padded", None): 300.0,
        ("eager-autocast-padded", None): 250.0,
        ("engine-padded", "fp16"): 600.0,
        ("engine-bucketed", "fp16"): 2700.0,
    }
    values, unmeasured = ratios(rates)
    assert values == {
        "padded_vs_eager_fp16": 2.0,
        "padded_vs_eager_fp32": 6.0,
        "bucketed_vs_padded": 4.5,
    }
    assert unmeasured == {}


def test_without_eager_on_the_gpu_its_gates_are_not_measured() -> None:
    rates: dict[tuple[str, str | None], float] = {
        ("engine-padded", "fp16"): 600.0,
        ("engine-bucketed", "fp16"): 2700.0,
    }
    values, unmeasured = ratios(rates)
    assert values == {"bucketed_vs_padded": 4.5}
    assert unmeasured == {
        "padded_vs_eager_fp16": "eager-half-padded did not run on the GPU",
        "padded_vs_eager_fp32": "eager-padded did not run on the GPU",
    }


# The time of layers

INSPECTED = """{"Layers": [
  {"Name": "mm", "LayerType": "gemm", "Inputs": [{"Name": "a", "Format/Datatype": "Half"}],
   "Outputs": [{"Name": "b", "Format/Datatype": "Half"}]},
  {"Name": "norm", "LayerType": "kgen", "Inputs": [{"Name": "b", "Format/Datatype": "Half"}],
   "Outputs": [{"Name": "c", "Format/Datatype": "Float"}]}
]}"""


def test_times_are_shared_out_by_the_inspectors_precisions() -> None:
    layers = read_layers(INSPECTED)
    assert layers is not None
    found = summarise({"mm [profile 1]": 3.0, "norm [profile 1]": 1.5, "copy": 0.5}, layers)
    assert found["total_ms"] == 5.0
    assert found["shares"] == pytest.approx({"fp16": 0.6, "fp32": 0.3, "unknown": 0.1})
    assert found["slowest"][0] == {"layer": "mm", "ms": 3.0, "precision": "fp16"}


def test_ten_layers_are_listed_slowest_first() -> None:
    found = summarise({f"layer {n}": float(n) for n in range(1, 13)}, [])
    assert [row["ms"] for row in found["slowest"]] == [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]


def test_a_profiler_is_one_of_tensorrts_and_adds_up(
    tensorrt_double: Callable[[str], Any], tensorrt_version: str
) -> None:
    trt = tensorrt_double(tensorrt_version)
    profiler = make_profiler(trt)
    assert isinstance(profiler, trt.IProfiler)
    profiler.report_layer_time("mm", 0.5)
    profiler.report_layer_time("mm", 0.25)
    assert profiler.times == {"mm": 0.75}


# Cases and comparisons


def test_the_smallest_shape_of_each_profile_also_comes_without_a_real_token() -> None:
    cases = smallest_cases(INPUTS, PROFILES)
    assert [(case.batch, case.length) for case in cases] == [(1, 1), (1, 1), (2, 17), (2, 17)]
    sums = [int(case.feeds["attention_mask"].sum()) for case in cases]
    assert sums == [1, 0, 34, 0]


def test_shapes_of_profiles_come_once_and_varied_ones_fit() -> None:
    assert profile_shapes(PROFILES) == [(1, 1), (8, 16), (2, 17), (4, 32)]
    for batch, length in varied_shapes(PROFILES, 200, np.random.default_rng(0)):
        assert any(profile.holds(batch, length) for profile in PROFILES)


def test_padded_rows_keep_at_least_one_real_token() -> None:
    feeds = padded_feeds(INPUTS, 64, 16, np.random.default_rng(0))
    lengths = feeds["attention_mask"].sum(axis=1)
    assert lengths.min() >= 1
    assert len(set(lengths.tolist())) > 4
    assert feeds["input_ids"].max() < 50


def test_bits_and_tolerances_are_two_questions() -> None:
    a = {"logits": np.array([[1.0, 2.0]], np.float32)}
    b = {"logits": np.array([[1.0, 2.001]], np.float32)}
    assert same_bits(a, {"logits": a["logits"].copy()})
    assert not same_bits(a, b)
    assert within(a, b, "fp16")
    assert not within(a, b, "fp32")
    assert not within({"logits": a["logits"] * np.nan}, b, "fp16")
    assert not within({"logits": a["logits"][:, :1]}, b, "fp16")
    assert largest_error(a, b) == pytest.approx(0.001, rel=1e-3)


# The host


def test_the_host_says_what_nvidia_smi_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tensorrt_double: Callable[[str], Any],
) -> None:
    tensorrt_double("10.16.1.11")
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$1" in *power.limit) echo "70.00 W";; *) exit 2;; esac\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    numbers = host_facts({"needs_gpu": True})["numbers"]
    assert numbers["nvidia_smi"] == {"power.limit": "70.00 W"}
    assert numbers["gpu"]["name"] == "Tesla T4"
    assert numbers["tensorrt"] == "10.16.1.11"
    assert numbers["packages"]["numpy"] == np.__version__
    again = host_facts({"needs_gpu": True})["numbers"]
    assert numbers["identity"] == again["identity"]
