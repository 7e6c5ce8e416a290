"""When a duel ends, and how often its verdict is wrong: exactly, and on noise of any shape."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
import numpy.typing as npt
import pytest

from attn_export.benchmarks.check_decision import LOOK_CONFIDENCE, LOOKS, Question
from attn_export.benchmarks.stats import Interval

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
NO_SLOWER = Question(gate="regression", limit=0.95)


def rank(rounds: int) -> int:
    """How far from the end a look's bound stands: the largest k with 2 P(Bin(n, 1/2) < k) small."""
    k = 1
    while 2 * sum(comb(rounds, i) for i in range(k + 1)) / 2**rounds <= 1 - LOOK_CONFIDENCE:
        k += 1
    return k


def test_all_looks_together_are_wrong_in_one_percent_a_side() -> None:
    # Number of ratios below the limit, while no look has passed: a fair coin's walk.
    alive, wrong = np.zeros(LOOKS[-1] + 1), 0.0
    alive[0] = 1
    for rounds in range(1, LOOKS[-1] + 1):
        alive = alive / 2 + np.concatenate([[0], alive[:-1] / 2])
        if rounds in LOOKS:
            wrong += alive[: rank(rounds)].sum()
            alive[: rank(rounds)] = 0
    assert wrong == pytest.approx(0.0096, abs=0.0001)
    recorded = 1 / 2**8  # at most: what the fewest rounds that are taken give
    assert 2 * (wrong + recorded) < 0.05


def test_the_bounds_of_a_look_are_the_ranks_of_that_walk() -> None:
    for rounds in LOOKS:
        found = NO_SLOWER.ratio([float(n) for n in range(1, rounds + 1)])
        assert (found.low, found.high) == (rank(rounds), rounds + 1 - rank(rounds))


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.0, 0.99, 1.01, 0.98, 1.02, 0.97, 1.03, 0.96], "pass"),
        ([0.87, 0.85, 0.88, 0.86, 0.9, 0.84, 0.87, 0.94], "fail"),
        ([1.0, 0.99, 1.01, 0.98, 1.02, 0.97, 1.03, 0.94], "inconclusive"),
        ([0.6, 1.4, 0.8, 1.1, 0.5, 1.2, 0.7, 0.9], "inconclusive"),
        ([0.95] * 8, "inconclusive"),
    ],
)
def test_verdicts_by_hand(ratios: list[float], verdict: str) -> None:
    assert NO_SLOWER.answer(ratios) == verdict


def test_the_look_that_answers_settles_it() -> None:
    slow, fast = [0.9] * 8, [1.1] * 60
    assert NO_SLOWER.answer(NO_SLOWER.counted(slow)) == "fail"
    assert NO_SLOWER.counted(slow + fast) == slow
    open_until_16 = [0.9] * 2 + [1.1] * 30
    assert NO_SLOWER.counted(open_until_16[:8]) == open_until_16[:8]
    assert [len(NO_SLOWER.counted(open_until_16[:n])) for n in LOOKS[:3]] == [8, 16, 16]


def test_a_recorded_ratio_brings_its_own_interval() -> None:
    # 12 [10, 14] then, 11 [9, 13] now: 11/12, from 9/14 to 13/10.
    then = Interval(median=12.0, low=10.0, high=14.0)
    now = [9.0, 10.0, 10.5, 11.0, 11.0, 11.5, 12.0, 13.0]
    found = Question(gate="regression", limit=0.95, unit=then).ratio(now)
    assert (found.low, found.median, found.high) == pytest.approx((9 / 14, 11 / 12, 1.3))


def verdict(question: Question, ratios: npt.NDArray[np.float64]) -> str:
    """What a duel that measures these ratios ends with."""
    for look in LOOKS:
        answer = question.answer(ratios[:look].tolist())
        if answer != "inconclusive":
            break
    return answer


SHAPES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(0, 0.03, n),
    "heavy tails": lambda rng, n: 0.02 * rng.standard_t(1.5, n),
    "lopsided": lambda rng, n: 0.05 * (np.log(2) - rng.exponential(1, n)),  # its median is 0
}


def shares(shape: str, ratio: float, runs: int = 400) -> dict[str, float]:
    rng = np.random.default_rng(0)
    found = [verdict(NO_SLOWER, ratio * np.exp(SHAPES[shape](rng, LOOKS[-1]))) for _ in range(runs)]
    return {word: found.count(word) / runs for word in ("pass", "fail", "inconclusive")}


@pytest.mark.parametrize("shape", SHAPES)
def test_on_the_limit_a_verdict_is_as_rare_as_promised(shape: str) -> None:
    found = shares(shape, 0.95)
    # 1.0 % a side; with 400 runs more than 3 % would be four standard errors away.
    assert found["pass"] < 0.03
    assert found["fail"] < 0.03


@pytest.mark.parametrize("shape", SHAPES)
def test_an_equal_build_passes_and_a_slowed_one_fails(shape: str) -> None:
    assert shares(shape, 1.0)["fail"] == 0
    assert shares(shape, 1.0)["pass"] > 0.98
    assert shares(shape, 0.85)["pass"] == 0
    assert shares(shape, 0.85)["fail"] > 0.98


def test_heavy_noise_is_inconclusive_and_not_a_regression() -> None:
    rng = np.random.default_rng(1)
    found = [verdict(NO_SLOWER, np.exp(rng.normal(0, 0.5, LOOKS[-1]))) for _ in range(200)]
    assert found.count("fail") <= 2
    assert found.count("inconclusive") > 150
