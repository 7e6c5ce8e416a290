"""Improvement factors by hand."""

from __future__ import annotations

import pytest

from attn_export.benchmarks.matrix_cell import BUCKETED, EAGER_AUTOCAST, EAGER_FP32, PADDED, Cell
from attn_export.benchmarks.matrix_factors import Factor, improvement_factors, memory_savings
from attn_export.benchmarks.stats import median_interval

from .matrix_samples import sample_cell


def cell(rounds: list[float], **given: object) -> Cell:
    return sample_cell(1.0, rounds=rounds, samples_per_s=median_interval(rounds), **given)


CELLS = [
    cell([10, 20, 30]),
    cell([40, 40, 40], mode=BUCKETED),
    cell([20, 30, 60], model="mqa"),
    cell([15, 20, 30], model="gqa"),
    cell([30, 60, 60], variant=EAGER_AUTOCAST),
    cell([40, 80, 120], model="mqa", variant=EAGER_AUTOCAST),
    cell([80, 200, 240], model="mqa", variant="engine-int8", mode=BUCKETED),
]


def found(name: str, **of: str) -> list[Factor]:
    return [
        factor
        for factor in improvement_factors(CELLS)
        if factor.name == name and all(getattr(factor.of, k) == v for k, v in of.items())
    ]


@pytest.mark.parametrize(
    ("name", "model", "expected", "exercise"),
    [
        ("architecture", "mqa", 2.0, 1.47),  # 20/10, 30/20, 60/30
        ("architecture", "gqa", 1.0, None),  # 15/10, 20/20, 30/30
        ("precision", "mha", 3.0, 2.64),  # 30/10, 60/20, 60/30
        ("combined", "mqa", 4.0, 3.10),
    ],
)
def test_the_exercises_factors_are_ratios_round_by_round(
    name: str, model: str, expected: float, exercise: float | None
) -> None:
    (factor,) = found(name, model=model)
    assert factor.ratio.median == pytest.approx(expected)
    assert factor.exercise == exercise
    assert (factor.against.model, factor.against.variant) == ("mha", EAGER_FP32)


def test_a_bucketed_engine_is_compared_with_both_baselines() -> None:
    padded, bucketed = found("engine", model="mqa")
    assert (padded.against.mode, bucketed.against.mode) == (PADDED, BUCKETED)
    assert padded.ratio.median == pytest.approx(8.0)  # 8, 10, 8
    assert bucketed.ratio.median == pytest.approx(5.0)  # 2, 5, 6


def test_what_was_not_measured_has_no_factor() -> None:
    failed = Cell(**{**CELLS[0].to_json(), "samples_per_s": None, "failed": "it died"})
    assert improvement_factors([failed, *CELLS[2:]]) == []


def test_the_exercises_numbers_stand_at_its_batch_alone() -> None:
    smaller = [Cell(**{**vars(item), "batch": 16}) for item in CELLS]
    factors = improvement_factors([*smaller, *CELLS])
    assert {factor.batch for factor in factors if factor.exercise} == {64}
    assert len(factors) == 2 * len(improvement_factors(CELLS))


def test_memory_saved_is_a_share_of_mha() -> None:
    peaks = {"mha": 800.0, "gqa": 900.0, "mqa": 600.0}
    cells = [sample_cell(1.0, model=model, peak_mib=peak) for model, peak in peaks.items()]
    found = memory_savings(cells)
    assert [(saving.model, saving.exercise) for saving in found] == [("gqa", None), ("mqa", 0.22)]
    assert [saving.share for saving in found] == pytest.approx([-0.125, 0.25])
    assert found[0].words == "eager GQA FP32 needs 12% more memory than MHA at batch 64, padded"
    assert found[1].words.endswith(
        "25% less memory than MHA at batch 64, padded (the source exercise: 22% less)"
    )
