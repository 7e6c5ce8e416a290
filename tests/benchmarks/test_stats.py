"""Medians, percentiles and intervals: by hand, by enumeration and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from attn_export.benchmarks.stats import (
    Interval,
    coefficient_of_variation,
    median_interval,
    percentiles,
    ratio_interval,
    verdict,
)


def test_percentiles_by_hand() -> None:
    found = percentiles([float(n) for n in range(101)])
    assert found == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([1.0, 2.0])["p50"] == 1.5


def test_the_coefficient_of_variation_by_hand() -> None:
    assert coefficient_of_variation([8.0, 10.0, 12.0]) == pytest.approx(0.2)
    assert coefficient_of_variation([3.0]) == 0


@pytest.mark.parametrize(
    ("rounds", "low", "high", "confidence"),
    [
        (1, 1, 1, 0.0),
        (3, 1, 3, 0.75),
        (5, 1, 5, 1 - 2 / 32),
        (6, 1, 6, 1 - 2 / 64),
        (7, 1, 7, 1 - 2 / 128),
        (8, 1, 8, 1 - 2 / 256),
        (9, 2, 8, 1 - 2 * (1 + 9) / 512),
        (15, 4, 12, 1 - 2 * (1 + 15 + 105 + 455) / 2**15),
    ],
)
def test_the_ends_are_the_rounds_that_the_binomial_says(
    rounds: int, low: int, high: int, confidence: float
) -> None:
    found = median_interval([float(n) for n in range(rounds, 0, -1)])
    assert (found.low, found.median, found.high) == (low, (rounds + 1) / 2, high)
    assert found.confidence == pytest.approx(confidence)


def test_more_confidence_takes_a_wider_interval() -> None:
    found = median_interval([float(n) for n in range(1, 22)], 1 - 0.05 / 20)
    assert (found.low, found.high) == (4, 18)
    assert 1 - 0.05 / 20 <= found.confidence < 0.999


def test_the_coverage_is_that_of_all_ways_to_fall_beside_the_median() -> None:
    # A round is above (1) or below (-1) the true median, 0, with equal chances.
    sides = itertools.product((-1.0, 1.0), repeat=9)
    held = [found.low <= 0 <= found.high for found in map(median_interval, sides)]
    assert np.mean(held) == pytest.approx(median_interval([float(n) for n in range(9)]).confidence)


def noise(kind: str, rounds: int, runs: int) -> npt.NDArray[np.float64]:
    """The logarithms of ratios whose median is 0: the noise of two turns."""
    rng = np.random.default_rng(5)

    def turn() -> npt.NDArray[np.float64]:
        shape = (runs, rounds)
        calm = rng.normal(0, 0.01, shape)
        if kind == "calm":
            return calm
        return calm - (rng.random(shape) < 0.15) * rng.uniform(0.1, 0.5, shape)

    return turn() - turn()


@pytest.mark.parametrize("kind", ["calm", "busy"])
@pytest.mark.parametrize("rounds", [6, 7, 9, 15])
def test_the_interval_holds_the_median_as_often_as_it_says(kind: str, rounds: int) -> None:
    found = [median_interval(np.exp(row)) for row in noise(kind, rounds, 4000)]
    held = np.mean([interval.low <= 1 <= interval.high for interval in found])
    assert held == pytest.approx(found[0].confidence, abs=0.012)
    assert found[0].confidence >= 0.95


@pytest.mark.parametrize("kind", ["calm", "busy"])
def test_a_slowdown_of_five_percent_is_seen(kind: str) -> None:
    found = [median_interval(0.95 * np.exp(row)) for row in noise(kind, 9, 500)]
    verdicts = [verdict(interval) for interval in found]
    assert verdicts.count("faster") == 0
    assert verdicts.count("slower") > (495 if kind == "calm" else 300)


@pytest.mark.parametrize(
    ("low", "high", "confidence", "expected"),
    [
        (1.01, 1.2, 0.96, "faster"),
        (0.8, 0.99, 0.96, "slower"),
        (0.99, 1.01, 0.96, "inconclusive"),
        (1.0, 1.2, 0.96, "inconclusive"),
        (13.0, 15.0, 0.75, "inconclusive"),
    ],
)
def test_verdicts(low: float, high: float, confidence: float, expected: str) -> None:
    found = Interval(median=(low + high) / 2, low=low, high=high, confidence=confidence)
    assert verdict(found) == expected


def test_ratios_are_taken_round_by_round() -> None:
    # The machine was twice as slow in the second round; the ratio was 2 each time.
    found = ratio_interval([10.0, 5.0, 10.0], [5.0, 2.5, 5.0])
    assert (found.low, found.median, found.high) == (2, 2, 2)


def test_uneven_rounds_of_two_candidates_are_an_error() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        ratio_interval([1.0, 2.0, 3.0], [1.0, 2.0])
