"""GPU check, step opinion: the same plan through Polygraphy's runner, which shares no code of ours.

The plan is the same, so its outputs should be too; the verdict allows the precision's tolerance.
"""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import closing
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.manifest import EngineRecord

from .gpu_check_cases import (
    largest_error,
    open_session,
    padded_feeds,
    plans,
    profile_shapes,
    same_bits,
    within,
)
from .gpu_check_child import Answer, answer, say


def work(settings: dict[str, Any]) -> Answer:
    """Compare every engine of ``bundle`` on every profile's least, optimal and largest shape."""
    if importlib.util.find_spec("polygraphy") is None:
        return {"skipped": "Polygraphy is not in the engine's interpreter: pip install polygraphy"}
    polygraphy = importlib.import_module("polygraphy.backend.trt")
    bundle = Bundle.open(settings["bundle"])
    rows = []
    for name, record in plans(bundle).items():
        say(name)
        rows += _compare(polygraphy, bundle, record)
    disagree = sum(not row["agrees"] for row in rows)
    return {"values": {"opinion_mismatches": disagree}, "numbers": {"shapes": rows}}


def _compare(polygraphy: Any, bundle: Bundle, record: EngineRecord) -> list[dict[str, Any]]:
    path = bundle.verify(bundle.manifest.shipped(record))
    load = polygraphy.EngineFromBytes(path.read_bytes())
    rng = np.random.default_rng(0)
    rows = []
    with closing(open_session(bundle, record)) as session:
        for index, profile in enumerate(session.profiles):
            with polygraphy.TrtRunner(load, optimization_profile=index) as runner:
                for batch, length in profile_shapes([profile]):
                    feeds = padded_feeds(session.inputs, batch, length, rng)
                    ours = session.run(feeds)
                    found = runner.infer(dict(feeds), check_inputs=True)
                    theirs = {name: np.array(found[name]) for name in ours}
                    rows.append(
                        {
                            "engine": record.name,
                            "profile": index,
                            "batch": batch,
                            "length": length,
                            "agrees": within(ours, theirs, record.precision),
                            "same_bits": same_bits(ours, theirs),
                            "max_abs": largest_error(ours, theirs),
                        }
                    )
    return rows


if __name__ == "__main__":
    answer(work)
