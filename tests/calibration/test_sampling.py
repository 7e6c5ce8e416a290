"""Samples over the real lengths, and batches without padding."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from attn_export.calibration.lengths import TWEET_LENGTHS
from attn_export.calibration.requests import Request
from attn_export.calibration.sampling import Sample, batches_of_one_length, stratified_sample
from attn_export.errors import InputError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

IDS = TensorSpec(name="input_ids", dtype="int32", shape=(BATCH, SEQUENCE), role="ids")
MASK = TensorSpec(name="attention_mask", dtype="int32", shape=(BATCH, SEQUENCE), role="mask")
FRAMES = TensorSpec(name="frames", dtype="float32", shape=(BATCH, SEQUENCE, 2))
KIND = TensorSpec(name="kind", dtype="int32", shape=(BATCH,), role="ids")
EDGES = (8, 16, 32)


def of_lengths(*lengths: int) -> Iterator[Request]:
    """Requests of these lengths; their first id says which one they are."""
    for index, length in enumerate(lengths):
        yield {"input_ids": np.full(length, index, np.int32)}


def sample(lengths: Any, count: int, seed: int = 0) -> Sample:
    return stratified_sample(of_lengths(*lengths), count, EDGES, seed, inputs=(IDS, MASK))


def drawn(result: Sample) -> list[int]:
    return [int(request["input_ids"][0]) for request in result.requests]


def per_bucket(result: Sample) -> dict[int, int]:
    lengths = (len(request["input_ids"]) for request in result.requests)
    return Counter(next(edge for edge in EDGES if length <= edge) for length in lengths)


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [
        pytest.param({8: 50, 16: 30, 32: 20}, 10, {8: 5, 16: 3, 32: 2}, id="exact-parts"),
        # parts 2.8, 4.2 and 3: the first has the largest remainder
        pytest.param({8: 28, 16: 42, 32: 30}, 10, {8: 3, 16: 4, 32: 3}, id="remainders"),
        # 100/3 each: the remainder goes to the first of equals
        pytest.param({8: 100, 16: 100, 32: 100}, 100, {8: 34, 16: 33, 32: 33}, id="thirds"),
        # parts 9.5, 0.3, 0.2: both small ones are raised to one, the large one pays
        pytest.param({8: 950, 16: 30, 32: 20}, 10, {8: 8, 16: 1, 32: 1}, id="rare-lengths"),
        pytest.param({8: 950, 32: 1}, 100, {8: 99, 32: 1}, id="an-empty-bucket"),
        pytest.param({8: 5, 16: 4, 32: 3}, 2, {8: 1, 16: 1, 32: 1}, id="fewer-than-buckets"),
        pytest.param({8: 2, 16: 1, 32: 4}, 7, {8: 2, 16: 1, 32: 4}, id="all"),
        pytest.param({8: 2, 16: 1, 32: 4}, 50, {8: 2, 16: 1, 32: 4}, id="more-than-all"),
    ],
)
def test_each_bucket_gives_its_part_and_at_least_one(
    rows: dict[int, int], count: int, expected: dict[int, int]
) -> None:
    lengths = np.random.default_rng(0).permutation(np.repeat(list(rows), list(rows.values())))
    result = sample(lengths.tolist(), count)
    assert per_bucket(result) == expected
    assert len(set(drawn(result))) == sum(expected.values())
    assert result.lengths == rows
    assert result.seen == sum(rows.values())


def test_parts_are_never_more_than_a_bucket_has() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = rng.integers(0, 12, 3)
        if not rows.any():
            continue
        count = int(rng.integers(1, rows.sum() + 2))
        result = sample(np.repeat([8, 16, 32], rows).tolist(), count)
        parts = [per_bucket(result).get(edge, 0) for edge in EDGES]
        assert all(min(1, n) <= part <= n for part, n in zip(parts, rows.tolist(), strict=True))
        assert len(result.requests) == max(min(count, rows.sum()), np.count_nonzero(rows))


def test_a_length_on_an_edge_is_in_the_bucket_that_ends_there() -> None:
    for seed in range(9):
        assert per_bucket(sample([8, 9, 9, 9, 9], 2, seed)) == {8: 1, 16: 1}


def test_the_same_seed_draws_the_same_requests_in_their_order() -> None:
    lengths = [8, 16, 32] * 100
    first, again, other = sample(lengths, 30), sample(lengths, 30), sample(lengths, 30, seed=1)
    assert drawn(first) == drawn(again) == sorted(drawn(first))
    assert drawn(first) != drawn(other)


def test_every_request_is_drawn_as_often_as_every_other() -> None:
    # 2,000 draws of 3 from 12: each is drawn 500 times, with a deviation of sqrt(375) = 19.4
    counts: Counter[int] = Counter()
    for seed in range(2000):
        counts.update(drawn(sample([4] * 12 + [20] * 12, 6, seed)))
    assert all(abs(counts[index] - 500) < 5 * 19.4 for index in range(24))


def test_the_tweets_lengths_are_kept() -> None:
    lengths = np.repeat(list(TWEET_LENGTHS), list(TWEET_LENGTHS.values()))
    order = np.random.default_rng(0).permutation(lengths).tolist()
    result = stratified_sample(of_lengths(*order), 512, (16, 24, 32, 40, 48, 65), 0, inputs=(IDS,))
    assert len(result.requests) == 512
    mean = np.mean([len(request["input_ids"]) for request in result.requests])
    assert mean == pytest.approx(29.90, abs=0.5)
    assert result.lengths == TWEET_LENGTHS
    assert result.notes == ()


def test_requests_of_one_length_are_noted() -> None:
    (note,) = sample([16] * 20, 10).notes
    assert "all 20 requests have 16 tokens" in note
    assert sample([16] * 20 + [15], 10).notes == ()


def test_a_model_without_a_sequence_has_no_lengths_to_note() -> None:
    requests = [{"kind": np.array(n, np.int32)} for n in range(5)]
    result = stratified_sample(requests, 5, (1,), 0, inputs=(KIND,))
    assert (result.lengths, result.notes) == ({1: 5}, ())


def test_too_few_requests_are_noted() -> None:
    (note,) = sample([4, 5, 6], 10).notes
    assert note == "10 requests were asked for and the data holds 3"


def test_no_requests_are_an_error() -> None:
    with pytest.raises(InputError, match="no requests to sample"):
        sample([], 10)


def test_a_request_over_the_last_edge_is_an_error() -> None:
    with pytest.raises(InputError, match=r"request 1 \(from 0\) has 33 tokens, .* ends at 32"):
        sample([32, 33], 10)


def test_a_sample_of_none_is_refused() -> None:
    with pytest.raises(UsageError, match="a sample of 0 requests"):
        sample([4], 0)


def test_a_sample_holds_no_more_than_it_may_draw() -> None:
    requests = ({"input_ids": np.zeros(8, np.int32)} for _ in range(10_000))
    tracemalloc.start()
    try:
        stratified_sample(requests, 64, EDGES, 0, inputs=(IDS,))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # 10,000 requests are more than 3 MB


# Batches


def batches(requests: Any, tokens: int, *inputs: TensorSpec) -> list[dict[str, Any]]:
    return list(batches_of_one_length(requests, inputs, tokens))


def test_batches_hold_one_length_and_the_rest_comes_last() -> None:
    made = batches(of_lengths(4, 6, 4, 3, 6, 4, 2), 8, IDS, MASK)
    assert [batch["input_ids"].tolist() for batch in made] == [
        [[1] * 6],
        [[0] * 4, [2] * 4],
        [[4] * 6],
        [[6] * 2],
        [[3] * 3],
        [[5] * 4],
    ]
    assert all(
        batch["attention_mask"].shape == batch["input_ids"].shape
        and batch["attention_mask"].dtype == np.int32
        and batch["attention_mask"].all()
        for batch in made
    )
    assert [list(batch) for batch in made] == [["input_ids", "attention_mask"]] * 6


def test_a_request_over_the_budget_is_a_batch_of_its_own() -> None:
    made = batches(of_lengths(20, 20), 8, IDS)
    assert [batch["input_ids"].shape for batch in made] == [(1, 20), (1, 20)]


def test_no_request_is_lost_and_no_batch_is_over_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 500).tolist()
    made = batches(of_lengths(*lengths), 100, IDS)
    assert sorted(int(row[0]) for batch in made for row in batch["input_ids"]) == list(range(500))
    assert max(batch["input_ids"].size for batch in made) <= 100
    # full but for the rest of each length
    full = sum(1 for b in made if b["input_ids"].size + b["input_ids"].shape[1] > 100)
    assert len(made) - full <= len(set(lengths))


def test_every_input_is_stacked() -> None:
    requests = [
        {"frames": np.full((3, 2), n, np.float32), "kind": np.array(n, np.int32)} for n in (1, 2)
    ]
    (batch,) = batches(requests, 100, FRAMES, KIND, MASK)
    assert batch["frames"].shape == (2, 3, 2)
    assert batch["frames"].dtype == np.float32
    assert batch["kind"].tolist() == [1, 2]
    assert batch["attention_mask"].tolist() == [[1, 1, 1]] * 2


def test_batches_come_before_the_requests_end() -> None:
    def endless() -> Iterator[Request]:
        while True:
            yield {"input_ids": np.zeros(4, np.int32)}

    assert next(iter(batches_of_one_length(endless(), (IDS,), 8)))["input_ids"].shape == (2, 4)


def test_a_budget_of_none_is_refused() -> None:
    with pytest.raises(UsageError, match="batches of 0 tokens"):
        batches(of_lengths(1), 0, IDS)
