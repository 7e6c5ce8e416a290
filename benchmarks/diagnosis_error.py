"""How far outputs are from what they should be, as a multiple of what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Allowed = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Error:
    """The error of all outputs.

    Args:
        max_abs: the largest difference of two finite values.
        excess: the largest ``|difference| / (atol + rtol * |reference|)``; at most 1 is allowed.
            Infinite where a value is not finite.
        nonfinite: how many values are NaN or infinite.
    """

    max_abs: float = 0.0
    excess: float = 0.0
    nonfinite: int = 0

    @property
    def passed(self) -> bool:
        """Whether it is allowed."""
        return self.excess <= 1

    def __str__(self) -> str:
        """In words."""
        if self.nonfinite:
            return f"{self.nonfinite} values are not finite"
        return f"max |difference| {self.max_abs:.3g}, {self.excess:.3g} times what is allowed"

    def to_json(self) -> dict[str, Any]:
        """A plain dict; an infinite excess is None."""
        excess = self.excess if math.isfinite(self.excess) else None
        return {**asdict(self), "excess": excess, "passed": self.passed}


def measure(got: Mapping[str, Array], expected: Mapping[str, Array], allowed: Allowed) -> Error:
    """Compare outputs; a value whose expected one is NaN need only be finite.

    Args:
        allowed: (atol, rtol) by output.
    """
    return worst(
        _measure(got[name].astype(np.float64), expected[name].astype(np.float64), atol, rtol)
        for name, (atol, rtol) in allowed.items()
    )


def worst(errors: Iterable[Error]) -> Error:
    """The largest of each number; the counts are added."""
    found = list(errors)
    return Error(
        max_abs=max((error.max_abs for error in found), default=0.0),
        excess=max((error.excess for error in found), default=0.0),
        nonfinite=sum(error.nonfinite for error in found),
    )


def _measure(got: Array, expected: Array, atol: float, rtol: float) -> Error:
    nonfinite = int((~np.isfinite(got)).sum())
    held = np.isfinite(got) & np.isfinite(expected)
    difference = np.abs(got[held] - expected[held])
    if not difference.size:
        return Error(excess=math.inf if nonfinite else 0.0, nonfinite=nonfinite)
    # The smallest number stands for a tolerance of zero: 0 / 0 is then 0, all else is too much.
    limit = np.maximum(atol + rtol * np.abs(expected[held]), np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        excess = float((difference / limit).max())
    return Error(
        max_abs=float(difference.max()),
        excess=math.inf if nonfinite else excess,
        nonfinite=nonfinite,
    )
