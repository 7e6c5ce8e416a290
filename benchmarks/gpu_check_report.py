"""The GPU check's report: JSON for machines, Markdown for people. Only what ran is in it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attn_export

from .gpu_check_gates import GATES
from .gpu_check_outcome import FAIL, PASS, Outcome
from .gpu_check_tables import TABLES, table
from .gpu_check_tasks import STEPS, Plan

RESULTS = Path(__file__).resolve().parent / "results"
UNKNOWN_HOST = "no-gpu"


def results_folder(outcomes: Sequence[Outcome], parent: Path = RESULTS) -> Path:
    """``<gpu>-<tensorrt>-<date>`` in the folder of results."""
    host = _host(outcomes)
    gpu = host.get("gpu", {}).get("name", UNKNOWN_HOST)
    parts = (gpu, host.get("tensorrt", ""), time.strftime("%Y-%m-%d"))
    slug = "-".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts if part)
    return parent / slug


def write_results(folder: Path, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """Write ``report.json`` and ``report.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "attn_export": attn_export.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "small": plan.small,
        "in_order": in_order(outcomes),
        "gates": {name: {"bound": str(g), "meaning": g.meaning} for name, g in GATES.items()},
        "tasks": [outcome.to_json() for outcome in outcomes],
    }
    (folder / "report.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(markdown(plan, outcomes))).rstrip() + "\n"
    (folder / "report.md").write_text(text, encoding="utf-8")


def in_order(outcomes: Sequence[Outcome]) -> bool:
    """Whether every gate was measured and holds, but for optional ones."""
    return bool(outcomes) and all(outcome.is_in_order for outcome in outcomes)


def markdown(plan: Plan, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The lines of the page: host, gates, tables, and what was not measured."""
    yield "# GPU check"
    yield ""
    yield from _host_lines(plan, outcomes)
    yield from _verdict(outcomes)
    yield "## Gates"
    yield ""
    yield from table(("task", "gate", "value", "bound", "verdict", "meaning"), _gates(outcomes))
    for step, title in STEPS.items():
        of_step = [o for o in outcomes if o.step == step and o.is_finished and o.numbers]
        if step in TABLES and of_step:
            yield f"## {step}: {title}"
            yield ""
            yield from TABLES[step](of_step)
            yield ""
    yield from _failures(outcomes)
    yield from _left_out(outcomes)


def _host(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    for outcome in outcomes:
        if outcome.name == "host engine":
            return outcome.numbers
    return {}


def _host_lines(plan: Plan, outcomes: Sequence[Outcome]) -> Iterator[str]:
    host = _host(outcomes)
    if "gpu" in host:
        gpu = host["gpu"]
        yield (
            f"{gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"{gpu['memory_mib']} MiB; TensorRT {host['tensorrt']}; driver for CUDA "
            f"{host['driver_cuda']}. attn-export {attn_export.__version__}."
        )
        if not re.search(r"\bT4\b", gpu["name"]):
            yield ""
            yield f"Measured on {gpu['name']}, not on a T4: nothing here says how fast a T4 is."
    else:
        yield "The GPU and TensorRT of this machine are not known: the step host did not succeed."
    if plan.small:
        yield ""
        yield "A rehearsal with models of two layers: its times say nothing about real models."
    yield ""
    rows = [("nvidia-smi " + key, value) for key, value in host.get("nvidia_smi", {}).items()]
    for outcome in outcomes:
        if outcome.step == "host" and outcome.numbers:
            numbers: Mapping[str, Any] = outcome.numbers
            packages = ", ".join(f"{k} {v}" for k, v in numbers["packages"].items())
            rows.append((f"{outcome.name}: Python {numbers['python']}", packages))
            rows.append(
                (f"{outcome.name}: system", f"{numbers['platform']}, {numbers['cpus']} CPUs")
            )
    yield from table(("host", ""), rows)


def _verdict(outcomes: Sequence[Outcome]) -> Iterator[str]:
    failed = sum(outcome.state == FAIL for outcome in outcomes)
    passed = sum(outcome.state == PASS for outcome in outcomes)
    left = len(outcomes) - failed - passed
    word = "All gates hold" if in_order(outcomes) else "Not all gates hold"
    yield f"**{word}**: {passed} tasks passed, {failed} failed, {left} did not run."
    yield ""


def _gates(outcomes: Sequence[Outcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        for name, value in outcome.values.items():
            gate = GATES[name]
            verdict = "pass" if gate.holds(value) else "**fail**"
            yield outcome.name, name, value, str(gate), verdict, gate.meaning


def _failures(outcomes: Sequence[Outcome]) -> Iterator[str]:
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        yield "## Failed before the end"
        yield ""
        for outcome in failed:
            first, *rest = str(outcome.error).splitlines() or [""]
            yield f"- {outcome.name}: {first}"
            if rest:
                yield from ("", *(f"      {line}" for line in rest), "")
        yield ""


def _left_out(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What did not run or was not measured, and why."""
    lines = [f"- {o.name}: {o.skipped}" for o in outcomes if o.skipped is not None]
    for outcome in outcomes:
        if outcome.is_finished:
            lines += [f"- {outcome.name}, {gate}: {why}" for gate, why in outcome.missing()]
    chosen = {outcome.step for outcome in outcomes}
    lines += [f"- the step {step} was not asked for" for step in STEPS if step not in chosen]
    if lines:
        yield "## What was not measured, and why"
        yield ""
        yield from lines
