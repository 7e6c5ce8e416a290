"""Warming up until the times stop changing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from .stats import coefficient_of_variation

# A. Georges, D. Buytaert and L. Eeckhout, "Statistically rigorous Java performance evaluation"
# (OOPSLA 2007), section 4.2: steady once the coefficient of variation of the last k times is small.
# They say 1 or 2 %, on quiet machines; a cloud's are not, and the rounds show their noise anyway.
WINDOW = 5
STEADY_CV = 0.05
LEAST_S = 0.05  # shorter times show the clock and the scheduler: more turns make up one


@dataclass(frozen=True, kw_only=True)
class Steadiness:
    """How a warm-up ended.

    Args:
        seconds: of one turn: the median of the last times.
        cv: their coefficient of variation.
        stable: whether that was small enough before time was up.
    """

    seconds: float
    cv: float
    stable: bool


def run_until_steady(turn: Callable[[], object], limit_s: float, *, least: int = 2) -> Steadiness:
    """Repeat a turn until its last 5 times vary by no more than 5 %, or for ``limit_s``.

    The turn that is running when time is up still ends; ``least`` of them run in any case.
    """
    end = time.monotonic() + limit_s
    times: list[float] = []
    while True:
        times.append(_turn_s(turn))
        last = times[-WINDOW:]
        cv = coefficient_of_variation(last)
        stable = len(last) == WINDOW and cv <= STEADY_CV
        if stable or (len(times) >= least and time.monotonic() > end):
            return Steadiness(seconds=statistics.median(last), cv=cv, stable=stable)


def _turn_s(turn: Callable[[], object]) -> float:
    """The seconds of one turn, over as many as make a time worth comparing."""
    start, count, passed = time.perf_counter(), 0, 0.0
    while passed < LEAST_S:
        turn()
        count, passed = count + 1, time.perf_counter() - start
    return passed / count
