"""Ways of running the same requests: who makes the batches, and what runs beside what."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from attn_export.engines.engine import Engine
from attn_export.engines.fitting import run_all_fitted
from attn_export.engines.profiles import Profile, fitting_shape
from attn_export.engines.schedule import PlannedBatch, plan_for
from attn_export.engines.session import Feeds, Session

from .workload import Batches, Lengths, Workload, budget_batches, stratified

# Tokens a batch in the loops by hand: one CPU thread a batch, or all threads on one batch.
NARROW_BUDGETS = (192, 384, 576)
WIDE_BUDGETS = (2048,)
GPU_BUDGETS = (2048, 4096, 8192, 16384)
TRIAL_SAMPLES = 1000
# On a GPU a shape is fast from its third run on, when its CUDA graph is there.
TRIALS, GPU_TRIALS = 2, 5
WAKE_SAMPLES, WAKE_BATCHES = 100, 8


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What one turn runs.

    Args:
        samples: real requests.
        tokens: their tokens; ``computed_tokens`` counts the padding too.
        detail: how, where there was a choice.
    """

    samples: int
    tokens: int
    computed_tokens: int
    batches: int
    detail: str = ""


class Candidate(Protocol):
    """A loaded model and a way to run it."""

    def first(self, feeds: Feeds) -> None:
        """Answer one request."""

    def prepare(self, workload: Workload, count: int) -> Prepared:
        """Choose about ``count`` requests for the turns to come."""

    def wake(self) -> None:
        """Run a little of it untimed: threads and memory come back from the wait."""

    def turn(self) -> list[float]:
        """Run them; the time of each batch in ms, where batches run one after the other."""


class BatchLoop:
    """Batches one after the other.

    Args:
        profiles: of the engine, where its batches are padded to them.
        detail: what is special about it.
    """

    def __init__(
        self,
        run: Callable[[Feeds], object],
        plan: Callable[[Lengths, int], Batches],
        *,
        profiles: Sequence[Profile] = (),
        detail: str = "",
    ) -> None:
        self._run, self._plan = run, plan
        self._profiles, self._detail = profiles, detail
        self._feeds: list[Feeds] = []

    def first(self, feeds: Feeds) -> None:
        """One request."""
        self._run(feeds)

    def prepare(self, workload: Workload, count: int) -> Prepared:
        """Make the feeds of the batches."""
        batches = self._plan(workload.lengths, count)
        self._feeds = [workload.feeds(batch) for batch in batches]
        return _prepared(workload, batches, self._detail, self._profiles)

    def wake(self) -> None:
        """One batch."""
        self._run(self._feeds[0])

    def turn(self) -> list[float]:
        """Run and time each batch."""
        return [_timed_ms(partial(self._run, feeds)) for feeds in self._feeds]


class RunMany:
    """The engine's own scheduling: what a user calls, from sequences to results in order."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self._engine, self._session = engine, session
        self._sequences: list[Any] = []

    def first(self, feeds: Feeds) -> None:
        """One request."""
        self._engine.run(feeds)

    def prepare(self, workload: Workload, count: int) -> Prepared:
        """Choose the sequences."""
        chosen = stratified(workload.lengths, count)
        self._sequences = [workload.raw[index] for index in chosen.tolist()]
        batches = _planned(workload, chosen, self._session, self._session.batch_tokens)
        return _prepared(workload, batches, profiles=self._session.profiles)

    def wake(self) -> None:
        """A few batches."""
        self._engine.run_many(self._sequences[:WAKE_SAMPLES])

    def turn(self) -> list[float]:
        """Run all; batches overlap, so none has a time of its own."""
        self._engine.run_many(self._sequences)
        return []


class HandSorted:
    """A loop written by hand over prebuilt batches on a CPU, with the best of several budgets.

    Args:
        wide: a session that gives all threads to one batch.
        narrow: a session of one thread, called from each thread of ``pool``.
    """

    def __init__(self, wide: Session, narrow: Session, pool: ThreadPoolExecutor) -> None:
        self._wide, self._narrow, self._pool = wide, narrow, pool
        self._is_wide = False
        self._feeds: list[Feeds] = []

    def first(self, feeds: Feeds) -> None:
        """One request."""
        self._wide.run(feeds)

    def prepare(self, workload: Workload, count: int) -> Prepared:
        """Try each budget on a part of the requests, and make the feeds with the best one."""
        trial = stratified(workload.lengths, min(count, TRIAL_SAMPLES))
        loops = [(False, tokens) for tokens in NARROW_BUDGETS]
        loops += [(True, tokens) for tokens in WIDE_BUDGETS]
        is_wide, tokens = min(loops, key=lambda loop: self._trial_ms(workload, trial, *loop))
        batches = self._set(workload, stratified(workload.lengths, count), is_wide, tokens)
        threads = "all threads" if is_wide else "one thread"
        return _prepared(workload, batches, f"{threads} a batch of {tokens} tokens")

    def wake(self) -> None:
        """A few batches."""
        self._run(self._feeds[:WAKE_BATCHES])

    def turn(self) -> list[float]:
        """Run all; with one thread a batch, batches overlap and none has a time of its own."""
        return self._run(self._feeds)

    def _run(self, all_feeds: list[Feeds]) -> list[float]:
        if self._is_wide:
            return [_timed_ms(partial(self._wide.run, feeds)) for feeds in all_feeds]
        list(self._pool.map(self._narrow.run, all_feeds))
        return []

    def _trial_ms(self, workload: Workload, indices: Lengths, is_wide: bool, tokens: int) -> float:
        self._set(workload, indices, is_wide, tokens)
        return min(_timed_ms(self.turn) for _ in range(TRIALS))

    def _set(self, workload: Workload, indices: Lengths, is_wide: bool, tokens: int) -> Batches:
        batches = budget_batches(workload.lengths, indices, tokens)
        self._is_wide = is_wide
        self._feeds = [workload.feeds(batch) for batch in batches]
        return batches


class HandStreamed:
    """The same on a GPU: sorted batches, as large as the profiles allow, through ``run_all``."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._feeds: list[Feeds] = []

    def first(self, feeds: Feeds) -> None:
        """One request."""
        self._run([feeds])

    def prepare(self, workload: Workload, count: int) -> Prepared:
        """Try each budget on a part of the requests, and make the feeds with the best one."""
        trial = stratified(workload.lengths, min(count, TRIAL_SAMPLES))
        tokens = min(GPU_BUDGETS, key=lambda budget: self._trial_ms(workload, trial, budget))
        batches = self._set(workload, stratified(workload.lengths, count), tokens)
        profiles = self._session.profiles
        largest = max(_computed_tokens(batch, profiles) for batch in batches)
        return _prepared(workload, batches, f"batches of at most {largest} tokens", profiles)

    def wake(self) -> None:
        """A few batches."""
        self._run(self._feeds[:WAKE_BATCHES])

    def turn(self) -> list[float]:
        """Run all; batches overlap, so none has a time of its own."""
        self._run(self._feeds)
        return []

    def _run(self, all_feeds: list[Feeds]) -> None:
        deque(run_all_fitted(self._session, all_feeds), maxlen=0)

    def _trial_ms(self, workload: Workload, indices: Lengths, tokens: int) -> float:
        self._set(workload, indices, tokens)
        return min(_timed_ms(self.turn) for _ in range(GPU_TRIALS))

    def _set(self, workload: Workload, indices: Lengths, tokens: int) -> Batches:
        batches = _planned(workload, indices, self._session, tokens)
        self._feeds = [workload.feeds(batch) for batch in batches]
        return batches


def _planned(workload: Workload, chosen: Lengths, session: Session, tokens: int) -> Batches:
    """The batches that ``run_many`` makes of some requests, with any budget."""
    batches = plan_for(session, workload.lengths[chosen], tokens)
    return [PlannedBatch(chosen[batch.indices], batch.length) for batch in batches]


def _prepared(
    workload: Workload, batches: Batches, detail: str = "", profiles: Sequence[Profile] = ()
) -> Prepared:
    return Prepared(
        samples=sum(len(batch.indices) for batch in batches),
        tokens=sum(int(workload.lengths[batch.indices].sum()) for batch in batches),
        computed_tokens=sum(_computed_tokens(batch, profiles) for batch in batches),
        batches=len(batches),
        detail=detail,
    )


def _computed_tokens(batch: PlannedBatch, profiles: Sequence[Profile]) -> int:
    samples, length = len(batch.indices), batch.length
    if profiles:
        samples, length = fitting_shape(profiles, samples, length)
    return samples * length


def _timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
