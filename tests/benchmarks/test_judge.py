"""One engine over the matrix: what is held, what is only reported, and who judges FP16."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest

from attn_export.benchmarks.cases import Array, Case, load_reference
from attn_export.benchmarks.judge import ENGINE, TWIN, Judge, open_judges
from attn_export.benchmarks.tolerances import Tolerances
from attn_export.bundle import Bundle
from attn_export.errors import BundleError, UsageError
from attn_export.manifest import FileRecord


def judges_of(bundle: Bundle, engine: str, stack: ExitStack) -> list[Judge]:
    return open_judges(bundle, bundle.manifest.engines[engine], Tolerances(), stack)


def masked_case(bundle: Bundle) -> tuple[Case, Array]:
    pairs = load_reference(bundle.directory / "reference.npz").pairs
    case, outputs = next(pair for pair in pairs if pair[0].name == "b4-s8-masked_row")
    return case, outputs["logits"]


@pytest.mark.parametrize(
    ("engine", "runs"),
    [("onnxruntime-fp32", [ENGINE]), ("onnxruntime-fp16", [ENGINE, TWIN])],
)
def test_an_fp16_engine_on_a_cpu_has_two_judges(
    bundle: Bundle, engine: str, runs: list[str]
) -> None:
    with ExitStack() as stack:
        assert [judge.what for judge in judges_of(bundle, engine, stack)] == runs


def test_the_sessions_close_with_the_stack(bundle: Bundle) -> None:
    with ExitStack() as stack:
        judge = judges_of(bundle, "onnxruntime-fp32", stack)[0]
        case, logits = masked_case(bundle)
        judge.add(case, {"logits": logits}, noise=False)
    with pytest.raises(UsageError, match="closed"):
        judge.session.run(case.feeds)


@pytest.mark.parametrize(
    ("builtin", "change", "passed", "reported"),
    [
        pytest.param(True, 0.0, True, 0, id="built-in, equal"),
        pytest.param(True, 1.0, False, 0, id="built-in, different"),
        pytest.param(False, 1.0, True, 1, id="a user's, different"),
        pytest.param(False, math.nan, False, 1, id="a user's, not finite"),
    ],
)
def test_a_fully_masked_row(
    bundle: Bundle, builtin: bool, change: float, passed: bool, reported: int
) -> None:
    bundle.manifest.model["builtin"] = builtin
    case, logits = masked_case(bundle)
    logits[1] += change
    with ExitStack() as stack:
        judge = judges_of(bundle, "onnxruntime-fp32", stack)[0]
        judge.add(case, {"logits": logits}, noise=False)
    run = judge.result(None)
    assert run.passed is passed
    assert len(run.masked_rows) == reported
    assert run.outputs[0].values + sum(r.values for r in run.masked_rows) == logits.size


def test_other_rows_of_a_users_model_are_held(bundle: Bundle) -> None:
    bundle.manifest.model["builtin"] = False
    case, logits = masked_case(bundle)
    logits[2] += 1
    with ExitStack() as stack:
        judge = judges_of(bundle, "onnxruntime-fp32", stack)[0]
        judge.add(case, {"logits": logits}, noise=False)
    assert not judge.result(None).passed


def test_the_noise_ratio_counts_the_marked_cases_alone(bundle: Bundle) -> None:
    case, logits = masked_case(bundle)
    with ExitStack() as stack:
        judge = judges_of(bundle, "onnxruntime-fp16", stack)[0]
        judge.add(case, {"logits": logits + np.float32(0.004)}, noise=True)
        judge.add(case, {"logits": logits + np.float32(0.1)}, noise=False)
    ratio = judge.result({"logits": 0.002}).noise_ratio
    assert ratio
    assert ratio["logits"] == pytest.approx(2, rel=1e-2)


def test_an_altered_graph_is_not_loaded(
    bundle: Bundle, edit_graph: Callable[[str, float], FileRecord]
) -> None:
    edit_graph("model.onnx", 1.0)
    with ExitStack() as stack, pytest.raises(BundleError, match="altered"):
        judges_of(bundle, "onnxruntime-fp32", stack)


def test_a_missing_twin_is_an_error(bundle: Bundle) -> None:
    bundle.graph("fp16").twin = None
    with ExitStack() as stack, pytest.raises(BundleError, match="no rounding twin"):
        judges_of(bundle, "onnxruntime-fp16", stack)


def test_an_altered_twin_is_an_error(bundle: Bundle) -> None:
    twin = bundle.graph("fp16").twin
    assert twin
    bundle.graph("fp16").twin = FileRecord(file=twin.file, sha256="0" * 64, bytes=twin.bytes)
    with ExitStack() as stack, pytest.raises(BundleError, match="altered"):
        judges_of(bundle, "onnxruntime-fp16", stack)
