"""One command for a GPU host: prove and measure the whole TensorRT path, and write the results.

Each task is a process of its own, in one of two interpreters that meet in files: one with torch
(exports, eager baselines) and one with TensorRT. What a task found is kept in the work folder, so
that a later call goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .gpu_check_gates import GATES
from .gpu_check_report import in_order, results_folder, write_results
from .gpu_check_runner import run_tasks
from .gpu_check_tasks import STEPS, Plan, Task, all_tasks

WORK = Path("build/gpu-check")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if every gate was measured and holds (optional ones may be missing), else 1."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.list:
        _print(*(f"{step:8} {title}" for step, title in STEPS.items()))
        return 0
    plan = Plan(
        torch_python=asked.torch_python,
        engine_python=asked.engine_python,
        work=(asked.work or WORK.with_name(WORK.name + "-small" * asked.small)).absolute(),
        small=asked.small,
        data=asked.data,
    )
    steps = asked.steps.split(",") if asked.steps else list(STEPS)
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}; there are: {', '.join(STEPS)}")
    tasks = [task for task in all_tasks(plan) if task.step in {"host", *steps}]
    if asked.dry_run:
        _print(*(line for task in tasks for line in _described(task, plan)))
        return 0
    start = time.monotonic()
    # Where calls are limited in time, the task at work must not go on alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        outcomes = run_tasks(plan, tasks, lambda text: _say(text, start))
    except KeyboardInterrupt:
        _say("stopped; the same call goes on from here", start)
        return 128 + signal.SIGINT
    folder = asked.out or results_folder(outcomes)
    write_results(folder, plan, outcomes)
    _print(f"{folder / 'report.md'}: {'all gates hold' if in_order(outcomes) else 'NOT IN ORDER'}")
    return 0 if in_order(outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__.split("\n")[0])
    here = sys.executable
    parser.add_argument("--torch-python", default=here, help="interpreter with torch and onnx")
    parser.add_argument("--engine-python", default=here, help="interpreter with TensorRT")
    parser.add_argument("--work", type=Path, help=f"bundles and kept results ({WORK})")
    parser.add_argument("--out", type=Path, help="the report (benchmarks/results/<gpu>-...)")
    parser.add_argument("--steps", help="some steps only, with commas; host always runs")
    parser.add_argument("--data", type=Path, help="real requests for the bench (.jsonl, .npz)")
    parser.add_argument("--small", action="store_true", help="tiny models: a rehearsal")
    parser.add_argument("--dry-run", action="store_true", help="show what would run")
    parser.add_argument("--list", action="store_true", help="show the steps")
    return parser


def _described(task: Task, plan: Plan) -> list[str]:
    lines = [f"{task.name}", f"    {shlex.join(task.command(plan))}"]
    lines += [f"    gate: {GATES[name].meaning}: {GATES[name]}" for name in task.gates]
    return lines


def _say(text: str, start: float) -> None:
    sys.stderr.write(f"[{time.monotonic() - start:6.1f} s] {text}\n")
    sys.stderr.flush()


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
