"""Each way of running: loaded from a real bundle, run once."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from attn_export.benchmarks.candidates import (
    EAGER,
    ENGINE,
    BatchLoop,
    Candidate,
    HandSorted,
    RunMany,
    Settings,
    make,
)
from attn_export.benchmarks.workload import Workload
from attn_export.bundle import Bundle
from attn_export.engines.feeds import seeded_feeds

LENGTHS = [1, 16, 3, 9, 4, 12, 2, 8, 5, 5]


def candidate_of(bundle: Bundle, name: str, stack: ExitStack) -> Candidate:
    engine = None if name in EAGER else "onnxruntime-fp32"
    settings = Settings(candidate=name, engine=engine, threads=1, batch_size=4)
    return make(bundle, settings, stack)


def workload_of(bundle: Bundle) -> Workload:
    return Workload(bundle.manifest.inputs, [np.full(n, 7, np.int32) for n in LENGTHS])


@pytest.mark.parametrize(
    ("name", "kind", "samples", "computed"),
    [
        ("eager-mha-padded", BatchLoop, 8, 8 * 16),
        ("eager-padded", BatchLoop, 8, 8 * 16),
        ("eager-dynamic", BatchLoop, 6, 4 * 16 + 2 * 2),  # of 16 12 9 8 | 5 5 4 3 | 2 1
        ("engine-padded", BatchLoop, 8, 8 * 16),
        ("engine-bucketed", RunMany, 7, None),
        ("hand-sorted", HandSorted, 7, None),
    ],
)
def test_every_candidate_runs_its_requests(
    bundle: Bundle, name: str, kind: type, samples: int, computed: int | None
) -> None:
    with ExitStack() as stack:
        candidate = candidate_of(bundle, name, stack)
        assert isinstance(candidate, kind)
        candidate.first(seeded_feeds(bundle.manifest.inputs, 1, 5))
        prepared = candidate.prepare(workload_of(bundle), 7)
        times = candidate.turn()
    assert prepared.samples == samples
    assert samples <= prepared.tokens <= prepared.computed_tokens
    assert prepared.computed_tokens == (computed or prepared.computed_tokens)
    if kind is BatchLoop:
        assert len(times) == prepared.batches == 2
        assert all(ms > 0 for ms in times)


def test_the_list_of_candidates_is_the_whole_of_them() -> None:
    assert len({*EAGER, *ENGINE}) == 6


def test_the_two_sorted_candidates_run_the_same_requests(bundle: Bundle) -> None:
    with ExitStack() as stack:
        found = [
            candidate_of(bundle, name, stack).prepare(workload_of(bundle), 6)
            for name in ("engine-bucketed", "hand-sorted")
        ]
    assert found[0].tokens == found[1].tokens
    assert found[0].samples == found[1].samples == 6


def test_the_hand_written_loop_says_what_it_chose(bundle: Bundle) -> None:
    with ExitStack() as stack:
        prepared = candidate_of(bundle, "hand-sorted", stack).prepare(workload_of(bundle), 10)
    assert "a batch of " in prepared.detail


def test_eager_candidates_use_the_given_threads(bundle: Bundle) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        with ExitStack() as stack:
            candidate_of(bundle, "eager-padded", stack)
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
