"""Verdicts on a real bundle: right, wrong, altered."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from attn_export.benchmarks.judge import TWIN
from attn_export.benchmarks.parity import run_parity, summary
from attn_export.benchmarks.tolerances import Tolerances
from attn_export.bundle import Bundle
from attn_export.errors import BundleError, UsageError
from attn_export.manifest import FileRecord


def test_every_engine_is_judged_unless_one_is_named(bundle: Bundle) -> None:
    everyone = run_parity(bundle, reference="golden")
    assert [entry.engine for entry in everyone.engines] == ["onnxruntime-fp32", "onnxruntime-fp16"]
    one = run_parity(bundle, engines=["onnxruntime-fp16"], reference="golden")
    assert [entry.engine for entry in one.engines] == ["onnxruntime-fp16"]
    assert everyone.passed
    assert one.passed


def test_a_pass_against_eager_names_its_bytes_and_numbers(bundle: Bundle) -> None:
    report = run_parity(bundle)
    assert (report.passed, report.reference) == (True, "eager")
    for name, precision in (("onnxruntime-fp32", "fp32"), ("onnxruntime-fp16", "fp16")):
        kept = summary(report, name)
        graph = bundle.graph(precision)
        assert kept["passed"] is True
        assert kept["sha256"] == graph.files[0].sha256
        assert kept["twin_sha256"] == (graph.twin.sha256 if graph.twin else None)
        assert 0 < kept["max_abs"] < 1e-4
        assert kept["rows"] == report.rows > 50
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["passed"] is True


def test_fp16_is_measured_against_eager_fp16(bundle: Bundle) -> None:
    report = run_parity(bundle)
    assert report.noise_floor
    assert report.engines[0].judge.noise_ratio is None
    ratio = report.engines[1].judge.noise_ratio
    assert ratio
    assert 0 < ratio["logits"] < 1  # the CPU's FP16 graph is FP32 here


@pytest.mark.parametrize(
    ("engine", "reference", "reason"),
    [
        ("onnxruntime-fp32", "eager", "no engine is FP16"),
        ("onnxruntime-fp16", "golden", "it needs eager PyTorch"),
    ],
)
def test_why_there_is_no_noise_floor(
    bundle: Bundle, engine: str, reference: str, reason: str
) -> None:
    report = run_parity(bundle, engines=[engine], reference=reference)  # type: ignore[arg-type]
    assert (report.noise_floor, report.noise_reason) == (None, reason)


@pytest.mark.parametrize(
    ("amount", "verdict"), [(0.01, "fail"), (float("nan"), "nonfinite"), (2e-5, "pass")]
)
def test_a_wrong_graph_fails_by_as_much_as_it_is_wrong(
    bundle: Bundle,
    edit_graph: Callable[[str, float], FileRecord],
    amount: float,
    verdict: str,
) -> None:
    bundle.graph("fp32").files[0] = edit_graph("model.onnx", amount)
    report = run_parity(bundle, engines=["onnxruntime-fp32"])
    result = report.engines[0].judge.outputs[0]
    assert result.verdict == verdict
    assert report.passed is (verdict == "pass")
    assert summary(report, "onnxruntime-fp32")["passed"] is report.passed
    if verdict != "nonfinite":
        assert result.max_abs == pytest.approx(amount, abs=2e-6)


def test_what_only_the_twin_shows_fails_the_engine(
    bundle: Bundle, edit_graph: Callable[[str, float], FileRecord]
) -> None:
    bundle.graph("fp16").twin = edit_graph("model.onnx", float("nan"))
    report = run_parity(bundle, engines=["onnxruntime-fp16"], reference="golden")
    entry = report.engines[0]
    assert [run.passed for run in entry.runs] == [True, False]
    assert not entry.passed
    assert entry.judge.what == TWIN


def test_a_passing_twin_does_not_hide_a_failing_engine(
    bundle: Bundle, edit_graph: Callable[[str, float], FileRecord]
) -> None:
    bundle.graph("fp16").files[0] = edit_graph("model.fp16.onnx", 0.1)
    report = run_parity(bundle, engines=["onnxruntime-fp16"], reference="golden")
    assert [run.passed for run in report.engines[0].runs] == [False, True]
    assert not report.passed


def test_a_user_may_tighten_and_loosen_one_output(bundle: Bundle) -> None:
    tight = Tolerances.parse(["logits:1e-9"], ["logits:1e-9"])
    report = run_parity(bundle, reference="golden", tolerances=tight)
    assert not report.passed
    assert all(entry.judge.outputs[0].verdict == "fail" for entry in report.engines)


def test_refusals(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown engine 'trt'; the bundle has: onnxruntime-fp32"):
        run_parity(bundle, engines=["trt"])
    with pytest.raises(UsageError, match="the model has: logits"):
        run_parity(bundle, tolerances=Tolerances(atol={"logit": 1.0}))
    with pytest.raises(UsageError, match="too loose for fp16"):
        run_parity(bundle, tolerances=Tolerances(atol={"": 0.5}))
    report = run_parity(bundle, engines=["onnxruntime-fp32"], reference="golden")
    with pytest.raises(UsageError, match="no engine 'onnxruntime-fp16'"):
        summary(report, "onnxruntime-fp16")
    bundle.manifest.engines.clear()
    with pytest.raises(BundleError, match="has no engine yet"):
        run_parity(bundle)
