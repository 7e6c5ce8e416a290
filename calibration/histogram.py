"""Counts of a tensor's values that can be added up in any order and in any number of runs.

The range is the power of two above the largest magnitude, cut into a power of two of equal bins.
Both make a value's bin exact in floating point, and a bin of a wider range is the union of bins of
a narrower one: two histograms merge into the very histogram of both data together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

# On each side of zero. A step of INT8 over the whole range is 16 to 32 bins wide.
HALF_BINS = 4096
# The narrowest range is 2**-100, so that the factor from values to bins is a normal FP32 number.
LEAST_EXPONENT = -100
# Values that are counted at a time: their temporaries stay in a core's cache.
_AT_ONCE = 1 << 18


@dataclass
class Histogram:
    """Signed values in ``2 * HALF_BINS`` bins over ``(-2**exponent, 2**exponent)``.

    Attributes:
        counts: int64 [2 * HALF_BINS]. With ``n = floor(|x| / width)``, x is in bin
            ``HALF_BINS + n``, or ``HALF_BINS - 1 - n`` where it is below 0.
        low: the smallest value seen; infinite before the first.
        high: the largest.
    """

    exponent: int = LEAST_EXPONENT
    low: float = math.inf
    high: float = -math.inf
    counts: Counts = field(default_factory=lambda: np.zeros(2 * HALF_BINS, np.int64))

    @property
    def width(self) -> float:
        """Of one bin, in the tensor's unit."""
        return math.ldexp(1.0, self.exponent) / HALF_BINS

    @property
    def largest(self) -> float:
        """The largest magnitude seen."""
        return max(abs(self.low), abs(self.high))

    def add(self, values: Array) -> None:
        """Count the values of an array of any shape; they must be finite FP32."""
        if values.size == 0:
            return
        self._cover(float(values.min()), float(values.max()))
        factor = np.float32(math.ldexp(HALF_BINS, -self.exponent))
        flat = values.reshape(-1)
        for start in range(0, flat.size, _AT_ONCE):
            part = flat[start : start + _AT_ONCE]
            bins = (part * factor).astype(np.intp) + (HALF_BINS - (part < 0))
            self.counts += np.bincount(bins, minlength=2 * HALF_BINS)

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of both data; the two stay as they are."""
        result = Histogram(self.exponent, self.low, self.high, self.counts.copy())
        if other.low <= other.high:
            result._cover(other.low, other.high)
            result.counts += _widened(other.counts, result.exponent - other.exponent)
        return result

    def magnitudes(self) -> Counts:
        """Counts of ``|x|``, int64 [HALF_BINS]: bin i is ``[i, i + 1)`` widths."""
        return self.counts[HALF_BINS:] + self.counts[HALF_BINS - 1 :: -1]

    def _cover(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent = max(self.exponent, _exponent(self.largest))
        self.counts = _widened(self.counts, exponent - self.exponent)
        self.exponent = exponent

    def to_json(self) -> dict[str, Any]:
        """A plain dict, without the empty bins at both ends."""
        filled = np.flatnonzero(self.counts)
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, -1)
        return {
            "exponent": self.exponent,
            "low": self.low,
            "high": self.high,
            "first_bin": first,
            "counts": self.counts[first : last + 1].tolist(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Histogram:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: if the numbers do not make a histogram.
        """
        part = np.array(data["counts"], np.int64)
        first, exponent = int(data["first_bin"]), int(data["exponent"])
        result = cls(exponent, float(data["low"]), float(data["high"]))
        fits = first >= 0 and first + part.size <= result.counts.size and (part >= 0).all()
        if not (fits and part.any() and result.low <= result.high):
            raise ValueError("the counts of a histogram are broken")
        if exponent != _exponent(result.largest):
            raise ValueError("a histogram's range does not fit its largest value")
        result.counts[first : first + part.size] = part
        return result


def _exponent(largest: float) -> int:
    """The least one whose power of two is above this magnitude."""
    return max(LEAST_EXPONENT, math.frexp(largest)[1]) if largest else LEAST_EXPONENT


def _widened(counts: Counts, doublings: int) -> Counts:
    """The same counts over a range that was doubled so many times."""
    if doublings == 0:
        return counts
    # Beyond this many doublings each half has long been in one bin.
    group = 1 << min(doublings, HALF_BINS.bit_length() - 1)
    sums = counts.reshape(-1, group).sum(axis=1)
    wider = np.zeros_like(counts)
    wider[HALF_BINS - sums.size // 2 : HALF_BINS + sums.size // 2] = sums
    return wider
