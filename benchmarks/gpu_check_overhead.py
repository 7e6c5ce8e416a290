"""GPU check, step runtime: what a call costs beyond the device's work."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np

from attn_export.bundle import Bundle

from .gpu_check_cases import open_session, plan_of
from .gpu_check_child import Answer, answer
from .latency import measure_latency
from .workload import synthetic_sequences


def work(settings: dict[str, Any]) -> Answer:
    """Time one sequence of the median length on the FP16 engine of ``bundle``."""
    bundle = Bundle.open(settings["bundle"])
    sequences = synthetic_sequences(bundle.manifest.inputs, bundle.manifest.max_length)
    typical = int(np.median([len(ids) for ids in sequences]))
    with closing(open_session(bundle, plan_of(bundle, "fp16"))) as session:
        found = measure_latency(session, 1, typical)
    return {"values": {"overhead_us": found.overhead_us}, "numbers": asdict(found)}


if __name__ == "__main__":
    answer(work)
