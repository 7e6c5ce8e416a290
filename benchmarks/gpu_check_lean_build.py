"""GPU check, step lean: build version-compatible plans, and run the native one beside them.

One is for the lean runtime of this version, one carries it and is for newer runtimes too. They are
not opened here: the lean runtime that takes them may be in another interpreter.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from attn_export.bundle import CACHE, Bundle, write_atomic
from attn_export.engines.profiles import Profile
from attn_export.engines.session import CompileOptions
from attn_export.engines.targets import require_gpu
from attn_export.engines.trt_api import is_strongly_typed, require_tensorrt
from attn_export.engines.trt_builder import BuildRequest, BuiltPlan, build_plan
from attn_export.manifest import EngineRecord

from .cases import Case, save_reference
from .gpu_check_cases import open_session, padded_feeds, plan_of, profile_shapes
from .gpu_check_child import Answer, answer, say
from .latency import measure_latency

PLANS = {"lean": "model.lean.plan", "embedded": "model.embedded.plan"}
CASES = "cases.npz"
PRECISION = "fp16"


def work(settings: dict[str, Any]) -> Answer:
    """Write the plans, and the native engine's outputs on every profile, into ``folder``."""
    bundle, folder = Bundle.open(settings["bundle"]), Path(settings["folder"])
    record = plan_of(bundle, PRECISION)
    built = {}
    for kind, name in PLANS.items():
        say(f"building the version-compatible plan: {kind}")
        built[kind] = _build(bundle, record, kind)
        write_atomic(folder / name, built[kind].plan)
    say("running the native plan")
    native = _run_native(bundle, record, folder)
    size = bundle.manifest.shipped(record).bytes
    return {
        "numbers": {
            "tensorrt": built["lean"].version,
            "flags": {kind: list(plan.flags) for kind, plan in built.items()},
            "build_s": {kind: plan.seconds for kind, plan in built.items()},
            "plan_mib": {kind: len(plan.plan) / 2**20 for kind, plan in built.items()},
            "native_plan_mib": size / 2**20,
            **native,
        }
    }


def _build(bundle: Bundle, record: EngineRecord, kind: Any) -> BuiltPlan:
    gpu = require_gpu()
    typed = is_strongly_typed(require_tensorrt())
    asked = bundle.graph(record.graph)
    source = asked if typed else bundle.graph("fp32")
    options = CompileOptions(version_compatible=kind, cache=bundle.directory / CACHE, say=say)
    return build_plan(
        BuildRequest(
            graph=bundle.verify_graph(source),
            precision=record.precision,
            typed=typed,
            keep_fp32=asked.keep_fp32,
            fp16_io=asked.fp16_io,
            profiles=[Profile.from_json(profile) for profile in record.profiles],
            inputs=[asked.typed(spec) for spec in bundle.manifest.inputs],
            outputs=[asked.typed(spec) for spec in bundle.manifest.outputs],
            options=options,
            gpu=gpu,
        )
    )


def _run_native(bundle: Bundle, record: EngineRecord, folder: Path) -> dict[str, Any]:
    """Keep the native engine's outputs as a file of cases; its latency at batch 1."""
    rng = np.random.default_rng(0)
    with closing(open_session(bundle, record)) as session:
        cases, outputs = [], []
        for batch, length in profile_shapes(session.profiles):
            feeds = padded_feeds(session.inputs, batch, length, rng)
            name = f"b{batch}-s{length}"
            cases.append(Case(name=name, batch=batch, length=length, mask="right", feeds=feeds))
            outputs.append(session.run(feeds))
        save_reference(folder / CASES, cases, outputs)
        found = measure_latency(session, 1, bundle.manifest.max_length)
    return {"native_p50_ms": found.host_ms["p50"], "length": found.length}


if __name__ == "__main__":
    answer(work)
