"""How long one full batch of each bucket takes: what ``load`` chooses an engine by."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from attn_export.errors import BuildFailed, HostError, InputError

from .feeds import seeded_feeds
from .fitting import run_all_fitted, run_fitted
from .profiles import largest_batches
from .session import Session

RUNS = 5  # the first is the warm-up; the second captures a CUDA graph where there are any


def time_buckets(session: Session, precision: str, *, at_a_time: int = 1) -> list[dict[str, Any]]:
    """Run each bucket at its edge; the edge (tokens), the batch, and the best time in ms.

    Args:
        at_a_time: batches that run beside each other and share the time; 1: each has the whole
            device.

    Raises:
        BuildFailed: if the engine fails at a shape that it was made for.
    """
    largest = largest_batches(session.profiles) or (session.batch_tokens,) * len(session.buckets)
    times = []
    for edge, most in zip(session.buckets, largest, strict=True):
        batch = max(1, min(most, session.batch_tokens // edge))
        feeds = seeded_feeds(session.inputs, batch, edge)
        try:
            ms = min(_ms(session, feeds, at_a_time) for _ in range(RUNS))
        except (HostError, InputError) as error:
            raise BuildFailed(
                f"the {precision} engine fails at batch {batch}, {edge} tokens: {error}"
            ) from error
        times.append({"edge": edge, "batch": batch, "ms": round(ms, 3)})
    return times


def _ms(session: Session, feeds: Any, at_a_time: int) -> float:
    start = time.perf_counter()
    if at_a_time == 1:
        run_fitted(session, feeds)
    else:
        deque(run_all_fitted(session, [feeds] * at_a_time), maxlen=0)
    return (time.perf_counter() - start) * 1e3 / at_a_time
