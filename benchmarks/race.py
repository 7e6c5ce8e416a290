"""Two engines of one bundle, one after the other and round by round: which is faster?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from attn_export.engines.engine import Engine
from attn_export.errors import GateFailed, Inconclusive

from .stats import Interval, ratio_interval

ROUNDS = 7
LEAST_TURN_S, MOST_TURN_S = 0.3, 1.0  # shorter turns measure the first batch after a wait
FEW = 100


def race(candidate: Engine, rival: Engine, requests: Sequence[Any]) -> Interval:
    """How many times the rival's throughput the candidate has, with its interval.

    Both answer the same requests in turn, in the opposite order of the round before; a round gives
    one ratio. Some untimed work goes first, and decides how many of the requests a turn takes.
    """
    engines = (candidate, rival)
    requests = requests[: _enough(rival, requests)]
    repeats = [_repeats(engine, requests) for engine in engines]
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for index in order:
            start = time.perf_counter()
            for _ in range(repeats[index]):
                engines[index].run_many(requests)
            rates[index].append(repeats[index] / (time.perf_counter() - start))
    return ratio_interval(*rates)


def require_faster(result: Interval, *, candidate: str, rival: str) -> None:
    """The gate: the candidate has to be faster beyond the noise.

    Raises:
        GateFailed: if it is slower.
        Inconclusive: if the noise is larger than the difference.
    """
    if result.low > 1:
        return
    text = (
        f"{candidate} is {result.median:.2f} [{result.low:.2f}, {result.high:.2f}] times as fast "
        f"as {rival} in interleaved rounds"
    )
    if result.median <= 1:
        raise GateFailed(
            f"{text}: INT8 does not earn its place here; serve {rival}, or build with "
            "--no-speed-gate for another machine"
        )
    raise Inconclusive(f"{text}: too noisy to tell; run it again on an idle machine")


def _enough(engine: Engine, requests: Sequence[Any]) -> int:
    """How many requests take the engine about a second."""
    few = requests[:FEW]
    engine.run_many(few)
    start = time.perf_counter()
    engine.run_many(few)
    return max(len(few), round(len(few) * MOST_TURN_S / (time.perf_counter() - start)))


def best_ms(engine: Engine, requests: Sequence[Any], runs: int = 4) -> float:
    """The best of some times for all requests, in ms, after one untimed run."""
    engine.run_many(requests)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        engine.run_many(requests)
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def _repeats(engine: Engine, requests: Sequence[Any]) -> int:
    engine.run_many(requests)
    start = time.perf_counter()
    engine.run_many(requests)
    return max(1, round(LEAST_TURN_S / (time.perf_counter() - start)))
