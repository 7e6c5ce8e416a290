"""The gates on speed: run the planned duels and say what they show."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from attn_export.errors import AttnExportError

from .check_decision import EXACTLY_ONE, Question
from .check_plan import Duel
from .check_report import GateResult, failed_result, skipped_result
from .duel import DuelResult, run_duel
from .rounds import Say
from .stats import coefficient_of_variation
from .workload import Ids


def run_duels(
    duels: Sequence[Duel], sequences: Sequence[Ids], *, unable: Mapping[str, str], say: Say
) -> list[GateResult]:
    """The verdicts; a contestant that crashes or hangs does not keep the others from theirs.

    Args:
        unable: engines that this host cannot run, and why.
        say: told each step.
    """
    results = []
    for duel in duels:
        gates = [question.gate for question in duel.questions]
        if duel.engine in unable:
            results += [skipped_result(gate, duel.engine, unable[duel.engine]) for gate in gates]
            continue
        try:
            found = run_duel(duel.pair, sequences, settled=duel.is_settled, say=say)
        except AttnExportError as error:
            say(f"failed: {error}")
            results += [failed_result(gate, duel.engine, error) for gate in gates]
            continue
        results += [_result(duel, question, found) for question in duel.questions]
    return results


def _result(duel: Duel, question: Question, found: DuelResult) -> GateResult:
    first, second = duel.pair
    ratios = question.counted(found.ratios)
    ratio, noise = question.ratio(ratios), coefficient_of_variation(ratios)
    medians = [statistics.median(rates) for rates in found.rates]
    against = second.name
    if question.unit != EXACTLY_ONE:
        against = f"the recorded {question.unit.median:.2f} times {second.name}"
    return GateResult(
        gate=question.gate,
        engine=duel.engine,
        verdict=question.answer(ratios),
        text=f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times {against}, to exceed "
        f"{question.limit:g}; {len(ratios)} rounds, noise {noise:.1%}",
        ratio=ratio,
        limit=question.limit,
        ratios=[*ratios],
        noise=noise,
        samples_per_s={first.name: medians[0], second.name: medians[1]},
        seconds=found.seconds,
    )
