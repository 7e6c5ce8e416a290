"""What is measured: ways of running the same requests, each with its own batches.

* ``eager-mha-padded``: the same-sized MHA in eager FP32, batches padded to the model's maximum;
* ``eager-padded``: the model itself, likewise;
* ``eager-dynamic``: the model itself, sorted, batches padded to their own longest;
* ``engine-padded``: the engine, batches padded to the maximum;
* ``engine-bucketed``: the engine's ``run_many``, which sorts, pads and restores the order;
* ``hand-sorted``: a loop by hand over the same engine with all arrays made beforehand, the best
  of several budgets: what ``run_many`` could reach at most.

Except for ``engine-bucketed``, feeds are made outside of the timing.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from attn_export.bundle import Bundle
from attn_export.engines.engine import Engine
from attn_export.engines.schedule import plan_batches
from attn_export.engines.session import Feeds, Session, backend

from .workload import (
    Batches,
    Lengths,
    Workload,
    budget_batches,
    padded_batches,
    sorted_batches,
    stratified,
)

EAGER_MHA = "eager-mha-padded"
EAGER = (EAGER_MHA, "eager-padded", "eager-dynamic")
BUCKETED, HAND_SORTED = "engine-bucketed", "hand-sorted"
ENGINE = ("engine-padded", BUCKETED, HAND_SORTED)

# Tokens a batch in the loops by hand: one thread a batch, or all threads on one batch.
NARROW_BUDGETS = (192, 384, 576)
WIDE_BUDGETS = (2048,)
TRIAL_SAMPLES = 1000
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a candidate is made.

    Args:
        engine: the engine's name in the manifest; None for eager candidates.
        threads: CPU threads, the same for all candidates.
        batch_size: of all candidates but ``engine-bucketed`` and ``hand-sorted``.
    """

    candidate: str
    engine: str | None
    threads: int
    batch_size: int

    @property
    def name(self) -> str:
        """The candidate, and after a colon the engine where it runs one."""
        return ":".join(filter(None, (self.candidate, self.engine)))


def import_packages(bundle: Bundle, settings: Settings) -> None:
    """Import what the candidate needs, so that its loading can be timed apart."""
    if settings.engine is None:
        names = ["torch", "attn_export.exporter.source", "attn_export.exporter.eager"]
    else:
        module = backend(bundle.manifest.engines[settings.engine].backend)
        names = [module.__name__.rpartition(".")[2]]  # our backends are named after their package
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):  # loading says what is missing, and how
            importlib.import_module(name)


def make(bundle: Bundle, settings: Settings, stack: ExitStack) -> Candidate:
    """Load a candidate's model; it is freed when ``stack`` closes.

    Raises:
        AttnExportError: if the model cannot be rebuilt or the engine not be loaded.
    """
    size, longest = settings.batch_size, bundle.manifest.max_length
    to_maximum = partial(padded_batches, batch_size=size, length=longest)
    if settings.candidate in EAGER:
        run = _eager(bundle, settings)
        to_longest = partial(sorted_batches, batch_size=size)
        return BatchLoop(run, to_longest if "dynamic" in settings.candidate else to_maximum)
    record = bundle.manifest.engines[settings.engine or ""]

    def load(threads: int) -> Session:
        session: Session = backend(record.backend).load(bundle, record, threads)
        stack.callback(session.close)
        return session

    session = load(settings.threads)
    if settings.candidate == "engine-padded":
        return BatchLoop(session.run, to_maximum)
    if settings.candidate == BUCKETED:
        return RunMany(Engine(session, record, check_ids=False), session)
    pool = stack.enter_context(ThreadPoolExecutor(settings.threads))
    return HandSorted(session, load(1), pool)


def _eager(bundle: Bundle, settings: Settings) -> Callable[[Feeds], object]:
    from .eager import rebuild, rebuild_as_mha

    if settings.candidate == EAGER_MHA:
        model = rebuild_as_mha(bundle.manifest)
    else:
        model = rebuild(bundle.manifest)
    import torch

    from attn_export.exporter.eager import run_eager

    torch.set_num_threads(settings.threads)
    return lambda feeds: run_eager(model.module, feeds)


class BatchLoop:
    """Batches one after the other."""

    def __init__(
        self, run: Callable[[Feeds], object], plan: Callable[[Lengths, int], Batches]
    ) -> None:
        self._run, self._plan = run, plan
        self._feeds: list[Feeds] = []

    def first(self, feeds: Feeds) -> None:
        """One request."""
        self._run(feeds)

    def prepare(self, workload: Workload, count: int) -> Prepared:
        """Make the feeds of the batches."""
        batches = self._plan(workload.lengths, count)
        self._feeds = [workload.feeds(batch) for batch in batches]
        return _prepared(workload, batches)

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
        planned = plan_batches(
            workload.lengths[chosen],
            edges=self._engine.buckets,
            batch_tokens=self._session.batch_tokens,
            pads_to_edge=self._session.pads_to_edge,
        )
        computed = sum(len(batch.indices) * batch.length for batch in planned)
        return Prepared(
            samples=len(chosen),
            tokens=int(workload.lengths[chosen].sum()),
            computed_tokens=computed,
            batches=len(planned),
        )

    def wake(self) -> None:
        """A few batches."""
        self._engine.run_many(self._sequences[:WAKE_SAMPLES])

    def turn(self) -> list[float]:
        """Run all; batches overlap, so none has a time of its own."""
        self._engine.run_many(self._sequences)
        return []


class HandSorted:
    """A loop written by hand over prebuilt batches, with the best of several budgets.

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
        return min(_timed_ms(self.turn) for _ in range(2))

    def _set(self, workload: Workload, indices: Lengths, is_wide: bool, tokens: int) -> Batches:
        batches = budget_batches(workload.lengths, indices, tokens)
        self._is_wide = is_wide
        self._feeds = [workload.feeds(batch) for batch in batches]
        return batches


def _prepared(workload: Workload, batches: Batches, detail: str = "") -> Prepared:
    return Prepared(
        samples=sum(len(batch.indices) for batch in batches),
        tokens=sum(int(workload.lengths[batch.indices].sum()) for batch in batches),
        computed_tokens=sum(len(batch.indices) * batch.length for batch in batches),
        batches=len(batches),
        detail=detail,
    )


def _timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
