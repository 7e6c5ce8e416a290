"""Run the tasks of the GPU check, each in a process of its own, and keep what came of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import attn_export

from .gpu_check_outcome import Outcome, read_outcome, write_outcome
from .gpu_check_tasks import Plan, Task, result_file

LIMIT_S = 3600.0
HEARTBEAT_S = 30.0
TAIL_LINES = 12

Say = Callable[[str], None]


def run_tasks(plan: Plan, tasks: Sequence[Task], say: Say) -> list[Outcome]:
    """Run tasks in order; one that fails stops only those that need it.

    A task that ran to its end in an earlier call is not run again, as long as its command and
    what it was built on are the same.
    """
    outcomes: dict[str, Outcome] = {}
    for task in tasks:
        known = {
            need: outcomes.get(need) or read_outcome(result_file(plan, need)) for need in task.needs
        }
        kept = read_outcome(result_file(plan, task.name))
        if kept is not None and _is_valid(kept, task, plan, known):
            say(f"{task.name}: {kept.state}, kept from an earlier call")
            outcomes[task.name] = kept
            continue
        outcome = _run(plan, task, known, say)
        write_outcome(result_file(plan, task.name), outcome)
        say(f"{task.name}: {_line(outcome)}")
        outcomes[task.name] = outcome
    return list(outcomes.values())


def _is_valid(kept: Outcome, task: Task, plan: Plan, known: Mapping[str, Outcome | None]) -> bool:
    same = kept.command == task.command(plan) and kept.built_on == _identities(known)
    return kept.is_finished and same and not task.is_repeated


def _identities(known: Mapping[str, Outcome | None]) -> dict[str, str]:
    return {name: outcome.identity if outcome else "" for name, outcome in known.items()}


def _line(outcome: Outcome) -> str:
    reason = outcome.skipped or outcome.error or ""
    short = f": {reason.splitlines()[0]}" if reason else ""
    return f"{outcome.state}, {outcome.seconds:.1f} s{short}"


def _run(plan: Plan, task: Task, known: Mapping[str, Outcome | None], say: Say) -> Outcome:
    blank = Outcome(
        step=task.step,
        name=task.name,
        command=task.command(plan),
        seconds=0.0,
        gates=list(task.gates),
        built_on=_identities(known),
    )
    for need, outcome in known.items():
        if outcome is None or not outcome.is_finished:
            what = "has not run" if outcome is None else f"is not done ({outcome.state})"
            return replace(blank, skipped=f"it needs {need!r}, which {what}")
    say(f"{task.name}: running")
    start = time.monotonic()
    answer = _ask(plan, task, say)
    numbers = answer.get("numbers", {})
    return replace(
        blank,
        seconds=time.monotonic() - start,
        values={k: v for k, v in answer.get("values", {}).items() if k in task.gates},
        unmeasured=answer.get("unmeasured", {}),
        numbers=numbers,
        error=answer.get("error"),
        skipped=answer.get("skipped"),
        # A task that runs on every call is what it found, not when it ran.
        identity=json.dumps(numbers["identity"]) if task.is_repeated and numbers else _now(),
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.monotonic_ns()}"


def _ask(plan: Plan, task: Task, say: Say) -> dict[str, Any]:
    """Run the child; its answer, or an error made of how it ended."""
    log = plan.work / "logs" / f"{task.name.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    output = log.with_suffix(".answer")
    try:
        with log.open("w", encoding="utf-8") as errors, output.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(
                task.command(plan), stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=_env()
            )
            code = _wait(process, task, log, say)
    except OSError as error:
        return {"error": f"the interpreter cannot be started: {error}"}
    if code is None:
        return {"error": f"it took longer than {LIMIT_S:.0f} s and was ended; see {log}"}
    try:
        answer: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    except ValueError:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return {"error": "\n".join([f"its process {how}; see {log}", *_tail(log)])}
    finally:
        output.unlink()
    return answer


def _wait(process: subprocess.Popen[bytes], task: Task, log: Path, say: Say) -> int | None:
    """The exit code, or None after the time limit; the process has ended in any case."""
    deadline = time.monotonic() + LIMIT_S
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(HEARTBEAT_S)
            say(f"{task.name}: {(_tail(log) or ['still running'])[-1]}")
        return None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _tail(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]


def _env() -> dict[str, str]:
    """This source tree first, then what the caller has on the path."""
    source = str(Path(attn_export.__file__).resolve().parent.parent)
    given = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, given]))}
