"""Medians, percentiles and intervals, by hand and against the exact bootstrap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from attn_export.benchmarks.stats import median_interval, percentiles, ratio_interval


def test_percentiles_by_hand() -> None:
    found = percentiles([float(n) for n in range(101)])
    assert found == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([1.0, 2.0])["p50"] == 1.5


def test_one_round_has_an_interval_of_no_width() -> None:
    found = median_interval([3.0])
    assert (found.low, found.median, found.high) == (3, 3, 3)


def test_the_interval_is_that_of_all_resamples() -> None:
    rounds = [1.0, 2.0, 4.0, 8.0, 16.0]
    exact = [float(np.median(drawn)) for drawn in itertools.product(rounds, repeat=5)]
    low, high = np.percentile(exact, [2.5, 97.5])
    found = median_interval(rounds)
    assert (found.low, found.median, found.high) == (low, 4.0, high)


def test_ratios_are_taken_round_by_round() -> None:
    # The machine was twice as slow in the second round; the ratio was 2 each time.
    found = ratio_interval([10.0, 5.0, 10.0], [5.0, 2.5, 5.0])
    assert (found.low, found.median, found.high) == (2, 2, 2)


def test_the_same_rounds_give_the_same_interval() -> None:
    rounds = np.random.default_rng(0).random(7).tolist()
    assert median_interval(rounds) == median_interval(rounds)


def test_uneven_rounds_of_two_candidates_are_an_error() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        ratio_interval([1.0, 2.0, 3.0], [1.0, 2.0])
