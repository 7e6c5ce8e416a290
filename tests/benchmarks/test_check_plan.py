"""Who meets whom; nothing is started here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attn_export.benchmarks.baseline import Baseline, BuildBaseline, RecordedBaseline
from attn_export.benchmarks.candidates import BUCKETED
from attn_export.benchmarks.check_plan import SpeedGates, SpeedPlan, common_settings
from attn_export.bundle import Bundle
from attn_export.errors import UsageError

from .recorded_bench import recorded_bench

FP32, FP16 = "onnxruntime-fp32", "onnxruntime-fp16"


def plan(
    bundle: Bundle,
    baseline: Baseline | None = None,
    *,
    min_speedup: float | None = None,
    engine: str | None = None,
) -> SpeedPlan:
    gates = SpeedGates(min_speedup=min_speedup, baseline=baseline, max_regression=0.1)
    engines = bundle.manifest.engines
    chosen = engines if engine is None else {engine: engines[engine]}
    common = common_settings(allow_host_code=False)
    return SpeedPlan(bundle, gates, chosen, named=engine is not None, common=common)


def said(found: SpeedPlan) -> list[tuple[str, list[tuple[str, float]]]]:
    return [
        (duel.pair[1].name, [(question.gate, question.limit) for question in duel.questions])
        for duel in found.duels
    ]


def recorded(bundle: Bundle) -> RecordedBaseline:
    return RecordedBaseline(path=Path("bench.json"), report=recorded_bench(bundle))


def test_without_gates_on_speed_there_is_nothing_to_run(bundle: Bundle) -> None:
    found = plan(bundle)
    assert (found.duels, found.verdicts) == ([], [])


def test_a_build_and_eager_pytorch_are_two_opponents(bundle: Bundle) -> None:
    found = plan(bundle, BuildBaseline(bundle=bundle), min_speedup=1.2)
    assert said(found) == [
        ("eager-padded", [("speedup", 1.2)]),
        (f"{FP32} (baseline)", [("regression", 0.9)]),
    ]


def test_a_record_and_the_speed_up_share_one_duel_on_the_recorded_work(bundle: Bundle) -> None:
    found = plan(bundle, recorded(bundle), min_speedup=1.2)
    assert said(found) == [("eager-padded", [("speedup", 1.2), ("regression", 0.9)])]
    (duel,) = found.duels
    assert [side.samples for side in duel.pair] == [64, 64]
    assert duel.questions[1].unit.median == 8


def test_a_duel_of_two_questions_goes_on_until_both_are_answered(bundle: Bundle) -> None:
    (duel,) = plan(bundle, recorded(bundle), min_speedup=1.2).duels
    assert duel.is_settled([8.0] * 8)
    assert not duel.is_settled([8.0] * 7 + [7.0])  # 7/8 is below 0.9, and above 1.2
    assert duel.is_settled([0.5] * 8)


def test_fp16_on_a_cpu_takes_part_when_it_is_named(bundle: Bundle) -> None:
    found = plan(bundle, BuildBaseline(bundle=bundle), min_speedup=1.2)
    assert [result.name for result in found.verdicts] == [f"speedup:{FP16}", f"regression:{FP16}"]
    named = plan(bundle, BuildBaseline(bundle=bundle), min_speedup=1.2, engine=FP16)
    assert (len(named.duels), named.verdicts) == (2, [])


def test_a_baseline_without_the_engine_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=f"has no engine {FP16}; it has: {FP32}"):
        plan(bundle, recorded(bundle), engine=FP16)


def test_an_engine_that_only_the_baseline_has_fails(bundle: Bundle) -> None:
    baseline = recorded(bundle)
    (found,) = [r for r in baseline.report.results if r.engine == FP32 and r.candidate == BUCKETED]
    baseline.report.results.append(replace(found, name="old", engine="old"))
    (lost,) = [r for r in plan(bundle, baseline).verdicts if r.verdict == "fail"]
    assert (lost.name, lost.text) == (
        "regression:old",
        "the baseline (the ratios to eager PyTorch recorded in bench.json) has this engine, and "
        "the bundle has not",
    )
    assert not [r for r in plan(bundle, baseline, engine=FP32).verdicts if r.verdict == "fail"]


def test_an_engine_that_is_new_is_skipped_where_another_is_compared(bundle: Bundle) -> None:
    engines = bundle.manifest.engines
    engines["new"] = engines[FP32]
    found = plan(bundle, recorded(bundle))
    assert [duel.engine for duel in found.duels] == [FP32]
    assert [result.name for result in found.verdicts] == [f"regression:{FP16}", "regression:new"]
    assert "has no such engine" in found.verdicts[1].text
