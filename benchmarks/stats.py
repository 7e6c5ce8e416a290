"""Medians, percentiles, and intervals that hold whatever the noise looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
Verdict = Literal["faster", "slower", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median and the interval that holds the true one with a probability of ``confidence``."""

    median: float
    low: float
    high: float
    confidence: float = CONFIDENCE


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median of some rounds, and the narrowest pair of equally extreme rounds that holds it.

    Between the k-th smallest and the k-th largest of n rounds lies the true median unless fewer
    than k of them fall on one of its sides: with a probability of 1 - 2 P(Bin(n, 1/2) < k), for
    any distribution (W. R. Thompson 1936; H. A. David and H. N. Nagaraja, Order Statistics,
    section 7.1; T. Hoefler and R. Belli 2015 advise it for timings). The percentile bootstrap of
    a median promises 95 % and holds 87.5 % with 7 rounds and 75 % with 3.

    Rounds count as independent. Fewer than 6 of them cannot reach 95 %: the interval is then from
    the least to the largest, and its own ``confidence`` (0 of one round) says how little that is.

    Args:
        confidence: the least probability wanted; the result's is the one reached.
    """
    rounds = np.sort(np.asarray(values, dtype=float))
    rank = _rank(len(rounds), confidence)
    return Interval(
        median=float(np.median(rounds)),
        low=float(rounds[rank - 1]),
        high=float(rounds[-rank]),
        confidence=_coverage(len(rounds), rank),
    )


def ratio_interval(
    values: Sequence[float], baseline: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """How many times the baseline, round by round: each round gives one ratio.

    Candidates of one round ran one after the other, so what slows the machine for a while
    slows both and leaves their ratio.
    """
    ratios = np.asarray(values, dtype=float) / np.asarray(baseline, dtype=float)
    return median_interval(ratios.tolist(), confidence)


def verdict(ratio: Interval) -> Verdict:
    """What a ratio says: nothing where its interval holds 1, or promises less than 95 %."""
    if ratio.confidence < CONFIDENCE or ratio.low <= 1 <= ratio.high:
        return "inconclusive"
    return "faster" if ratio.low > 1 else "slower"


def coefficient_of_variation(values: Sequence[float]) -> float:
    """The sample's standard deviation as a share of its mean; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    return float(np.std(values, ddof=1) / np.mean(values))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99, interpolated between neighbours."""
    found = np.percentile(values, [50, 90, 99])
    return dict(zip(("p50", "p90", "p99"), found.tolist(), strict=True))


def _rank(count: int, confidence: float) -> int:
    """The largest k that reaches the confidence; 1 where none does."""
    ranks = range(2, (count + 1) // 2 + 1)
    return max([k for k in ranks if _coverage(count, k) >= confidence], default=1)


def _coverage(count: int, rank: int) -> float:
    return max(0.0, 1 - 2 * sum(math.comb(count, k) for k in range(rank)) * 0.5**count)
