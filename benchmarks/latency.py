"""One batch at a time: how long a caller waits, and how much of that the GPU works."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.profiles import fitting_shape
from attn_export.engines.session import Feeds, Session

from .stats import percentiles

RUNS = 200
# Until its CUDA graph is there and the clocks are up.
WARM_UP = 20


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The latency of batches of one shape, [``batch``, ``length``].

    Args:
        host_ms: p50, p90 and p99 of a call, from arrays on the host to arrays on the host.
        device_ms: the same of the device's work, copies included; None where it is not told.
        overhead_us: the median of a call's time less the device's, in microseconds.
    """

    batch: int
    length: int
    runs: int
    host_ms: dict[str, float]
    device_ms: dict[str, float] | None
    overhead_us: float | None


def measure_latency(session: Session, batch: int, length: int, runs: int = RUNS) -> Latency:
    """Time batches one after the other; the shape grows to what a profile takes.

    A session with ``run_timed`` is asked for the device's time in every second run, so that the
    calls that are timed on the host hold no events.

    Raises:
        AttnExportError: as the session's ``run`` does.
    """
    if session.profiles:
        batch, length = fitting_shape(session.profiles, batch, length)
    feeds = seeded_feeds(session.inputs, batch, length)
    run_timed: Callable[[Feeds], tuple[Any, float]] | None = getattr(session, "run_timed", None)
    host, device = [], []
    for number in range(WARM_UP + runs):
        ms = _timed_ms(session, feeds)
        device_ms = run_timed(feeds)[1] if run_timed else 0.0
        if number >= WARM_UP:
            host.append(ms)
            device.append(device_ms)
    return Latency(
        batch=batch,
        length=length,
        runs=runs,
        host_ms=percentiles(host),
        device_ms=percentiles(device) if run_timed else None,
        overhead_us=float(np.median(np.subtract(host, device))) * 1e3 if run_timed else None,
    )


def _timed_ms(session: Session, feeds: Feeds) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return (time.perf_counter() - start) * 1e3
