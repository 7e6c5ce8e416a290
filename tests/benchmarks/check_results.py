"""A check with every kind of verdict, for the tests of its forms."""

from __future__ import annotations

from attn_export.benchmarks.check_report import (
    CheckReport,
    GateResult,
    failed_result,
    skipped_result,
)
from attn_export.benchmarks.stats import Interval
from attn_export.errors import HostError

PASSED = GateResult(gate="parity", engine="onnxruntime-fp32", verdict="pass", text="max abs 1e-6")
SLOWER = GateResult(
    gate="regression",
    engine="onnxruntime-fp32",
    verdict="fail",
    text="0.870 [0.850, 0.890] times the baseline",
    ratio=Interval(median=0.87, low=0.85, high=0.89),
    limit=0.95,
    ratios=[0.85, 0.87, 0.89],
    noise=0.02,
    samples_per_s={"new": 87.0, "old": 100.0},
    seconds=12.5,
)
UNCLEAR = GateResult(
    gate="speedup",
    engine="onnxruntime-fp32",
    verdict="inconclusive",
    text="1.2 [0.9, 1.5] | <b>",
    seconds=1.5,
)
CRASHED = failed_result("speedup", "onnxruntime-int8", HostError("ended by SIGKILL\n\x1b[31mred"))
SKIPPED = skipped_result("speedup", "tensorrt-fp16", "no GPU")


def check_report(*results: GateResult) -> CheckReport:
    return CheckReport(
        bundle="new-bundle",
        model="mqa",
        baseline="the build old-bundle",
        results=list(results),
        settings={"batch size": 64},
        load_average=(0.5, 1.0),
        notes=["a note"],
    )
