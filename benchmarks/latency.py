"""One batch at a time: how long a caller waits, and how much of that the GPU works."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.profiles import fitting_shape
from attn_export.engines.session import Feeds, Session
from attn_export.spec import TensorSpec

from .stats import percentiles

RUNS = 200
LEAST_RUNS = 10
# Until its CUDA graph is there and the clocks are up.
WARM_UP = 20
BINS = 30


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often a call took how long.

    Args:
        edges_ms: one more than there are counts; each the same factor above the one before.
        counts: calls from an edge up to the next one; the last edge belongs to the last count.
    """

    edges_ms: list[float]
    counts: list[int]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The latency of batches of one shape, [``batch``, ``length``].

    Args:
        host_ms: p50, p90 and p99 of a call, from arrays on the host to arrays on the host.
        histogram: of the same times.
        device_ms: p50, p90 and p99 of the device's work, copies included; None where it is not
            told.
        overhead_us: the median of a call's time less the device's, in microseconds.
    """

    batch: int
    length: int
    runs: int
    host_ms: dict[str, float]
    histogram: Histogram
    device_ms: dict[str, float] | None = None
    overhead_us: float | None = None


def measure_latency(
    session: Session, batch: int, length: int, runs: int = RUNS, limit_s: float = float("inf")
) -> Latency:
    """Time batches one after the other; the shape grows to what a profile takes.

    A session with ``run_timed`` is asked for the device's time in every second run, so that the
    calls that are timed on the host hold no events.

    Args:
        limit_s: fewer runs, but at least 10, where all would take longer.

    Raises:
        AttnExportError: as the session's ``run`` does.
    """
    if session.profiles:
        batch, length = fitting_shape(session.profiles, batch, length)
    feeds = seeded_feeds(session.inputs, batch, length)
    run_timed: Callable[[Feeds], tuple[Any, float]] | None = getattr(session, "run_timed", None)
    device: list[float] = []

    def between() -> None:
        if run_timed:
            device.append(run_timed(feeds)[1])

    host = _times_ms(lambda: session.run(feeds), runs, limit_s, between)
    device = device[-len(host) :]
    return Latency(
        batch=batch,
        length=length,
        runs=len(host),
        host_ms=percentiles(host),
        histogram=histogram(host),
        device_ms=percentiles(device) if run_timed else None,
        overhead_us=float(np.median(np.subtract(host, device))) * 1e3 if run_timed else None,
    )


def measure_call_latency(
    call: Callable[[Feeds], object],
    inputs: Sequence[TensorSpec],
    batch: int,
    length: int,
    *,
    runs: int = RUNS,
    limit_s: float = float("inf"),
) -> Latency:
    """The same of anything that answers a batch, where there is no session: eager PyTorch."""
    feeds = seeded_feeds(list(inputs), batch, length)
    host = _times_ms(lambda: call(feeds), runs, limit_s, lambda: None)
    return Latency(
        batch=batch,
        length=length,
        runs=len(host),
        host_ms=percentiles(host),
        histogram=histogram(host),
    )


def histogram(values: Sequence[float], bins: int = BINS) -> Histogram:
    """Counts between edges that are evenly spaced on a log scale, from the least to the most.

    Equal values give one bin from them to a millionth more.
    """
    low, high = min(values), max(values)
    if low == high:
        return Histogram(edges_ms=[low, low * (1 + 1e-6)], counts=[len(values)])
    edges = np.geomspace(low, high, bins + 1)
    edges[0], edges[-1] = low, high  # rounding must lose no value
    counts, _ = np.histogram(values, edges)
    return Histogram(edges_ms=edges.tolist(), counts=counts.tolist())


def _times_ms(
    call: Callable[[], object], runs: int, limit_s: float, between: Callable[[], None]
) -> list[float]:
    """Time a call often, after untimed ones for a tenth of the limit or 20."""
    start = time.monotonic()
    for _ in range(WARM_UP):
        call()
        between()
        if time.monotonic() - start > limit_s / 10:
            break
    end = time.monotonic() + limit_s
    times: list[float] = []
    while len(times) < runs and (len(times) < LEAST_RUNS or time.monotonic() < end):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
        between()
    return times
