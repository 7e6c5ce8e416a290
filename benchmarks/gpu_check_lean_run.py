"""GPU check, step lean: run the version-compatible plan with the lean runtime that is here."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.engines.profiles import Profile
from attn_export.engines.session import LoadOptions
from attn_export.engines.targets import require_gpu
from attn_export.engines.trt_lean import require_lean
from attn_export.engines.trt_session import open_plan

from .cases import load_reference
from .gpu_check_cases import largest_error, plan_of, within
from .gpu_check_child import Answer, answer
from .gpu_check_lean_build import CASES, PLANS, PRECISION
from .latency import measure_latency


def work(settings: dict[str, Any]) -> Answer:
    """Compare the plan in ``folder`` that suits with the native engine's outputs there."""
    bundle, folder = Bundle.open(settings["bundle"]), Path(settings["folder"])
    require_gpu()
    lean = require_lean()
    record = plan_of(bundle, PRECISION)
    built_by = record.environment["tensorrt"]
    if _numbers(lean.__version__) < _numbers(built_by):
        return {
            "skipped": f"the lean runtime here is {lean.__version__}, older than the TensorRT "
            f"{built_by} that built the plan; a version-compatible plan runs on newer ones"
        }
    # A plan without its runtime is for the lean runtime of the very version that built it.
    kind = "lean" if lean.__version__ == built_by else "embedded"
    graph = bundle.graph(record.graph)
    with closing(
        open_plan(
            (folder / PLANS[kind]).read_bytes(),
            inputs=[graph.typed(spec) for spec in bundle.manifest.inputs],
            outputs=[graph.typed(spec) for spec in bundle.manifest.outputs],
            profiles=[Profile.from_json(profile) for profile in record.profiles],
            options=LoadOptions(streams=1),
            lean=True,
            host_code=kind == "embedded",
        )
    ) as session:
        rows = []
        for case, wanted in load_reference(folder / CASES).pairs:
            got = session.run(case.feeds)
            agrees, worst = within(got, wanted, PRECISION), largest_error(got, wanted)
            rows.append({"case": case.name, "agrees": agrees, "max_abs": worst})
        found = measure_latency(session, 1, bundle.manifest.max_length)
    return {
        "values": {"lean_mismatches": sum(not row["agrees"] for row in rows)},
        "numbers": {
            "lean": lean.__version__,
            "plan": kind,
            "built_by": built_by,
            "lean_p50_ms": found.host_ms["p50"],
            "cases": rows,
        },
    }


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


if __name__ == "__main__":
    answer(work)
