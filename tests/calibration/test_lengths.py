"""The built-in length histogram, held to the figures that are quoted from it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from attn_export.calibration.data import read_sequences
from attn_export.calibration.lengths import TWEET_LENGTHS, length_histogram

LENGTHS = np.repeat(list(TWEET_LENGTHS), list(TWEET_LENGTHS.values()))


def test_the_tweets_are_2000_with_a_mean_of_29_90_tokens() -> None:
    assert LENGTHS.size == 2000
    assert LENGTHS.mean() == pytest.approx(29.90, abs=0.005)


@pytest.mark.parametrize(
    ("percent", "tokens"),
    [(0, 7), (1, 12), (25, 24), (50, 30), (75, 35), (90, 40), (95, 43), (99, 52), (100, 65)],
)
def test_the_percentiles_of_the_tweets(percent: int, tokens: int) -> None:
    assert round(float(np.percentile(LENGTHS, percent))) == tokens


def test_a_histogram_counts_each_length_shortest_first() -> None:
    sequences = [np.zeros(3, np.int32), np.zeros(1, np.int32), np.zeros(3, np.int32)]
    histogram = length_histogram(sequences)
    assert list(histogram.items()) == [(1, 1), (3, 2)]


def test_no_sequences_have_an_empty_histogram() -> None:
    assert length_histogram([]) == {}


def test_the_built_in_histogram_is_that_of_the_tweets() -> None:
    folder = os.environ.get("ATTN_EXPORT_DATA")
    if not folder:
        pytest.skip("ATTN_EXPORT_DATA is not set: the tweets' ids are not here")
    sequences = read_sequences(Path(folder) / "tweet_eval_sentiment_val_ids.jsonl")
    assert length_histogram(sequences) == TWEET_LENGTHS
