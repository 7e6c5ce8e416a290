"""Who meets whom in a check, planned before anything is measured.

So a baseline that does not fit is refused before minutes have gone by.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from attn_export.bundle import Bundle
from attn_export.errors import UsageError
from attn_export.manifest import EngineRecord

from .baseline import Baseline, BuildBaseline, RecordedBaseline
from .candidates import BUCKETED, EAGER_PADDED, Settings
from .check_decision import Question
from .check_report import GateResult, skipped_result
from .devices import GPU, TorchCuda, device_of, eager_device
from .duel import Contestant
from .interpreter import this_interpreter
from .judge import is_widened
from .torch_probe import probe_torch

SPEEDUP, REGRESSION = "speedup", "regression"
BATCH_SIZE = 64  # of eager PyTorch's padded batches, as in 'attn-export bench'
WIDENED = "a CPU computes FP16 in FP32, so load() takes another engine; name it with --engine"


@dataclass(frozen=True, kw_only=True)
class SpeedGates:
    """What is asked for.

    Args:
        min_speedup: how many times eager PyTorch FP32, padded to the maximum, or None.
        max_regression: the largest share of the baseline's samples/s that may be lost.
    """

    min_speedup: float | None = None
    baseline: Baseline | None = None
    max_regression: float = 0.05

    @property
    def names(self) -> list[str]:
        """The gates that were asked for."""
        asked = {SPEEDUP: self.min_speedup, REGRESSION: self.baseline}
        return [name for name, value in asked.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class Duel:
    """An engine, its opponent, and what is asked of the two."""

    engine: str
    pair: tuple[Contestant, Contestant]
    questions: list[Question]

    def is_settled(self, ratios: Sequence[float]) -> bool:
        """Whether more rounds would change no verdict."""
        return all(q.answer(q.counted(ratios)) != "inconclusive" for q in self.questions)


def common_settings(*, allow_host_code: bool) -> Settings:
    """Eager PyTorch's settings, and but for their names every engine's: all CPUs there are."""
    return Settings(
        candidate=EAGER_PADDED,
        engine=None,
        threads=len(os.sched_getaffinity(0)),
        batch_size=BATCH_SIZE,
        allow_host_code=allow_host_code,
    )


class SpeedPlan:
    """The duels of some engines.

    Args:
        chosen: the engines; ``named`` says that they were asked for by name.

    Attributes:
        duels: to run.
        verdicts: of gates that do not apply, and of engines that the baseline has and this bundle
            does not.

    Raises:
        UsageError: if the baseline knows none of the engines, or holds too few rounds of one.
    """

    def __init__(
        self,
        bundle: Bundle,
        gates: SpeedGates,
        chosen: Mapping[str, EngineRecord],
        *,
        named: bool,
        common: Settings,
    ) -> None:
        self._bundle, self._gates, self._named = bundle, gates, named
        self._floor = 1 - gates.max_regression
        self.duels: list[Duel] = []
        self.verdicts: list[GateResult] = []
        served = {n: r for n, r in chosen.items() if named or not is_widened(r)}
        for gate in gates.names:
            self.verdicts += [skipped_result(gate, n, WIDENED) for n in chosen if n not in served]
        compared = self._compared(list(served))
        torch = TorchCuda(available=False)
        if any(device_of(record) == GPU for record in served.values()):
            torch = probe_torch(this_interpreter())
        for name, record in served.items():
            eager = replace(common, eager_device=eager_device(device_of(record), torch))
            self._against_eager(name, eager, is_compared=name in compared)
            if name in compared and isinstance(gates.baseline, BuildBaseline):
                self._against_build(name, eager, gates.baseline.bundle)

    def _compared(self, names: Sequence[str]) -> list[str]:
        """The engines that the baseline knows; the others are skipped."""
        baseline = self._gates.baseline
        if baseline is None or not names:
            return []
        known = [name for name in names if name in baseline.engines]
        if not known:
            raise UsageError(
                f"the baseline ({baseline.described}) has no engine {' or '.join(names)}; it has: "
                f"{', '.join(baseline.engines) or 'none'}"
            )
        if not self._named:
            self.verdicts += [_lost(n, baseline) for n in baseline.engines if self._is_lost(n)]
        missing = f"the baseline ({baseline.described}) has no such engine"
        self.verdicts += [skipped_result(REGRESSION, n, missing) for n in names if n not in known]
        return known

    def _is_lost(self, name: str) -> bool:
        """Whether nothing of that name is left to compare."""
        return name not in self._bundle.manifest.engines

    def _against_eager(self, name: str, eager: Settings, *, is_compared: bool) -> None:
        """What eager PyTorch in this run can tell: the speed-up, and the change of its ratio."""
        engine = replace(eager, candidate=BUCKETED, engine=name)
        samples: tuple[int | None, int | None] = (None, None)
        questions = []
        if self._gates.min_speedup is not None:
            questions.append(Question(gate=SPEEDUP, limit=self._gates.min_speedup))
        baseline = self._gates.baseline
        if is_compared and isinstance(baseline, RecordedBaseline):
            unit = baseline.ratio(engine, eager)
            questions.append(Question(gate=REGRESSION, limit=self._floor, unit=unit))
            there = baseline.pair(engine, eager)
            samples = (there[0].prepared.samples, there[1].prepared.samples)
        if questions:
            pair = (
                self._contestant(name, engine, samples[0]),
                self._contestant(eager.name, eager, samples[1]),
            )
            self.duels.append(Duel(engine=name, pair=pair, questions=questions))

    def _against_build(self, name: str, eager: Settings, other: Bundle) -> None:
        engine = replace(eager, candidate=BUCKETED, engine=name)
        opponent = Contestant(name=f"{name} (baseline)", bundle=other, settings=engine)
        question = Question(gate=REGRESSION, limit=self._floor)
        pair = (self._contestant(name, engine, None), opponent)
        self.duels.append(Duel(engine=name, pair=pair, questions=[question]))

    def _contestant(self, name: str, settings: Settings, samples: int | None) -> Contestant:
        return Contestant(name=name, bundle=self._bundle, settings=settings, samples=samples)


def _lost(name: str, baseline: Baseline) -> GateResult:
    text = f"the baseline ({baseline.described}) has this engine, and the bundle has not"
    return GateResult(gate=REGRESSION, engine=name, verdict="fail", text=text)
