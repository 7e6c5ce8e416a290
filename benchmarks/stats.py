"""Medians, percentiles and bootstrap intervals of a few rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 5000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The median of some rounds; the interval is the percentile bootstrap over rounds.

    Rounds are drawn with replacement 5,000 times. One round gives an interval of no width.
    """
    rounds = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(rounds), (RESAMPLES, len(rounds)))
    low, high = np.percentile(np.median(rounds[drawn], axis=1), [2.5, 97.5])
    return Interval(median=float(np.median(rounds)), low=float(low), high=float(high))


def ratio_interval(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Interval:
    """How many times the baseline, round by round: each round gives one ratio.

    Candidates of one round ran one after the other, so what slows the machine for a while
    slows both and leaves their ratio.
    """
    ratios = np.asarray(values, dtype=float) / np.asarray(baseline, dtype=float)
    return median_interval(ratios.tolist(), seed)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99, interpolated between neighbours."""
    found = np.percentile(values, [50, 90, 99])
    return dict(zip(("p50", "p90", "p99"), found.tolist(), strict=True))
