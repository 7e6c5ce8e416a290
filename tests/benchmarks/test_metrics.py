"""Errors and verdicts, against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from attn_export.benchmarks.metrics import Comparer, compare

NAN, INF = math.nan, math.inf


def test_numbers_by_hand() -> None:
    result = compare(np.array([1.0, 2.5, 4.0]), np.array([1.0, 2.0, 5.0]), atol=0.1, rtol=0.1)
    assert result.verdict == "fail"
    assert result.values == 3
    assert result.max_abs == 1.0
    assert result.mean_abs == pytest.approx(0.5)  # (0 + 0.5 + 1) / 3
    assert result.exceeded == 2  # 0.5 > 0.1 + 0.2 and 1 > 0.1 + 0.5
    assert result.smallest_tolerance == pytest.approx(1 / 6)  # 0.5 / (1 + 2) and 1 / (1 + 5)
    # (1 + 5 + 20) / (sqrt(1 + 6.25 + 16) * sqrt(1 + 4 + 25))
    assert result.cosine == pytest.approx(26 / math.sqrt(23.25 * 30))
    assert result.labels is None


@pytest.mark.parametrize(
    ("atol", "rtol", "passed"),
    [
        pytest.param(0.5, 0.0, True, id="the error itself is allowed"),
        pytest.param(0.4999, 0.0, False, id="just below it is not"),
        pytest.param(0.0, 0.25, True, id="relative to the reference, 2"),
        pytest.param(0.0, 0.24, False, id="relative, just below"),
        pytest.param(0.25, 0.125, True, id="both add up"),
    ],
)
def test_an_error_of_a_half_at_a_reference_of_two(atol: float, rtol: float, passed: bool) -> None:
    assert compare(np.array([2.5]), np.array([2.0]), atol=atol, rtol=rtol).passed is passed


def test_smallest_tolerance_passes_and_a_little_less_does_not() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((40, 8))
    candidate = reference + rng.standard_normal((40, 8)) * 1e-3
    least = compare(candidate, reference, atol=0, rtol=0).smallest_tolerance
    assert compare(candidate, reference, atol=least * 1.0001, rtol=least * 1.0001).passed
    assert not compare(candidate, reference, atol=least * 0.9999, rtol=least * 0.9999).passed


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e5])
def test_p99_is_within_one_percent_of_the_sorted_errors(scale: float) -> None:
    errors = np.random.default_rng(1).random(5000) * scale
    result = compare(errors, np.zeros(5000), atol=0, rtol=0)
    assert result.p99_abs == pytest.approx(float(np.sort(errors)[4949]), rel=0.0101)
    assert result.p99_abs <= result.max_abs


def test_equal_arrays_have_no_error() -> None:
    values = np.array([[1.0, -2.0], [0.0, 4.0]])
    result = compare(values, values.copy(), atol=0, rtol=0)
    assert result.passed
    assert (result.max_abs, result.mean_abs, result.p99_abs) == (0, 0, 0)
    assert result.cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("candidate", "reference", "verdict"),
    [
        pytest.param([1.0, NAN], [1.0, 2.0], "nonfinite", id="nan"),
        pytest.param([1.0, INF], [1.0, 2.0], "nonfinite", id="infinity"),
        pytest.param([1.0, 2.0], [1.0, NAN], "reference nonfinite", id="reference nan"),
        pytest.param([1.0, NAN], [1.0, NAN], "reference nonfinite", id="both nan are not equal"),
        pytest.param([1.0, INF], [1.0, INF], "reference nonfinite", id="both infinite"),
        pytest.param([[1.0, 2.0]], [1.0, 2.0], "shape mismatch", id="shape"),
        pytest.param([], [], "nothing compared", id="empty"),
    ],
)
def test_what_cannot_be_compared_never_passes(
    candidate: list[float], reference: list[float], verdict: str
) -> None:
    result = compare(np.array(candidate), np.array(reference), atol=1e9, rtol=1e9)
    assert result.verdict == verdict
    assert not result.passed
    json.loads(json.dumps(result.to_json(), allow_nan=False))


def test_a_shape_mismatch_says_both_shapes_and_the_case() -> None:
    comparer = Comparer("logits", atol=1, rtol=1)
    comparer.add(np.zeros((2, 3)), np.zeros((2, 3)), case="first")
    comparer.add(np.zeros((2, 4)), np.zeros((2, 3)), case="second")
    assert comparer.result().detail == "shape [2, 4], expected [2, 3] in case second"


def test_errors_beside_a_nan_are_still_measured() -> None:
    result = compare(np.array([NAN, 3.0]), np.array([1.0, 2.0]), atol=0, rtol=0)
    assert (result.nonfinite, result.max_abs, result.mean_abs) == (1, 1.0, 1.0)


def test_cases_add_up_to_what_one_array_gives() -> None:
    rng = np.random.default_rng(2)
    reference = rng.standard_normal((30, 3)).astype(np.float32)
    candidate = reference + rng.standard_normal((30, 3)).astype(np.float32) * 0.2
    comparer = Comparer("output", atol=0.1, rtol=0.1)
    for start in range(0, 30, 7):
        rows = slice(start, start + 7)
        comparer.add(candidate[rows], reference[rows], case=f"from {start}")
    apart, whole = comparer.result(), compare(candidate, reference, atol=0.1, rtol=0.1)
    assert apart.max_abs == whole.max_abs
    assert apart.exceeded == whole.exceeded
    assert apart.labels == whole.labels
    assert apart.p99_abs == whole.p99_abs
    assert apart.mean_abs == pytest.approx(whole.mean_abs)
    assert apart.cosine == pytest.approx(whole.cosine)
    worst_row = int(np.abs(candidate - reference).max(1).argmax())
    assert apart.worst_case == f"from {worst_row // 7 * 7}"


def test_label_agreement_by_hand() -> None:
    reference = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]], dtype=np.float32)
    candidate = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0], [5.0, 4.0]], dtype=np.float32)
    assert compare(candidate, reference, atol=0, rtol=0).labels == 0.75


@pytest.mark.parametrize(
    "shape", [(4, 1), (4, 1001), (2, 3, 4), (6,)], ids=["one column", "1001", "3-D", "1-D"]
)
def test_labels_only_where_the_columns_are_classes(shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, dtype=np.float32)
    assert compare(values, values, atol=0, rtol=0).labels is None


def test_cosine_of_opposite_and_of_zero_vectors() -> None:
    one = np.array([1.0, 1.0])
    assert compare(-one, one, atol=9, rtol=0).cosine == pytest.approx(-1)
    assert compare(one * 0, one, atol=9, rtol=0).cosine is None


def test_memory_does_not_grow_with_the_cases() -> None:
    comparer = Comparer("output", atol=0, rtol=0)
    values = np.random.default_rng(0).random(10_000)
    comparer.add(values, values * 0)

    def held() -> int:
        arrays = [v for v in vars(comparer).values() if isinstance(v, np.ndarray)]
        return sum(array.nbytes for array in arrays)

    before = held()
    for _ in range(20):
        comparer.add(values, values * 0)
    assert held() == before
    assert comparer.result().values == 210_000


@pytest.mark.parametrize(("least", "verdict"), [(0.95, "pass"), (0.97, "fail")])
def test_a_cosine_may_judge_all_values_together(least: float, verdict: str) -> None:
    comparer = Comparer("y", atol=0.0, rtol=0.0, least_cosine=least)
    comparer.add(np.array([4.0, 3.0]), np.array([3.0, 4.0]))  # cosine 24/25
    assert comparer.result().verdict == verdict
    comparer.add(np.array([np.nan]), np.array([1.0]))
    assert comparer.result().verdict == "nonfinite"
