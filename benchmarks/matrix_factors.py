"""Improvement factors: what the architecture, the precision and the engine each bring.

Each ratio is taken round by round, as all ratios here are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .matrix_cell import BUCKETED, EAGER_AUTOCAST, EAGER_FP32, ENGINES, MODELS, PADDED, Cell, Place
from .stats import Interval, ratio_interval

ARCHITECTURE, PRECISION, COMBINED, ENGINE = "architecture", "precision", "combined", "engine"
# What the source exercise reports for eager MQA against MHA at batch 64, padded to 128 tokens.
EXERCISE = {ARCHITECTURE: 1.47, PRECISION: 2.64, COMBINED: 3.10}
EXERCISE_MEMORY = 0.22
EXERCISE_PLACE = Place(64, PADDED)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison."""

    model: str
    variant: str
    mode: str


@dataclass(frozen=True, kw_only=True)
class Factor:
    """How many times as many samples a second.

    Args:
        exercise: what the source exercise reports for the same comparison, or None.
    """

    name: str
    batch: int
    of: Side
    against: Side
    ratio: Interval
    exercise: float | None


@dataclass(frozen=True, kw_only=True)
class Saving:
    """How much less memory than MHA needs, both in eager FP32.

    Args:
        share: 0.25 is a quarter less; below 0 it is more.
    """

    model: str
    batch: int
    mode: str
    share: float
    exercise: float | None

    @property
    def words(self) -> str:
        """The share as a person says it."""
        word = "less" if self.share >= 0 else "more"
        told = f" (the source exercise: {self.exercise:.0%} less)" if self.exercise else ""
        return (
            f"eager {self.model.upper()} FP32 needs {abs(self.share):.0%} {word} memory than MHA "
            f"at batch {self.batch}, {self.mode}{told}"
        )


def improvement_factors(cells: Sequence[Cell]) -> list[Factor]:
    """All comparisons of which both sides were measured, by batch.

    * architecture: MQA and GQA over MHA, both eager FP32;
    * precision: MHA in autocast over FP32;
    * combined: MQA in autocast over MHA in FP32;
    * engine: each engine over eager MHA in FP32 padded to the maximum; bucketed engines also over
      eager MHA bucketed.
    """
    known = {(cell.model, cell.variant, cell.batch, cell.mode): cell for cell in cells}
    found = []
    for batch in sorted({cell.batch for cell in cells}):
        for name, of, against in _comparisons():
            left = known.get((of.model, of.variant, batch, of.mode))
            right = known.get((against.model, against.variant, batch, against.mode))
            if left is None or right is None or not (left.samples_per_s and right.samples_per_s):
                continue
            told = name in EXERCISE and of.model != "gqa" and Place(batch, of.mode)
            found.append(
                Factor(
                    name=name,
                    batch=batch,
                    of=of,
                    against=against,
                    ratio=ratio_interval(left.rounds, right.rounds),
                    exercise=EXERCISE[name] if told == EXERCISE_PLACE else None,
                )
            )
    return found


def memory_savings(cells: Sequence[Cell]) -> list[Saving]:
    """What MQA and GQA save against MHA, wherever both were measured."""
    peaks = {
        (cell.model, cell.batch, cell.mode): cell.peak_mib
        for cell in cells
        if cell.variant == EAGER_FP32 and cell.peak_mib
    }
    return [
        Saving(
            model=model,
            batch=batch,
            mode=mode,
            share=1 - peak / peaks["mha", batch, mode],
            exercise=EXERCISE_MEMORY if (model, (batch, mode)) == ("mqa", EXERCISE_PLACE) else None,
        )
        for (model, batch, mode), peak in peaks.items()
        if model != "mha" and ("mha", batch, mode) in peaks
    ]


def _comparisons() -> Iterator[tuple[str, Side, Side]]:
    for mode in (PADDED, BUCKETED):
        base = Side(model="mha", variant=EAGER_FP32, mode=mode)
        for model in ("mqa", "gqa"):
            yield ARCHITECTURE, Side(model=model, variant=EAGER_FP32, mode=mode), base
        yield PRECISION, Side(model="mha", variant=EAGER_AUTOCAST, mode=mode), base
        yield COMBINED, Side(model="mqa", variant=EAGER_AUTOCAST, mode=mode), base
    padded = Side(model="mha", variant=EAGER_FP32, mode=PADDED)
    bucketed = Side(model="mha", variant=EAGER_FP32, mode=BUCKETED)
    for variant in ENGINES.values():
        for model in MODELS:
            yield ENGINE, Side(model=model, variant=variant, mode=PADDED), padded
            yield ENGINE, Side(model=model, variant=variant, mode=BUCKETED), padded
            yield ENGINE, Side(model=model, variant=variant, mode=BUCKETED), bucketed
