"""Which of two engines is faster, and what the gate makes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from attn_export.benchmarks.race import interleaved_rates, race, require_faster
from attn_export.benchmarks.stats import Interval
from attn_export.errors import GateFailed, Inconclusive


class Sleeper:
    """Takes a known time a call."""

    def __init__(self, seconds: float, log: list[str], name: str) -> None:
        self._seconds, self._log, self._name = seconds, log, name

    def run_many(self, sequences: Sequence[Any]) -> dict[str, Any]:
        self._log.append(self._name)
        time.sleep(self._seconds)
        return {}


def test_the_ratio_is_that_of_the_times_and_the_turns_alternate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("attn_export.benchmarks.race.LEAST_TURN_S", 0.001)
    log: list[str] = []
    found = race(Sleeper(0.01, log, "a"), Sleeper(0.03, log, "b"), [1])  # type: ignore[arg-type]
    assert 2 < found.median < 4
    assert "".join(log)[-18:] == "abbaabbaabbaabbaab"


@pytest.mark.parametrize(("goal", "calls"), [("throughput", [3]), ("latency", [1, 1, 1])])
def test_requests_are_asked_at_once_or_one_by_one(
    monkeypatch: pytest.MonkeyPatch, goal: Any, calls: list[int]
) -> None:
    monkeypatch.setattr("attn_export.benchmarks.race.LEAST_TURN_S", 0.001)
    asked: list[int] = []

    class Counter(Sleeper):
        def run_many(self, sequences: Sequence[Any]) -> dict[str, Any]:
            asked.append(len(sequences))
            return super().run_many(sequences)

    engine = Counter(0.004, [], "a")
    rates = interleaved_rates([engine, engine], [7, 8, 9], goal)  # type: ignore[list-item]
    assert asked[-len(calls) :] == calls
    assert [len(found) for found in rates] == [9, 9]
    # A call takes 4 ms and something: 3 requests at once, or one.
    assert max(max(found) for found in rates) <= len([7, 8, 9]) / len(calls) / 0.004


@pytest.mark.parametrize(
    ("interval", "error", "words"),
    [
        ((2.0, 1.9, 2.1), None, ""),
        ((0.9, 0.8, 0.95), GateFailed, "does not earn its place"),
        ((1.1, 0.9, 1.3), Inconclusive, "too noisy to tell"),
    ],
)
def test_the_gate_asks_for_more_than_noise(
    interval: tuple[float, float, float], error: type[Exception] | None, words: str
) -> None:
    median, low, high = interval
    found = Interval(median=median, low=low, high=high)
    if error is None:
        require_faster(found, candidate="int8", rival="fp32")
        return
    with pytest.raises(error, match=words):
        require_faster(found, candidate="int8", rival="fp32")
