"""How a peer runs the requests: sorted, in batches, in the best of the ways its maker offers."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from attn_export.engines.session import Feeds
from attn_export.errors import AttnExportError, BuildFailed

from .devices import GPU, Device
from .loops import Prepared
from .workload import Batches, Lengths, Workload, budget_batches, stratified

Outputs = dict[str, npt.NDArray[Any]]
RunBatch = Callable[[Feeds], Outputs]
RunAll = Callable[[Sequence[Feeds]], object]

# Tokens a batch: where one CPU thread has the whole batch, where all have it, and on a GPU.
NARROW_BUDGETS = (384, 768, 1536)
WIDE_BUDGETS = (2048, 4096)
GPU_BUDGETS = (4096, 16384, 65536)
TRIAL_SAMPLES = 200
# A trial that is not this near to the fastest one so far is not repeated.
WORTH_REPEATING = 1.5
WAKE_BATCHES = 8
REASON_LENGTH = 500


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of running batches, from NumPy arrays to NumPy arrays.

    Args:
        label: for the result's detail, as in ``"one thread a batch"``.
        run: one batch.
        run_all: many batches, which may overlap; their outputs are made and dropped.
        budgets: the tokens of a batch, padding included, that are worth a try.
    """

    label: str
    run: RunBatch
    run_all: RunAll
    budgets: tuple[int, ...]


@contextlib.contextmanager
def failures_in_one_line() -> Iterator[None]:
    """Another tool may raise anything, over many lines; it becomes the reason why a peer is out.

    Raises:
        BuildFailed: in place of what is no error of ours.
    """
    try:
        yield
    except AttnExportError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:REASON_LENGTH]
        raise BuildFailed(f"it fails here: {type(error).__name__}: {text}") from error


def one_by_one(run: RunBatch, device: Device = "cpu") -> Way:
    """Batch after batch; on a CPU each one has all threads."""
    return Way(
        label="on the GPU" if device == GPU else "all threads",
        run=run,
        run_all=lambda batches: deque(map(run, batches), maxlen=0),
        budgets=GPU_BUDGETS if device == GPU else WIDE_BUDGETS,
    )


def one_thread_each(
    run: RunBatch, threads: int, stack: ExitStack, start: Callable[[], object] = lambda: None
) -> Way:
    """As many batches at a time as threads; what ``run`` calls has to keep to one thread.

    Args:
        start: called first in each thread.
    """
    pool = stack.enter_context(ThreadPoolExecutor(threads, initializer=start))
    return Way(
        label="one thread",
        run=run,
        run_all=lambda batches: deque(pool.map(run, batches), maxlen=0),
        budgets=NARROW_BUDGETS,
    )


class PeerLoop:
    """All requests sorted by length, in batches padded to their own longest; the best way of all.

    Each way is tried with each of its budgets on up to 200 requests, once, and the fastest one
    kept. The feeds are made outside of the timing, as for every candidate but the engine's own
    scheduling.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = ways
        self._chosen: tuple[Way, int] | None = None
        self._feeds: list[Feeds] = []

    def first(self, feeds: Feeds) -> None:
        """One request."""
        with failures_in_one_line():
            self._ways[0].run(feeds)

    def prepare(self, workload: Workload, count: int) -> Prepared:
        """Choose the way at the first call; make the feeds of about ``count`` requests.

        Raises:
            BuildFailed: if a way fails.
        """
        if self._chosen is None:
            with failures_in_one_line():
                self._chosen = self._fastest(workload)
        way, tokens = self._chosen
        batches = self._set(workload, stratified(workload.lengths, count), tokens)
        return Prepared(
            samples=sum(len(batch.indices) for batch in batches),
            tokens=sum(int(workload.lengths[batch.indices].sum()) for batch in batches),
            computed_tokens=sum(len(batch.indices) * batch.length for batch in batches),
            batches=len(batches),
            detail=f"{way.label} a batch of {tokens} tokens",
        )

    def wake(self) -> None:
        """A few batches."""
        self._run(self._feeds[:WAKE_BATCHES])

    def turn(self) -> list[float]:
        """Run all; batches may overlap, so none has a time of its own."""
        self._run(self._feeds)
        return []

    def _run(self, batches: Sequence[Feeds]) -> None:
        way = self._chosen[0] if self._chosen else self._ways[0]
        with failures_in_one_line():
            way.run_all(batches)

    def _fastest(self, workload: Workload) -> tuple[Way, int]:
        samples = min(len(workload.lengths), TRIAL_SAMPLES)
        found, least = (self._ways[0], self._ways[0].budgets[0]), math.inf
        for way in self._ways:
            for tokens in way.budgets:
                self._set(workload, stratified(workload.lengths, samples), tokens)
                way.run_all(self._feeds[:: max(1, len(self._feeds) // WAKE_BATCHES)])
                seconds = self._seconds(way)
                if seconds < WORTH_REPEATING * least:
                    seconds = min(seconds, self._seconds(way))
                if seconds < least:
                    found, least = (way, tokens), seconds
        return found

    def _seconds(self, way: Way) -> float:
        start = time.perf_counter()
        way.run_all(self._feeds)
        return time.perf_counter() - start

    def _set(self, workload: Workload, indices: Lengths, tokens: int) -> Batches:
        batches = budget_batches(workload.lengths, indices, tokens)
        self._feeds = [workload.feeds(batch) for batch in batches]
        return batches
