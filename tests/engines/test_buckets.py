"""Bucket edges: the optimum against every other choice, and the figures quoted for tweets."""

from __future__ import annotations

import itertools
import random

import pytest

from attn_export.calibration.lengths import TWEET_LENGTHS
from attn_export.engines.buckets import bucket_of, choose_edges, padded_tokens
from attn_export.errors import InputError, UsageError


def least_padding_by_trying_all(histogram: dict[int, int], count: int, last: int) -> int:
    """Every set of up to count - 1 edges below ``last``, on any length, not only present ones."""
    return min(
        sum(
            number * (min(edge for edge in (*edges, last) if edge >= length) - length)
            for length, number in histogram.items()
        )
        for size in range(count)
        for edges in itertools.combinations(range(1, last), size)
    )


@pytest.mark.parametrize("seed", range(40))
def test_no_other_edges_pad_less(seed: int) -> None:
    draw = random.Random(seed)
    last = draw.randint(1, 12)
    lengths = draw.sample(range(1, last + 1), draw.randint(1, last))
    histogram = {length: draw.randint(1, 9) for length in lengths}
    for count in range(1, 6):
        edges = choose_edges(histogram, count, last)
        assert len(edges) == min(count, len({*lengths, last}))
        assert list(edges) == sorted(set(edges))
        assert edges[-1] == last
        best = least_padding_by_trying_all(histogram, count, last)
        assert padded_tokens(histogram, edges) == best


@pytest.mark.parametrize(
    ("count", "last", "percent"),
    [(1, 128, 76.6), (6, 128, 10.8), (8, 128, 7.7), (6, 65, 9.2), (8, 65, 6.5)],
)
def test_padding_as_a_share_of_all_tokens_of_the_tweets(
    count: int, last: int, percent: float
) -> None:
    real = sum(length * number for length, number in TWEET_LENGTHS.items())
    padding = padded_tokens(TWEET_LENGTHS, choose_edges(TWEET_LENGTHS, count, last))
    assert 100 * padding / (real + padding) == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize(
    ("histogram", "count", "last", "edges"),
    [
        # Padding with edge 1: 6 + 1; with edge 2: 5 x 1 + 1, or 10 x 1 + 1.
        pytest.param({1: 5, 2: 1, 7: 1}, 2, 8, (2, 8), id="five-short-ones"),
        pytest.param({1: 10, 2: 1, 7: 1}, 2, 8, (1, 8), id="ten-short-ones"),
        pytest.param({3: 1, 5: 1}, 3, 8, (3, 5, 8), id="an-empty-last-bucket"),
        pytest.param({3: 1, 5: 1}, 2, 5, (3, 5), id="last-is-the-longest"),
        pytest.param({3: 1, 5: 1}, 9, 5, (3, 5), id="fewer-lengths-than-buckets"),
        pytest.param({3: 1, 4: 0, 5: 1}, 3, 5, (3, 5), id="a-length-with-no-sequences"),
        pytest.param({3: 1, 900: 0}, 2, 8, (3, 8), id="none-above-the-last"),
        pytest.param({3: 1}, 1, 8, (8,), id="one-bucket"),
    ],
)
def test_edges_worked_out_by_hand(
    histogram: dict[int, int], count: int, last: int, edges: tuple[int, ...]
) -> None:
    assert choose_edges(histogram, count, last) == edges


def test_counts_beyond_32_bits_are_exact() -> None:
    assert choose_edges({10: 2**40, 11: 2**40 + 1, 20: 1}, 2, 20) == (11, 20)


def test_edges_are_plain_numbers_for_the_manifest() -> None:
    assert {type(edge) for edge in choose_edges({3: 1, 5: 1}, 3, 8)} == {int}


def test_padding_is_counted_alone() -> None:
    # 2 sequences of 3 pad to 4, one of 4 not at all, one of 5 to 8.
    assert padded_tokens({3: 2, 4: 1, 5: 1, 9: 0}, (4, 8)) == 2 * 1 + 0 + 3


@pytest.mark.parametrize(("length", "index"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (16, 2)])
def test_a_sequence_goes_to_the_smallest_edge_that_holds_it(length: int, index: int) -> None:
    assert bucket_of(length, (4, 8, 16)) == index


@pytest.mark.parametrize("length", [0, -1, 17])
def test_a_length_without_a_bucket_lists_the_buckets(length: int) -> None:
    with pytest.raises(InputError, match=f"has {length} tokens; the buckets are 4, 8, 16: give 1"):
        bucket_of(length, (4, 8, 16))
    with pytest.raises(InputError, match="the buckets are 4, 8, 16"):
        padded_tokens({length: 1}, (4, 8, 16))


@pytest.mark.parametrize("count", [0, -2])
def test_fewer_than_one_bucket_is_a_usage_error(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} buckets were asked for") as caught:
        choose_edges({3: 1}, count, 8)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("histogram", "message"),
    [
        ({}, "histogram is empty"),
        ({3: 0}, "histogram is empty"),
        ({0: 1, 3: 1}, "a sequence of 0 tokens; allowed are 1 to 8"),
        ({3: 1, 9: 1}, "a sequence of 9 tokens; allowed are 1 to 8"),
    ],
)
def test_a_histogram_that_does_not_fit_is_refused(histogram: dict[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_edges(histogram, 2, 8)
