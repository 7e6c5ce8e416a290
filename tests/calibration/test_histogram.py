"""Histograms merge into the very histogram of all values together."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from attn_export.calibration.histogram import HALF_BINS, LEAST_EXPONENT, Histogram


def counted(*parts: Any) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


def assert_same(one: Histogram, other: Histogram) -> None:
    assert (one.exponent, one.low, one.high) == (other.exponent, other.low, other.high)
    np.testing.assert_array_equal(one.counts, other.counts)


def test_a_hand_worked_histogram() -> None:
    """The largest magnitude is 1.5, so the range is [-2, 2) and a bin is 2 / 4096 = 2**-11."""
    histogram = counted([[0.0, 1.5], [-0.25, -0.25]])
    assert (histogram.low, histogram.high, histogram.largest) == (-0.25, 1.5, 1.5)
    assert (histogram.exponent, histogram.width) == (1, 2.0**-11)
    filled = {int(i) - HALF_BINS: int(histogram.counts[i]) for i in histogram.counts.nonzero()[0]}
    assert filled == {-513: 2, 0: 1, 3072: 1}


@pytest.mark.parametrize(("largest", "exponent"), [(0.99, 0), (1.0, 1), (-1.0, 1), (1.01, 1)])
def test_the_range_is_the_power_of_two_above_the_largest_magnitude(
    largest: float, exponent: int
) -> None:
    assert counted([largest]).exponent == exponent


def test_it_counts_as_numpy_does() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    histogram = counted(values)
    span = 2.0**histogram.exponent
    above, below = values[values >= 0], -values[values < 0]
    for counts, magnitudes in (
        (histogram.counts[HALF_BINS:], above),
        (histogram.counts[HALF_BINS - 1 :: -1], below),
    ):
        expected, _ = np.histogram(magnitudes.astype(np.float64), HALF_BINS, (0, span))
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("scales", [(1, 1, 1), (0.01, 3, 900), (900, 3, 0.01), (1e-25, 1, 1e36)])
def test_parts_make_the_histogram_of_the_whole(scales: tuple[float, ...]) -> None:
    rng = np.random.default_rng(1)
    parts = [(rng.standard_normal((7, 300)) * scale).astype(np.float32) for scale in scales]
    whole = counted(np.concatenate(parts))
    assert_same(counted(*parts), whole)
    first, second, third = (counted(part) for part in parts)
    assert_same(first.merged(second).merged(third), whole)
    assert_same(third.merged(first.merged(second)), whole)
    assert whole.counts.sum() == 3 * 2100


def test_merging_leaves_both_as_they_were() -> None:
    one, other = counted([1.0]), counted([5.0])
    one.merged(other)
    assert_same(one, counted([1.0]))
    assert_same(other, counted([5.0]))


def test_an_empty_one_adds_nothing() -> None:
    one = counted([-3.0, 1.0])
    assert_same(one.merged(Histogram()), one)
    assert_same(Histogram().merged(one), one)
    one.add(np.empty((0, 4), np.float32))
    assert_same(one, counted([-3.0, 1.0]))


def test_more_values_than_are_counted_at_a_time() -> None:
    values = np.linspace(-1, 1, 600_001, dtype=np.float32)
    assert counted(values).counts.sum() == values.size


def test_zeros_and_the_smallest_and_largest_numbers() -> None:
    zeros = counted(np.zeros(5))
    assert (zeros.exponent, zeros.largest, zeros.counts[HALF_BINS]) == (LEAST_EXPONENT, 0.0, 5)
    assert counted([1e-44]).counts[HALF_BINS] == 1
    largest = float(np.finfo(np.float32).max)
    assert counted([-largest, largest]).counts[[0, -1]].tolist() == [1, 1]


def test_magnitudes_fold_the_signs() -> None:
    """Bins of 2**-12: 0.75 is the edge where bin 3072 begins."""
    magnitudes = counted([0.75, -0.75, -0.7499, 0.0, -0.0]).magnitudes()
    assert {int(i): int(magnitudes[i]) for i in magnitudes.nonzero()[0]} == {0: 2, 3071: 1, 3072: 2}


def test_json_keeps_every_count() -> None:
    histogram = counted(np.random.default_rng(2).standard_normal(1000), [0.1])
    assert_same(Histogram.from_json(json.loads(json.dumps(histogram.to_json()))), histogram)


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": []},
        {"counts": [0, 0]},
        {"counts": [1, -1]},
        {"first_bin": -1},
        {"first_bin": 2 * HALF_BINS},
        {"low": 2.0},
        {"low": float("nan")},
        {"exponent": 3},
    ],
)
def test_broken_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="histogram"):
        Histogram.from_json({**counted([0.25, 1.0]).to_json(), **wrong})
