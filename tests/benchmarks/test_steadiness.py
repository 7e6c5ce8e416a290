"""When a warm-up ends, with turns whose length is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from attn_export.benchmarks import steadiness
from attn_export.benchmarks.steadiness import WINDOW, run_until_steady


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[float]], Callable[[], None]]:
    """Make turns that take given seconds, on a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def turns(seconds: Iterator[float]) -> Callable[[], None]:
        def turn() -> None:
            now[0] += next(seconds)

        return turn

    return turns


Clocked = Callable[[Iterator[float]], Callable[[], None]]


def test_it_ends_when_the_last_times_agree(clocked: Clocked) -> None:
    times = [8.0, 4.0, 2.0, 1.0, 1.01, 0.99, 1.0, 1.0]
    found = run_until_steady(clocked(iter(times)), 1000.0)  # one more would be StopIteration
    assert found.stable
    assert found.seconds == pytest.approx(1.0)
    assert found.cv == pytest.approx(0.00707, rel=0.01)


def test_slow_drift_is_not_mistaken_for_an_end(clocked: Clocked) -> None:
    # Each is within 5 % of the one before, as 5 in a row are not.
    drifting = [1.5 * 0.96**n for n in range(20)]
    found = run_until_steady(clocked(iter([*drifting, *[0.6] * WINDOW])), 1000.0)
    assert found.stable
    assert found.seconds == pytest.approx(0.6, rel=0.1)


def test_it_ends_unsteady_when_time_is_up(clocked: Clocked) -> None:
    found = run_until_steady(clocked(iter([1.0, 2.0] * 50)), 10.0)
    assert not found.stable
    assert found.cv > 0.3


@pytest.mark.parametrize("least", [1, 2, 4])
def test_without_time_it_runs_as_often_as_it_must(clocked: Clocked, least: int) -> None:
    left = iter([1.0] * 10)
    found = run_until_steady(clocked(left), 0.0, least=least)
    assert not found.stable
    assert len(list(left)) == 10 - least


def test_short_turns_are_timed_together(clocked: Clocked) -> None:
    # 0.01 and 0.03 in turn: alone they vary by 60 %, three pairs at a time hardly.
    found = run_until_steady(clocked(iter([0.01, 0.03] * 100)), 10.0)
    assert found.seconds == pytest.approx(0.02, rel=0.3)


def test_a_real_clock() -> None:
    found = run_until_steady(lambda: time.sleep(steadiness.LEAST_S), 30.0)
    assert found.seconds >= steadiness.LEAST_S
