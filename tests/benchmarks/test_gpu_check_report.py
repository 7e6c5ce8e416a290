"""What the GPU check's page says, and what it may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.gpu_check_gates import GATES
from attn_export.benchmarks.gpu_check_outcome import Outcome
from attn_export.benchmarks.gpu_check_report import (
    in_order,
    markdown,
    results_folder,
    write_results,
)
from attn_export.benchmarks.gpu_check_tasks import Plan

PLAN = Plan(torch_python="python", engine_python="python", work=Path("work"))


def outcome(step: str, name: str, **rest: Any) -> Outcome:
    return Outcome(step=step, name=name, command=[], seconds=1.0, **rest)


def host(gpu: str = "Tesla T4") -> Outcome:
    numbers = {
        "python": "3.11.7",
        "packages": {"numpy": "2.4.6"},
        "platform": "Linux",
        "cpus": 4,
        "gpu": {"name": gpu, "compute_capability": "7.5", "memory_mib": 15109},
        "tensorrt": "10.16.1.11",
        "driver_cuda": "12.8",
        "nvidia_smi": {"clocks.sm": "585 MHz"},
    }
    return outcome("host", "host engine", numbers=numbers)


def page(*outcomes: Outcome) -> str:
    return "\n".join(markdown(PLAN, outcomes))


def test_gates_are_shown_with_value_bound_and_verdict() -> None:
    text = page(
        host(),
        outcome(
            "runtime",
            "overhead mqa-fold",
            gates=["overhead_us"],
            values={"overhead_us": 61.5},
        ),
    )
    assert "| overhead mqa-fold | overhead_us | 61.5 | at most 50 us | **fail** |" in text
    assert "| nvidia-smi clocks.sm | 585 MHz |" in text
    assert "**Not all gates hold**: 1 tasks passed, 1 failed, 0 did not run." in text


@pytest.mark.parametrize(
    ("gate", "passes", "fails"),
    [
        ("fp16_gemm_share", 0.9, 0.89),
        ("cache_speedup", 3.0, 2.9),
        ("parity_failures", 0, 1),
        ("profile_memory_ratio", 1.3, 1.31),
        ("overhead_us", 50, 51),
        ("padded_vs_eager_fp16", 1.5, 1.4),
        ("padded_vs_eager_fp32", 5.0, 4.9),
        ("bucketed_vs_padded", 4.0, 3.9),
    ],
)
def test_a_bound_itself_passes(gate: str, passes: float, fails: float) -> None:
    assert GATES[gate].holds(passes)
    assert not GATES[gate].holds(fails)
    assert not GATES[gate].holds(float("nan"))


def test_another_gpu_than_a_t4_is_named() -> None:
    assert "Measured on NVIDIA L4, not on a T4" in page(host("NVIDIA L4"))
    assert "not on a T4" not in page(host("Tesla T4"))


def test_what_did_not_run_has_no_section_but_a_reason() -> None:
    text = page(
        host(),
        outcome(
            "opinion", "opinion mqa-fold", gates=["opinion_mismatches"], skipped="no Polygraphy"
        ),
        outcome("layers", "layers mqa-fold", error="HostError: CUDA failed\nline two"),
        outcome(
            "compile",
            "compile mqa-fold",
            gates=["fp16_gemm_share"],
            unmeasured={"fp16_gemm_share": "one opaque layer"},
        ),
    )
    for step in ("opinion", "layers", "compile", "bench"):
        assert f"## {step}" not in text
    assert "- opinion mqa-fold: no Polygraphy" in text
    assert "- layers mqa-fold: HostError: CUDA failed\n\n      line two" in text
    assert "- compile mqa-fold, fp16_gemm_share: one opaque layer" in text
    assert "- the step bench was not asked for" in text


def test_only_optional_gates_may_be_missing() -> None:
    passed = outcome("runtime", "a", gates=["overhead_us"], values={"overhead_us": 1.0})
    hidden = outcome("compile", "b", gates=["fp16_gemm_share"])
    absent = outcome("opinion", "c", gates=["opinion_mismatches"], skipped="no Polygraphy")
    assert in_order([host(), passed, hidden, absent])
    assert not in_order([])
    assert not in_order([outcome("bench", "d", gates=["bucketed_vs_padded"])])
    assert not in_order([outcome("bench", "d", gates=["bucketed_vs_padded"], skipped="why")])
    assert not in_order([outcome("layers", "e", skipped="it needs 'compile'")])
    assert not in_order([outcome("layers", "e", error="it broke")])


def test_the_folder_says_gpu_tensorrt_and_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "2026-01-31")
    folder = results_folder([host("NVIDIA L4")], Path("results"))
    assert folder == Path("results/nvidia-l4-10.16.1.11-2026-01-31")
    assert results_folder([], Path("results")) == Path("results/no-gpu-2026-01-31")


def test_both_files_are_written(tmp_path: Path) -> None:
    write_results(tmp_path / "new", PLAN, [host()])
    data = json.loads((tmp_path / "new" / "report.json").read_text())
    assert data["tasks"][0]["state"] == "pass"
    assert data["gates"]["overhead_us"]["bound"] == "at most 50 us"
    assert (tmp_path / "new" / "report.md").read_text().startswith("# GPU check\n")


def test_layers_and_padded_times_have_tables() -> None:
    engine = {
        "engine": "tensorrt-fp16",
        "batch": 64,
        "length": 128,
        "runs": 50,
        "total_ms": 2.5,
        "shares": {"fp16": 0.75, "unknown": 0.25},
        "slowest": [{"layer": "gemm|1", "ms": 1.5, "precision": "fp16"}],
    }
    row = {"precision": "fp16", "length": 128, "batch": 64, "p50_ms": 20.0, "p99_ms": 21.0}
    row |= {"device_ms": None, "samples_per_s": 3200.0}
    text = page(
        host(),
        outcome("layers", "layers mqa-fold", numbers={"engines": [engine]}),
        outcome("padded", "padded mqa-fold", numbers={"rows": [row]}),
    )
    assert "batch 64, 128 tokens, mean of 50 runs: 2.500 ms in layers" in text
    assert "(fp16 75.0%, unknown 25.0%)" in text
    assert "| gemm\\|1 | 1.5 | fp16 |" in text
    assert "| padded mqa-fold | fp16 | 128 | 64 | 20 | 21 | - | 3,200 |" in text
