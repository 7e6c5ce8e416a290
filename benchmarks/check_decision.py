"""When enough rounds have been seen: an interval that may be looked at more than once.

A round gives one ratio. If their true median is the limit, each ratio is as likely above as below
it, whatever the noise looks like: the number above is a fair coin's, and the interval of
:func:`~attn_export.benchmarks.stats.median_interval` holds for any distribution.

Who looks after every round and stops at the first good interval is wrong far more often than the
level says. Here the looks are fixed beforehand and all have one stricter level (group-sequential
testing: S. J. Pocock 1977, Biometrika 64(2), "Group sequential methods in the design and analysis
of clinical trials"). With :data:`LOOK_CONFIDENCE` the coin's walk leaves the interval at any of the
looks with a probability of 1.0 % a side, computed exactly. A recorded ratio's interval has the same
level and adds 0.4 %. Both sides together stay below 3 %, and 95 % is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .stats import CONFIDENCE, Interval, median_interval

Verdict = Literal["pass", "fail", "inconclusive", "error", "skipped"]
# The rounds after which the interval is looked at.
LOOKS = (8, 16, 32, 64)
# What eight rounds reach between their least and their largest.
LOOK_CONFIDENCE = 1 - 2 / 2 ** LOOKS[0]
EXACTLY_ONE = Interval(median=1.0, low=1.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Is a ratio larger than a limit?

    Args:
        gate: ``"speedup"`` or ``"regression"``.
        limit: what the ratio has to exceed.
        unit: what the measured ratio is divided by first: a recorded ratio, or exactly one.
    """

    gate: str
    limit: float
    unit: Interval = EXACTLY_ONE

    def counted(self, ratios: Sequence[float]) -> Sequence[float]:
        """The ratios up to the look that answered: what comes later cannot change that."""
        looks = (ratios[:look] for look in LOOKS if look < len(ratios))
        return next((seen for seen in looks if self.answer(seen) != "inconclusive"), ratios)

    def ratio(self, ratios: Sequence[float]) -> Interval:
        """The measured ratio in units of the recorded one, at one of the looks.

        The recorded interval's ends are opposed to the measured one's: the true quotient lies
        outside only if one of the two intervals missed.
        """
        found = median_interval(ratios, LOOK_CONFIDENCE)
        return Interval(
            median=found.median / self.unit.median,
            low=found.low / self.unit.high,
            high=found.high / self.unit.low,
            confidence=CONFIDENCE,
        )

    def answer(self, ratios: Sequence[float]) -> Verdict:
        """``pass``, ``fail``, or ``inconclusive`` while the interval holds the limit."""
        found = self.ratio(ratios)
        if found.low > self.limit:
            return "pass"
        return "fail" if found.high < self.limit else "inconclusive"
