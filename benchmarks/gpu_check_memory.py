"""GPU check, step runtime: device memory over many requests, and of many profiles."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.engines.cuda_runtime import MIB, call, require_cuda_runtime

from .gpu_check_cases import open_session, padded_feeds, plan_of, varied_shapes
from .gpu_check_child import Answer, answer, say

REQUESTS = 500
# More than an engine remembers, so that CUDA graphs are made and dropped all the time.
SHAPES = 100


def work(settings: dict[str, Any]) -> Answer:
    """Measure the FP16 engines of ``bundle`` and ``one_profile``."""
    bundle, single = Bundle.open(settings["bundle"]), Bundle.open(settings["one_profile"])
    open_session(single, plan_of(single, "fp16")).close()  # CUDA and TensorRT take their own first
    one = _resident_mib(single)
    every = _resident_mib(bundle)
    before, after = _growth_mib(bundle)
    values = {"memory_growth_mib": after}
    unmeasured = {}
    if one > 0:
        values["profile_memory_ratio"] = every / one
    else:
        unmeasured["profile_memory_ratio"] = "the driver shows no memory for the engine"
    numbers = {
        "all_profiles_mib": every,
        "one_profile_mib": one,
        "first_500_mib": before,
        "next_500_mib": after,
    }
    return {"values": values, "numbers": numbers, "unmeasured": unmeasured}


def _free_mib() -> float:
    cuda = require_cuda_runtime()
    call(cuda, "cudaDeviceSynchronize")
    free: int = call(cuda, "cudaMemGetInfo")  # the first of two: free, total
    return free / MIB


def _resident_mib(bundle: Bundle) -> float:
    """What the driver has given away for a loaded engine with one stream."""
    before = _free_mib()
    with closing(open_session(bundle, plan_of(bundle, "fp16"))):
        return before - _free_mib()


def _growth_mib(bundle: Bundle) -> tuple[float, float]:
    """Memory that varied requests added: the first 500, and the next 500."""
    rng = np.random.default_rng(0)
    with closing(open_session(bundle, plan_of(bundle, "fp16"))) as session:
        shapes = list(varied_shapes(session.profiles, SHAPES, rng))
        added = []
        for part in range(2):
            say(f"requests {part * REQUESTS + 1} to {(part + 1) * REQUESTS}")
            before = _free_mib()
            for index in rng.integers(0, SHAPES, REQUESTS):
                batch, length = shapes[int(index)]
                session.run(padded_feeds(session.inputs, batch, length, rng))
            added.append(before - _free_mib())
    return added[0], added[1]


if __name__ == "__main__":
    answer(work)
