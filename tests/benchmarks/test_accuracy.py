"""How near INT8 stays to FP32: numbers by hand, and the gate on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attn_export.benchmarks.accuracy import Accuracy, compare_output, is_near, require_accuracy
from attn_export.errors import GateFailed


def measure(expected: Any, got: Any) -> Accuracy:
    return compare_output("y", expected, got)


def test_numbers_by_hand() -> None:
    found = measure(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[4.0, 3.0], [1.0, 0.0]]))
    assert found.labels == 0.5
    assert found.cosine == pytest.approx((24 / 25 + 1) / 2)
    assert found.least_cosine == pytest.approx(24 / 25)
    assert found.sqnr_db == pytest.approx(10 * np.log10(26 / 2))


def test_equal_outputs_have_no_noise() -> None:
    found = measure(np.ones((2, 3)), np.ones((2, 3)))
    assert (found.labels, found.sqnr_db) == (1.0, None)
    assert found.cosine == pytest.approx(1.0)


def test_outputs_of_different_lengths_have_no_labels() -> None:
    rows = [np.ones((3, 2)), np.ones((5, 2))]
    found = measure(rows, [rows[0], -rows[1]])
    assert found.labels is None
    assert found.cosine == pytest.approx(0.0)
    assert found.least_cosine == pytest.approx(-1.0)


def test_what_is_not_finite_is_not_near() -> None:
    got = np.array([[np.nan, 1.0], [1.0, 0.0]])
    assert measure(np.array([[3.0, 4.0], [1.0, 0.0]]), got).least_cosine == 0.0


def result(labels: float | None, cosine: float) -> Accuracy:
    return Accuracy(
        output="y", requests=10, labels=labels, cosine=cosine, least_cosine=0.0, sqnr_db=1.0
    )


def check(results: list[Accuracy], asked: float | None) -> None:
    near = is_near(results, 0.99, asked)
    try:
        require_accuracy(results, what="INT8", least_labels=0.99, least_cosine=asked)
    except GateFailed:
        assert not near
        raise
    assert near


@pytest.mark.parametrize(
    ("labels", "cosine", "asked", "passes"),
    [
        (0.99, 0.5, None, True),
        (0.98, 1.0, None, False),
        (None, 0.995, None, True),
        (None, 0.98, None, False),
        (0.5, 0.96, 0.95, True),
        (1.0, 0.94, 0.95, False),
    ],
)
def test_labels_are_the_gate_unless_a_cosine_was_asked_for(
    labels: float | None, cosine: float, asked: float | None, passes: bool
) -> None:
    if passes:
        check([result(labels, cosine)], asked)
        return
    with pytest.raises(GateFailed, match=r"INT8 is not near enough to FP32.* of y is 0"):
        check([result(labels, cosine)], asked)
