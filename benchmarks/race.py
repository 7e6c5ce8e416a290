"""Two engines of one bundle, one after the other and round by round: which is faster?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from attn_export.engines.engine import Engine
from attn_export.engines.session import Goal
from attn_export.errors import GateFailed, Inconclusive

from .stats import Interval, ratio_interval

ROUNDS = 9
LEAST_TURN_S, MOST_TURN_S = 0.3, 1.0  # shorter turns measure the first batch after a wait
FEW = 100
Ask = Callable[[Engine, Sequence[Any]], None]


def race(candidate: Engine, rival: Engine, requests: Sequence[Any]) -> Interval:
    """How many times the rival's throughput the candidate has, with its interval.

    Both answer the same requests in turn; a round gives one ratio.
    """
    ours, theirs = interleaved_rates((candidate, rival), requests)
    return ratio_interval(ours, theirs)


def interleaved_rates(
    engines: Sequence[Engine], requests: Sequence[Any], goal: Goal = "throughput"
) -> list[list[float]]:
    """Requests a second of each engine in each round.

    All answer the same requests in turn, in the opposite order of the round before. Some untimed
    work goes first, and decides how many of the requests a turn takes.

    Args:
        goal: ``"throughput"``: all requests at once; ``"latency"``: one after the other.
    """
    ask = _all_at_once if goal == "throughput" else _one_by_one
    slowest = max(engines, key=lambda engine: _seconds(ask, engine, requests[:FEW]))
    requests = requests[: _enough(ask, slowest, requests)]
    repeats = [_repeats(ask, engine, requests) for engine in engines]
    rates: list[list[float]] = [[] for _ in engines]
    for number in range(ROUNDS):
        order = range(len(engines))
        for index in order if number % 2 == 0 else reversed(order):
            start = time.perf_counter()
            for _ in range(repeats[index]):
                ask(engines[index], requests)
            seconds = time.perf_counter() - start
            rates[index].append(repeats[index] * len(requests) / seconds)
    return rates


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


def _all_at_once(engine: Engine, requests: Sequence[Any]) -> None:
    engine.run_many(requests)


def _one_by_one(engine: Engine, requests: Sequence[Any]) -> None:
    for request in requests:
        engine.run_many([request])


def _seconds(ask: Ask, engine: Engine, requests: Sequence[Any]) -> float:
    """After one untimed run."""
    ask(engine, requests)
    start = time.perf_counter()
    ask(engine, requests)
    return time.perf_counter() - start


def _enough(ask: Ask, engine: Engine, requests: Sequence[Any]) -> int:
    """How many requests take the engine about a second."""
    few = requests[:FEW]
    return max(len(few), round(len(few) * MOST_TURN_S / _seconds(ask, engine, few)))


def best_ms(engine: Engine, requests: Sequence[Any], runs: int = 4) -> float:
    """The best of some times for all requests, in ms, after one untimed run."""
    engine.run_many(requests)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        engine.run_many(requests)
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def _repeats(ask: Ask, engine: Engine, requests: Sequence[Any]) -> int:
    return max(1, round(LEAST_TURN_S / _seconds(ask, engine, requests)))
