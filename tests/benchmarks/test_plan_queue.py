"""The queue of a machine that answers in batches: by hand, by formulas, and simulated."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from attn_export.benchmarks.plan_queue import served

LINE = tuple(1 + 0.1 * b for b in range(1, 17))  # a launch of 1 s, 0.1 s a request
FLAT = tuple(0.2 + 0.01 * b for b in range(1, 65))


def simulate(
    times: Sequence[float], rate: float, window_s: float, *, requests: int = 150_000
) -> dict[str, float]:
    """The same machine, event by event."""
    rng, most = random.Random(7), len(times)
    come = np.cumsum([rng.expovariate(rate) for _ in range(requests)]).tolist()
    took, first, now, batches, busy = [], 0, 0.0, 0, 0.0
    while first < requests:
        now = max(now, come[first])
        last = first + most - 1
        if window_s:
            full = come[last] if last < requests else float("inf")
            now = max(now, min(now + window_s, full))
        stop = first
        while stop < min(requests, first + most) and come[stop] <= now:
            stop += 1
        seconds = times[stop - first - 1]
        now, busy, batches = now + seconds, busy + seconds, batches + 1
        took += [now - time for time in come[first:stop]]
        first = stop
    p50, p99 = np.percentile(took, [50, 99])
    mean = float(np.mean(took))
    return {
        "mean_s": mean,
        "p50_s": float(p50),
        "p99_s": float(p99),
        "mean_batch": requests / batches,
        "busy": busy / now,
    }


@pytest.mark.parametrize(
    ("times", "rate", "window_s"),
    [
        pytest.param((1.0,), 0.6, 0.0, id="M/D/1"),
        pytest.param(LINE, 1.0, 0.0, id="light"),
        pytest.param(LINE, 4.0, 0.0, id="greedy"),
        pytest.param(LINE, 4.0, 0.5, id="window"),
        pytest.param(LINE, 1.0, 2.0, id="long-window"),
        pytest.param(LINE[:4], 2.4, 0.0, id="small-batches-heavy"),
        pytest.param(LINE[:4], 2.0, 1.5, id="window-often-full"),
        pytest.param(FLAT, 60.0, 0.1, id="large-batches"),
    ],
)
def test_the_model_is_what_a_simulation_finds(
    times: tuple[float, ...], rate: float, window_s: float
) -> None:
    found = served(np.array(times), rate=rate, window_s=window_s)
    for name, value in simulate(times, rate, window_s).items():
        tolerance = 0.04 if name == "p99_s" else 0.02
        assert getattr(found, name) == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8, 0.9])
def test_without_batches_the_mean_is_pollaczek_and_khinchines(load: float) -> None:
    found = served(np.array([1.0]), rate=load)
    assert found.mean_s == pytest.approx(1 + load / (2 * (1 - load)), rel=1e-3)
    assert found.busy == pytest.approx(load)


def test_half_of_the_requests_of_a_half_loaded_machine_do_not_wait() -> None:
    assert served(np.array([1.0]), rate=0.5).p50_s == pytest.approx(1.0, rel=2e-3)


def test_littles_law_holds_between_the_batch_and_the_busy_time() -> None:
    # Requests in service: rate · their time there = share of time busy · batch, by b.
    found = served(np.array([2.0, 2.0]), rate=0.3)
    assert found.busy == pytest.approx(0.3 * 2.0 / found.mean_batch)


def test_a_lone_request_takes_the_window_and_its_own_batch() -> None:
    found = served(np.array([0.010, 0.012]), rate=1e-4, window_s=0.005)
    assert found.mean_s == pytest.approx(0.015, rel=1e-3)
    assert found.p99_s == pytest.approx(0.015, rel=1e-3)
    assert found.mean_batch == pytest.approx(1.0, rel=1e-4)


def test_batches_that_are_never_reached_change_nothing() -> None:
    short = served(np.array(FLAT[:40]), rate=20.0)
    long = served(np.array(FLAT), rate=20.0)
    assert long.p99_s == pytest.approx(short.p99_s, rel=1e-6)
    assert long.mean_batch == pytest.approx(short.mean_batch, rel=1e-6)


def test_more_requests_wait_longer_and_fill_batches() -> None:
    rates = (0.5, 1.0, 2.0, 4.0, 5.0)
    found = [served(np.array(LINE), rate=rate) for rate in rates]
    assert sorted(item.p99_s for item in found) == [item.p99_s for item in found]
    assert sorted(item.mean_batch for item in found) == [item.mean_batch for item in found]


@pytest.mark.parametrize("rate", [0.0, 0.99, 3.0])
def test_a_load_that_no_queue_stands_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="load"):
        served(np.array([1.0]), rate=rate)
