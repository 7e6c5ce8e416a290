"""Batches planned from lengths: nothing lost, budget kept, little padding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attn_export.calibration.lengths import TWEET_LENGTHS
from attn_export.engines.buckets import bucket_of, choose_edges, padded_tokens
from attn_export.engines.profiles import Profile
from attn_export.engines.schedule import PlannedBatch, plan_batches, plan_for
from attn_export.errors import InputError, UsageError

EDGES = (4, 8, 16)
UNLIMITED = (10_000, 10_000, 10_000)
TWEETS = np.random.default_rng(7).permutation(
    np.repeat(list(TWEET_LENGTHS), list(TWEET_LENGTHS.values()))
)


def as_lists(batches: list[PlannedBatch]) -> list[tuple[list[int], int]]:
    return [(batch.indices.tolist(), batch.length) for batch in batches]


def padding_share(batches: list[PlannedBatch], real: int) -> float:
    return 1 - real / sum(batch.indices.size * batch.length for batch in batches)


@pytest.mark.parametrize("largest", [UNLIMITED, None], ids=["edges", "longest"])
@pytest.mark.parametrize("batch_tokens", [1, 5, 16, 40, 1000])
@pytest.mark.parametrize("seed", range(8))
def test_every_plan_keeps_its_promises(
    seed: int, batch_tokens: int, largest: tuple[int, ...] | None
) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 17, size=int(draw.integers(1, 60)))
    batches = plan_batches(lengths, edges=EDGES, batch_tokens=batch_tokens, largest=largest)
    every = np.concatenate([batch.indices for batch in batches])
    assert sorted(every.tolist()) == list(range(lengths.size))
    assert (np.diff(lengths[every]) <= 0).all(), "longest first"
    for batch in batches:
        own = lengths[batch.indices]
        assert batch.indices.size * batch.length <= batch_tokens or batch.indices.size == 1
        if largest:
            assert {EDGES[bucket_of(int(length), EDGES)] for length in own} == {batch.length}
        else:
            assert own.max() == batch.length
            assert 2 * own.min() >= batch.length


@pytest.mark.parametrize(
    ("unpadded_tokens", "expected"),
    [
        # Sorted: 6 (1), 6 (3), 6 (4), 5 (0), 5 (2), 4 (5). 30 tokens hold five of 6.
        pytest.param(None, [([1, 3, 4, 0, 2], 6), ([5], 4)], id="mixed"),
        pytest.param(18, [([1, 3, 4], 6), ([0, 2, 5], 5)], id="three of 6, but not two of 5"),
        pytest.param(10, [([1, 3, 4], 6), ([0, 2], 5), ([5], 4)], id="each length"),
        pytest.param(19, [([1, 3, 4, 0, 2], 6), ([5], 4)], id="too few of each"),
    ],
)
def test_sequences_of_one_length_are_a_batch_of_their_own_from_some_tokens_on(
    unpadded_tokens: int | None, expected: list[tuple[list[int], int]]
) -> None:
    found = plan_batches(
        [5, 6, 5, 6, 6, 4], edges=EDGES, batch_tokens=30, unpadded_tokens=unpadded_tokens
    )
    assert as_lists(found) == expected


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        # Sorted: 12 (2) | 8 (0), 7 (3), 7 (5), 5 (6) | 4 (1), 3 (4).
        pytest.param(UNLIMITED, [([2], 16), ([0, 3], 8), ([5, 6], 8), ([1, 4], 4)], id="edges"),
        # 24 tokens hold two of 12 (12 and 8), then three of 7, then six of 4.
        pytest.param(None, [([2, 0], 12), ([3, 5, 6], 7), ([1, 4], 4)], id="longest"),
    ],
)
def test_a_plan_worked_out_by_hand(
    largest: tuple[int, ...] | None, expected: list[tuple[list[int], int]]
) -> None:
    batches = plan_batches([8, 4, 12, 7, 3, 7, 5], edges=EDGES, batch_tokens=24, largest=largest)
    assert as_lists(batches) == expected


def test_a_bucket_is_cut_into_nearly_equal_batches() -> None:
    # 4 fit in a batch; 9 sequences need 3 batches: 3 + 3 + 3 and not 4 + 4 + 1.
    batches = plan_batches([8] * 9, edges=EDGES, batch_tokens=32, largest=UNLIMITED)
    assert as_lists(batches) == [([0, 1, 2], 8), ([3, 4, 5], 8), ([6, 7, 8], 8)]


def test_sequences_of_one_length_keep_their_order() -> None:
    lengths = np.tile([7, 5], 50)
    batches = plan_batches(lengths, edges=EDGES, batch_tokens=10_000, largest=UNLIMITED)
    assert as_lists(batches) == [([*range(0, 100, 2), *range(1, 100, 2)], 8)]


def test_a_sequence_under_half_of_the_longest_starts_a_batch() -> None:
    batches = plan_batches([3, 7, 4], edges=EDGES, batch_tokens=1000, largest=None)
    assert as_lists(batches) == [([1, 2], 7), ([0], 3)]


@pytest.mark.parametrize("largest", [UNLIMITED, None], ids=["edges", "longest"])
def test_a_sequence_over_the_budget_is_a_batch_of_its_own(largest: tuple[int, ...] | None) -> None:
    batches = plan_batches([16, 16], edges=EDGES, batch_tokens=10, largest=largest)
    assert as_lists(batches) == [([0], 16), ([1], 16)]


@pytest.mark.parametrize("largest", [UNLIMITED, None], ids=["edges", "longest"])
def test_no_sequences_need_no_batches(largest: tuple[int, ...] | None) -> None:
    assert plan_batches([], edges=EDGES, batch_tokens=8, largest=largest) == []


@pytest.mark.parametrize("batch_tokens", [256, 512, 1024, 2048])
def test_tweets_in_batches_of_their_own_length_are_at_most_4_percent_padding(
    batch_tokens: int,
) -> None:
    batches = plan_batches(TWEETS, edges=(128,), batch_tokens=batch_tokens, largest=None)
    real = int(TWEETS.sum())
    assert padding_share(batches, real) <= 0.04
    assert len(batches) <= 1.1 * real / batch_tokens + 1, "batches are nearly full"


def test_tweets_in_batches_of_their_bucket_have_the_buckets_padding() -> None:
    edges = choose_edges(TWEET_LENGTHS, 6, 128)
    batches = plan_batches(TWEETS, edges=edges, batch_tokens=2048, largest=[10_000] * 6)
    padding = sum(batch.indices.size * batch.length for batch in batches) - int(TWEETS.sum())
    assert padding == padded_tokens(TWEET_LENGTHS, edges)


@pytest.mark.parametrize("largest", [UNLIMITED, None], ids=["edges", "longest"])
@pytest.mark.parametrize(
    ("lengths", "named"),
    [
        ([4, 0, 17], r"sequence 1 \(from 0\) has 0 tokens"),
        ([4, 5, 17], r"sequence 2 \(from 0\) has 17 tokens"),
        ([-3], r"sequence 0 \(from 0\) has -3 tokens"),
    ],
)
def test_a_length_without_a_bucket_is_named_with_the_buckets(
    lengths: list[int], named: str, largest: tuple[int, ...] | None
) -> None:
    with pytest.raises(InputError, match=f"{named}; the buckets are 4, 8, 16"):
        plan_batches(lengths, edges=EDGES, batch_tokens=32, largest=largest)


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(UsageError, match="batch_tokens is 0; it must be at least 1"):
        plan_batches([4], edges=EDGES, batch_tokens=0, largest=UNLIMITED)


def test_a_batch_holds_at_most_what_its_profile_takes() -> None:
    lengths = [16, 16, 16, 4, 4, 4, 4]
    batches = plan_batches(lengths, edges=EDGES, batch_tokens=1000, largest=(3, 9, 2))
    assert as_lists(batches) == [([0], 16), ([1, 2], 16), ([3, 4], 4), ([5, 6], 4)]


@pytest.mark.parametrize(
    ("at_a_time", "expected"),
    [
        # Sorted: 6 (1), 6 (3), 5 (0), 5 (2), 4 (4), 3 (5). 24 tokens hold four of 6.
        pytest.param(1, [([1, 3, 0, 2], 6), ([4, 5], 4)], id="one"),
        # 18 tokens are the least that two batches do with: 3 x 6, then 3 x 5.
        pytest.param(2, [([1, 3, 0], 6), ([2, 4, 5], 5)], id="two"),
        # With 11 there would be four: [6], [6], [5, 5], [4, 3].
        pytest.param(3, [([1, 3], 6), ([0, 2], 5), ([4, 5], 4)], id="three"),
        pytest.param(4, [([1], 6), ([3], 6), ([0, 2], 5), ([4, 5], 4)], id="four"),
        pytest.param(
            9,
            [([1], 6), ([3], 6), ([0], 5), ([2], 5), ([4], 4), ([5], 3)],
            id="more than there are",
        ),
    ],
)
def test_few_sequences_are_shared_out_among_what_runs_at_a_time(
    at_a_time: int, expected: list[tuple[list[int], int]]
) -> None:
    lengths = [5, 6, 5, 6, 4, 3]
    found = plan_batches(lengths, edges=EDGES, batch_tokens=24, at_a_time=at_a_time)
    assert as_lists(found) == expected


@pytest.mark.parametrize("at_a_time", [2, 3, 4, 7])
@pytest.mark.parametrize("seed", range(8))
def test_sharing_out_takes_no_more_turns(seed: int, at_a_time: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 17, size=int(draw.integers(1, 200)))
    budget = int(draw.integers(1, 200))
    plain = plan_batches(lengths, edges=EDGES, batch_tokens=budget)
    found = plan_batches(lengths, edges=EDGES, batch_tokens=budget, at_a_time=at_a_time)
    every = np.concatenate([batch.indices for batch in found])
    assert sorted(every.tolist()) == list(range(lengths.size))
    assert -(-len(found) // at_a_time) <= -(-len(plain) // at_a_time)
    assert largest_work(found) <= largest_work(plain)


def largest_work(batches: list[PlannedBatch]) -> int:
    return max(batch.indices.size * batch.length for batch in batches)


def test_a_long_job_keeps_full_batches() -> None:
    plain = plan_batches(TWEETS, edges=(128,), batch_tokens=384)
    assert as_lists(plan_batches(TWEETS, edges=(128,), batch_tokens=384, at_a_time=4)) == as_lists(
        plain
    )


def session(**facts: Any) -> Any:
    return SimpleNamespace(**{"buckets": EDGES, "batch_tokens": 24, "profiles": (), **facts})


def test_a_session_with_streams_gets_a_batch_for_each() -> None:
    lengths = [5, 6, 5, 6, 4, 3]
    assert [len(plan_for(session(), lengths)), len(plan_for(session(streams=3), lengths))] == [2, 3]
    assert len(plan_for(session(streams=3), lengths, 12)) == 3


def test_fewer_sequences_than_streams_stay_together() -> None:
    assert as_lists(plan_for(session(streams=4), [5, 6, 5])) == [([1, 0, 2], 6)]


def test_profiles_decide_whatever_the_streams() -> None:
    profiles = [Profile(batch=(1, 4, 4), sequence=(1, edge, edge)) for edge in EDGES]
    found = plan_for(session(profiles=profiles, streams=2), [5, 6, 5, 6])
    assert {batch.length for batch in found} == {8}
