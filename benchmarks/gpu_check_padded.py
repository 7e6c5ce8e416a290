"""GPU check, step padded: latency and throughput over batch and length, without any bucketing."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from attn_export.bundle import Bundle
from attn_export.engines.feeds import seeded_feeds

from .gpu_check_cases import open_session, plans
from .gpu_check_child import Answer, answer, say
from .latency import measure_latency

LEAST_RUNS, MOST_RUNS = 10, 200


def work(settings: dict[str, Any]) -> Answer:
    """Time ``batches`` x ``lengths`` on every engine of ``bundle``, about ``seconds`` each."""
    bundle = Bundle.open(settings["bundle"])
    rows = []
    for name, record in plans(bundle).items():
        with closing(open_session(bundle, record)) as session:
            for length in settings["lengths"]:
                for batch in settings["batches"]:
                    row = _measure(session, batch, length, settings["seconds"])
                    rows.append({"engine": name, "precision": record.precision, **row})
                    say(f"{name}, batch {batch}, {length} tokens: {row['p50_ms']:.3f} ms")
    return {"numbers": {"rows": rows}}


def _measure(session: Any, batch: int, length: int, seconds: float) -> dict[str, Any]:
    feeds = seeded_feeds(session.inputs, batch, length)
    session.run(feeds)
    start = time.perf_counter()
    session.run(feeds)
    runs = int(seconds / max(time.perf_counter() - start, 1e-6))
    found = measure_latency(session, batch, length, min(MOST_RUNS, max(LEAST_RUNS, runs)))
    return {
        "batch": found.batch,
        "length": found.length,
        "runs": found.runs,
        "p50_ms": found.host_ms["p50"],
        "p99_ms": found.host_ms["p99"],
        "device_ms": found.device_ms["p50"] if found.device_ms else None,
        "samples_per_s": found.batch / found.host_ms["p50"] * 1e3,
    }


if __name__ == "__main__":
    answer(work)
