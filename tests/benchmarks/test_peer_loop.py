"""How a peer's requests are batched, and that its best way is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest

from attn_export.benchmarks.peer_loop import (
    GPU_BUDGETS,
    NARROW_BUDGETS,
    WIDE_BUDGETS,
    Outputs,
    PeerLoop,
    Way,
    one_by_one,
    one_thread_each,
)
from attn_export.benchmarks.workload import Workload
from attn_export.engines.session import Feeds
from attn_export.errors import BuildFailed
from attn_export.spec import TensorSpec

IDS = TensorSpec(name="input_ids", dtype="int32", shape=("batch", "sequence"), role="ids", limit=50)
LENGTHS = [1, 16, 3, 9, 4, 12, 2, 8, 5, 5]


def answer(feeds: Feeds) -> Outputs:
    return {"length": np.full(len(feeds["input_ids"]), feeds["input_ids"].shape[1])}


def workload() -> Workload:
    return Workload([IDS], [np.full(n, 7, np.int32) for n in LENGTHS])


def seen_by(budget: int) -> tuple[PeerLoop, list[tuple[int, ...]]]:
    shapes: list[tuple[int, ...]] = []

    def run_all(batches: Sequence[Feeds]) -> None:
        shapes.extend(feeds["input_ids"].shape for feeds in batches)

    return PeerLoop([Way(label="noted", run=answer, run_all=run_all, budgets=(budget,))]), shapes


def test_requests_are_sorted_and_padded_to_the_longest_of_a_batch() -> None:
    loop, shapes = seen_by(32)
    prepared = loop.prepare(workload(), 10)
    shapes.clear()
    loop.turn()
    # 16 12 | 9 8 5 | 5 4 3 2 1, each at most 32 tokens with its padding
    assert shapes == [(2, 16), (3, 9), (5, 5)]
    assert prepared.samples == 10
    assert prepared.tokens == sum(LENGTHS)
    assert prepared.computed_tokens == 2 * 16 + 3 * 9 + 5 * 5
    assert prepared.detail == "noted a batch of 32 tokens"


def test_the_fastest_way_and_budget_are_kept() -> None:
    def way(label: str, seconds_a_batch: float) -> Way:
        return Way(
            label=label,
            run=answer,
            run_all=lambda batches: time.sleep(seconds_a_batch * len(batches)),
            budgets=(16, 64),
        )

    loop = PeerLoop([way("slow", 0.02), way("fast", 0.002)])
    # At 64 tokens a batch there are the fewest of them.
    assert loop.prepare(workload(), 10).detail == "fast a batch of 64 tokens"


def test_the_choice_is_made_once() -> None:
    loop, shapes = seen_by(32)
    loop.prepare(workload(), 4)
    shapes.clear()
    loop.prepare(workload(), 10)
    assert shapes == []


def test_one_thread_each_runs_batches_at_the_same_time_and_starts_each_thread() -> None:
    both = threading.Barrier(2, timeout=10)
    started: list[int] = []

    def run(feeds: Feeds) -> Outputs:
        both.wait()  # ends only if another batch is in here as well
        return answer(feeds)

    with ExitStack() as stack:
        way = one_thread_each(run, 2, stack, lambda: started.append(threading.get_ident()))
        way.run_all([{"input_ids": np.zeros((1, 4), np.int32)}] * 4)
    assert len(started) == 2
    assert way.budgets == NARROW_BUDGETS


def test_what_fails_in_a_thread_is_raised() -> None:
    def run(feeds: Feeds) -> Outputs:
        raise RuntimeError("out of memory")

    with ExitStack() as stack:
        way = one_thread_each(run, 2, stack)
        with pytest.raises(RuntimeError, match="out of memory"):
            way.run_all([{}])


def test_batches_are_larger_where_more_computes_each() -> None:
    assert one_by_one(answer).budgets == WIDE_BUDGETS
    assert one_by_one(answer, "gpu").budgets == GPU_BUDGETS
    assert max(NARROW_BUDGETS) < min(WIDE_BUDGETS) <= max(WIDE_BUDGETS) <= min(GPU_BUDGETS)


def test_a_failure_while_running_is_one_line() -> None:
    def run(feeds: Feeds) -> Outputs:
        raise RuntimeError("out of memory:\n  16 GB asked for")

    loop = PeerLoop([one_by_one(run)])
    reason = "^it fails here: RuntimeError: out of memory: 16 GB asked for$"
    with pytest.raises(BuildFailed, match=reason):
        loop.first({})
    with pytest.raises(BuildFailed, match=reason):
        loop.prepare(workload(), 3)
    with pytest.raises(BuildFailed, match=reason):
        loop.turn()
