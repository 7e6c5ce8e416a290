"""The steps of the GPU check, and the tasks that each is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

STEPS = {
    "host": "the machine, and the versions in both interpreters",
    "export": "portable bundles: three models in both lowerings, FP32 and FP16, golden files",
    "compile": "an FP32 and an FP16 engine of each, a profile per bucket, with the layer proof",
    "cache": "the same build again with its timing cache",
    "parity": "every engine against eager PyTorch: all masks and profiles, CUDA graphs on and off",
    "runtime": "graphs, threads, run_many, refusals, device memory, overhead",
    "opinion": "the same plans through Polygraphy's runner",
    "layers": "the time of each layer",
    "bench": "against eager PyTorch at batch 64, and run_many on real lengths",
    "padded": "latency and throughput over batch and length",
    "lean": "a version-compatible plan under the lean runtime",
}
MODELS = ("mha", "gqa", "mqa")
LOWERINGS = ("expand", "fold")
CHECKED = "mqa-fold"  # the bundle of the steps that take one
COMPARED = ("mha-fold", "mqa-fold")  # those of the measurements
SMALL_OPTIONS = {
    "mha": {},
    "gqa": {"num_kv_heads": 2},
    "mqa": {},
}
SMALL = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "vocab_size": 200}
BUCKETS, SMALL_BUCKETS = 6, 2
PADDED_LENGTHS = (16, 32, 64, 128)
PADDED_BATCHES = (1, 8, 32, 64, 128)
BUILD_SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "gpu_check_build.py"

Side = Literal["torch", "engine"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for.

    Args:
        work: the folder of bundles and of the results of finished tasks.
        small: models of two layers, for a rehearsal.
        data: a file of real requests for the bench.
    """

    torch_python: str
    engine_python: str
    work: Path
    small: bool = False
    data: Path | None = None

    def bundle(self, name: str) -> str:
        """The folder of a bundle."""
        return str(self.work / "bundles" / name)

    def further_cases(self, name: str) -> str:
        """The file of a bundle's further cases."""
        return str(self.work / "cases" / f"{name}.npz")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One child process, whose result is kept.

    Args:
        side: the interpreter that runs it.
        program: a module of this folder, or the build script with what it does.
        gates: what it measures.
        needs: tasks that must have run to their end before.
        is_repeated: run on every call; cheap.
    """

    step: str
    name: str
    side: Side
    program: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    gates: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    is_repeated: bool = False

    def command(self, plan: Plan) -> list[str]:
        """The whole command line."""
        python = plan.torch_python if self.side == "torch" else plan.engine_python
        return [python, *self.program, json.dumps(self.settings)]


def module(name: str) -> tuple[str, str]:
    """A program that is a module of this folder."""
    return "-m", f"attn_export.benchmarks.gpu_check_{name}"


def build(what: str) -> tuple[str, str]:
    """A program that exports or compiles."""
    return str(BUILD_SCRIPT), what


def all_tasks(plan: Plan) -> list[Task]:
    """Every task, in order."""
    names = [f"{model}-{lowering}" for model in MODELS for lowering in LOWERINGS]
    return [
        *_host(),
        *(_export(plan, name) for name in names),
        *(_compile(plan, name) for name in names),
        _cache(plan),
        *(_parity(plan, name) for name in names),
        *_runtime(plan),
        *(_of_bundle(plan, "opinion", name, gates=("opinion_mismatches",)) for name in COMPARED),
        *(_of_bundle(plan, "layers", name) for name in COMPARED),
        *(_bench(plan, name) for name in COMPARED),
        *(task for name in COMPARED for task in _padded(plan, name)),
        *_lean(plan),
    ]


def _host() -> Iterator[Task]:
    sides: tuple[Side, ...] = ("engine", "torch")
    for side in sides:
        yield Task(
            step="host",
            name=f"host {side}",
            side=side,
            program=module("host"),
            settings={"needs_gpu": side == "engine"},
            is_repeated=True,
        )


def _export(plan: Plan, name: str) -> Task:
    model, lowering = name.split("-")
    options = {**SMALL, **SMALL_OPTIONS[model]} if plan.small else {}
    return Task(
        step="export",
        name=f"export {name}",
        side="torch",
        program=build("export"),
        settings={
            "model": model,
            "options": options,
            "lowering": lowering,
            "buckets": SMALL_BUCKETS if plan.small else BUCKETS,
            "bundle": plan.bundle(name),
            "extra": plan.further_cases(name),
        },
        needs=("host torch",),
    )


def _compile(plan: Plan, name: str) -> Task:
    return Task(
        step="compile",
        name=f"compile {name}",
        side="engine",
        program=build("compile"),
        settings={"bundle": plan.bundle(name)},
        gates=("fp16_gemm_share", "fp16_time_ratio", "parity_failures"),
        needs=("host engine", f"export {name}"),
    )


def _cache(plan: Plan) -> Task:
    return Task(
        step="cache",
        name=f"cache {CHECKED}",
        side="engine",
        program=build("compile-again"),
        settings={
            "copy_of": plan.bundle(CHECKED),
            "bundle": plan.bundle(f"{CHECKED}-again"),
            "first": str(result_file(plan, f"compile {CHECKED}")),
        },
        gates=("cache_speedup",),
        needs=(f"compile {CHECKED}",),
    )


def _parity(plan: Plan, name: str) -> Task:
    return _of_bundle(
        plan,
        "parity",
        name,
        gates=("parity_failures",),
        settings={"extra": plan.further_cases(name)},
    )


def _runtime(plan: Plan) -> Iterator[Task]:
    single = f"{CHECKED}-one-profile"
    longest = {"batch": [1, 64, 64], "sequence": [1, 128, 128]}
    yield _of_bundle(
        plan,
        "runtime",
        CHECKED,
        gates=(
            "graph_mismatches",
            "capture_failures",
            "thread_mismatches",
            "run_many_mismatches",
            "not_refused",
        ),
    )
    yield Task(
        step="runtime",
        name=f"compile {single}",
        side="engine",
        program=build("compile"),
        settings={
            "copy_of": plan.bundle(CHECKED),
            "bundle": plan.bundle(single),
            "profiles": [longest],
        },
        gates=("parity_failures",),
        needs=(f"compile {CHECKED}",),
    )
    yield Task(
        step="runtime",
        name=f"memory {CHECKED}",
        side="engine",
        program=module("memory"),
        settings={"bundle": plan.bundle(CHECKED), "one_profile": plan.bundle(single)},
        gates=("memory_growth_mib", "profile_memory_ratio"),
        needs=(f"compile {CHECKED}", f"compile {single}"),
    )
    yield _of_bundle(
        plan, "runtime", CHECKED, gates=("overhead_us",), program="overhead", label="overhead"
    )


def _bench(plan: Plan, name: str) -> Task:
    return Task(
        step="bench",
        name=f"bench {name}",
        side="torch",
        program=module("bench"),
        settings={
            "bundle": plan.bundle(name),
            "eager_python": plan.torch_python,
            "engine_python": plan.engine_python,
            "data": str(plan.data.absolute()) if plan.data else None,
            "quick": plan.small,
        },
        gates=("padded_vs_eager_fp16", "padded_vs_eager_fp32", "bucketed_vs_padded"),
        needs=(f"compile {name}",),
    )


def _padded(plan: Plan, name: str) -> Iterator[Task]:
    made = f"{name}-padded"
    # A profile of its own for batch 1, where latency counts.
    profiles = [
        {"batch": batch, "sequence": [length] * 3}
        for length in PADDED_LENGTHS
        for batch in ([1, 1, 1], [2, 64, PADDED_BATCHES[-1]])
    ]
    yield Task(
        step="padded",
        name=f"compile {made}",
        side="engine",
        program=build("compile"),
        settings={
            "copy_of": plan.bundle(name),
            "bundle": plan.bundle(made),
            "profiles": profiles,
        },
        gates=("parity_failures",),
        needs=(f"compile {name}",),
    )
    yield Task(
        step="padded",
        name=f"padded {name}",
        side="engine",
        program=module("padded"),
        settings={
            "bundle": plan.bundle(made),
            "batches": PADDED_BATCHES[:2] if plan.small else PADDED_BATCHES,
            "lengths": PADDED_LENGTHS[:2] if plan.small else PADDED_LENGTHS,
            "seconds": 0.05 if plan.small else 1.0,
        },
        needs=(f"compile {made}",),
    )


def _lean(plan: Plan) -> Iterator[Task]:
    folder = str(plan.work / "lean")
    settings = {"bundle": plan.bundle(CHECKED), "folder": folder}
    yield Task(
        step="lean",
        name=f"compile {CHECKED}-lean",
        side="engine",
        program=module("lean_build"),
        settings=settings,
        needs=(f"compile {CHECKED}",),
    )
    sides: list[Side] = ["engine"]
    if plan.torch_python != plan.engine_python:
        sides.append("torch")
    for side in sides:
        yield Task(
            step="lean",
            name=f"lean {CHECKED} {side}",
            side=side,
            program=module("lean_run"),
            settings=settings,
            gates=("lean_mismatches",),
            needs=(f"compile {CHECKED}-lean",),
        )


def _of_bundle(
    plan: Plan,
    step: str,
    name: str,
    *,
    gates: tuple[str, ...] = (),
    settings: dict[str, Any] | None = None,
    program: str = "",
    label: str = "",
) -> Task:
    """A task of the engine's interpreter on one compiled bundle."""
    return Task(
        step=step,
        name=f"{label or step} {name}",
        side="engine",
        program=module(program or step),
        settings={"bundle": plan.bundle(name), **(settings or {})},
        gates=gates,
        needs=(f"compile {name}",),
    )


def result_file(plan: Plan, task: str) -> Path:
    """Where a task's result is kept."""
    return plan.work / "results" / f"{task.replace(' ', '-')}.json"
