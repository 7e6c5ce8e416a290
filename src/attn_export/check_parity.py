"""Parity as a gate of ``check``, in a process of its own: ``python -m attn_export.check_parity``.

An engine that crashes or hangs there does not take the check with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attn_export import build
from attn_export.benchmarks.answers import Answers, failure
from attn_export.benchmarks.check_report import GateResult, failed_result, skipped_result
from attn_export.benchmarks.judge import Run
from attn_export.benchmarks.metrics import Comparison
from attn_export.benchmarks.parity import EngineParity, ParityReport
from attn_export.benchmarks.process import Worker
from attn_export.bundle import Bundle
from attn_export.errors import AttnExportError, HostError

PARITY = "parity"
MODULE = "attn_export.check_parity"
# The whole matrix of cases, in eager PyTorch too: minutes for a large model on a small CPU.
LIMIT_S = 3600.0


def prove(
    bundle: Bundle, engines: Sequence[str], *, named: bool, allow_host_code: bool
) -> tuple[list[GateResult], list[str]]:
    """The verdicts of all engines in one pass; where one breaks that, of each engine by itself.

    Args:
        named: the engine was asked for by name, so that it may not be skipped.

    Returns:
        The verdicts, and what a reader must know of them.
    """
    asked = {"directory": str(bundle.directory), "allow_host_code": allow_host_code}
    try:
        return _in_a_process({**asked, "engine": engines[0] if named else None})
    except AttnExportError:
        each = [_by_itself({**asked, "engine": name}, named=named) for name in engines]
        return [result for results in each for result in results], []


def _by_itself(asked: dict[str, Any], *, named: bool) -> list[GateResult]:
    engine = asked["engine"]
    with Worker(f"{PARITY} of {engine}", module=MODULE) as worker:
        try:
            return _results(worker.ask({"do": PARITY, **asked}, LIMIT_S))
        except HostError as error:
            if named or worker.died:
                return [failed_result(PARITY, engine, error)]
            return [skipped_result(PARITY, engine, str(error))]
        except AttnExportError as error:
            return [failed_result(PARITY, engine, error)]


def _in_a_process(asked: dict[str, Any]) -> tuple[list[GateResult], list[str]]:
    with Worker(PARITY, module=MODULE) as worker:
        answer = worker.ask({"do": PARITY, **asked}, LIMIT_S)
    return _results(answer), answer["notes"]


def _results(answer: dict[str, Any]) -> list[GateResult]:
    return [GateResult(gate=PARITY, **found) for found in answer["results"]]


def main() -> None:
    """Answer one order."""
    answers = Answers()
    order = json.loads(sys.stdin.readline())
    try:
        report, note = build.parity(
            Path(order["directory"]),
            engine=order["engine"],
            reference="auto",
            tolerances=None,
            allow_host_code=order["allow_host_code"],
        )
    except AttnExportError as error:
        answers.send(failure(error))
        return
    answers.send({"results": verdicts_of(report), "notes": [note] if note else []})


def verdicts_of(report: ParityReport) -> list[dict[str, str]]:
    """Engine, verdict and text of each engine of a report."""
    found = [
        {
            "engine": engine.engine,
            "verdict": "pass" if engine.passed else "fail",
            "text": _text(engine, report),
        }
        for engine in report.engines
    ]
    skipped = report.skipped.items()
    return found + [{"engine": n, "verdict": "skipped", "text": reason} for n, reason in skipped]


def _text(engine: EngineParity, report: ParityReport) -> str:
    """The worst run's numbers, and what they are held against."""
    worst = max(
        (result for run in engine.runs for result in _held(run)),
        key=lambda result: (not result.passed, result.max_abs),
    )
    if worst.least_cosine is not None:
        said = (
            f"cosine {worst.cosine or 0.0:.4f} on {worst.output}, at least {worst.least_cosine:g}"
        )
    else:
        allowed = f"{worst.atol:g} + {worst.rtol:g}·|reference|"
        said = f"max abs {worst.max_abs:.1e} on {worst.output}, allowed {allowed}"
    if not engine.passed:
        said = f"{said}; {worst.reason}"
    return f"{said}; {report.cases} cases, {report.rows} rows against {report.reference}"


def _held(run: Run) -> list[Comparison]:
    """What a run's verdict rests on; masked rows need only be finite."""
    broken = [result for result in run.masked_rows if result.verdict not in ("pass", "fail")]
    return [*run.outputs, *broken]


if __name__ == "__main__":
    main()
