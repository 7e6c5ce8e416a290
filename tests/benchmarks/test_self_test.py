"""An engine against itself: really on a tiny bundle, and with noise that is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from attn_export.benchmarks.report_file import write_report
from attn_export.benchmarks.rounds import Plan
from attn_export.benchmarks.self_test import (
    PLAN,
    PRACTICAL,
    RUNS,
    SelfTestReport,
    is_difference,
    run_self_test,
)
from attn_export.benchmarks.stats import Interval, ratio_interval
from attn_export.bundle import Bundle
from attn_export.errors import BundleError, GateFailed, Inconclusive, UsageError

MOMENT = Plan(rounds=3, turn_s=0.01, all_s=0.01, warm_up_s=0.0, latency_s=0.0)
SEQUENCES = [np.full(n, 3, np.int32) for n in (2, 4, 9, 16)]


def test_a_real_one_is_kept_with_its_numbers(bundle: Bundle) -> None:
    report = run_self_test(
        bundle,
        sequences=SEQUENCES,
        engine="onnxruntime-fp32",
        threads=1,
        runs=2,
        plan=MOMENT,
    )
    write_report(bundle, "self-test", report)
    kept = json.loads((bundle.directory / "reports" / "self-test.json").read_text())
    assert kept["engine"] == "onnxruntime-fp32"
    assert len(kept["ratios"]) == len(kept["plain"]) == 2
    assert kept["false_differences"] == 0  # 3 rounds cannot show one
    assert kept["settings"]["runs"] == 2
    assert kept["largest_difference"] >= 0
    assert "machine" in kept["environment"]


def test_without_a_name_it_takes_an_engine_that_passed_parity(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no engine of .* has passed parity"):
        run_self_test(bundle, sequences=SEQUENCES)


def test_options_that_cannot_be(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="runs is 0"):
        run_self_test(bundle, runs=0)
    with pytest.raises(UsageError, match="unknown engine 'x'"):
        run_self_test(bundle, engine="x")


def test_an_engine_that_cannot_be_loaded_ends_it(bundle: Bundle) -> None:
    (bundle.directory / "model.onnx").write_bytes(b"short")
    with pytest.raises(BundleError, match="truncated"):
        run_self_test(bundle, sequences=SEQUENCES, engine="onnxruntime-fp32", threads=1)


def interval(median: float, width: float = 0.01) -> Interval:
    return Interval(median=median, low=median * (1 - width), high=median * (1 + width))


def report(*ratios: Interval) -> SelfTestReport:
    return SelfTestReport(
        engine="e",
        ratios=list(ratios),
        plain=list(ratios),
        practical=PRACTICAL,
        environment={},
        settings={},
    )


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (interval(1.0), False),
        (interval(1.02), False),  # its interval excludes 1, but it does not matter
        (interval(1.05), True),
        (interval(0.95), True),
        (interval(1.05, width=0.1), False),
    ],
)
def test_a_difference_excludes_1_and_matters(ratio: Interval, expected: bool) -> None:
    assert is_difference(ratio) == expected


def test_a_false_difference_fails_the_gate() -> None:
    found = report(interval(1.0), interval(1 / 1.06))
    assert found.false_differences == 1
    assert found.largest_difference == pytest.approx(0.06)
    assert found.lines()[0] == "[FAIL] e against itself: 1 false differences in 2 runs"
    with pytest.raises(GateFailed, match=r"differs from itself in 1 of 2 runs, by up to 6\.0%"):
        found.require_no_difference()


def test_none_is_no_pass_where_the_noise_would_hide_one() -> None:
    found = report(interval(1.0, width=0.2))
    assert found.lines()[0].startswith("[INCONCLUSIVE]")
    with pytest.raises(Inconclusive, match=r"a run sees differences from about 22"):
        found.require_no_difference()


def test_equal_and_quiet_passes() -> None:
    found = report(interval(1.0), interval(1.01))
    assert found.lines()[0].startswith("[PASS]")
    found.require_no_difference()


def simulated(slowdown: float, busy: float, seed: int, trials: int) -> list[int]:
    """How many of 20 runs call a difference, in each of some self-tests, with rounds of noise.

    Args:
        busy: the share of the turns that other work slows by 10 to 40 %.
    """
    rng = np.random.default_rng(seed)
    shape = (2, PLAN.rounds)
    counts = []
    for _ in range(trials):
        found = 0
        for _ in range(RUNS):
            disturbed = (rng.random(shape) < busy) * rng.uniform(0.1, 0.4, shape)
            first, second = np.exp(rng.normal(0, 0.015, shape) - disturbed)
            ratio = ratio_interval(second * slowdown, first, 1 - 0.05 / RUNS)
            found += is_difference(ratio)
        counts.append(found)
    return counts


@pytest.mark.parametrize("busy", [0.0, 0.15, 0.4])
def test_twenty_runs_on_a_busy_machine_find_nothing(busy: float) -> None:
    false = simulated(1.0, busy, seed=1, trials=50)
    assert np.mean(np.array(false) > 0) <= 0.05


@pytest.mark.parametrize(("busy", "least"), [(0.0, 19), (0.15, 12)])
def test_a_slowdown_of_five_percent_is_seen(busy: float, least: int) -> None:
    assert np.mean(simulated(0.95, busy, seed=2, trials=20)) >= least
