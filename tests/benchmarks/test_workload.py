"""Requests for any model, and which of them a turn takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attn_export.benchmarks.workload import (
    Workload,
    budget_batches,
    padded_batches,
    save_sequences,
    sorted_batches,
    stratified,
    synthetic_sequences,
)
from attn_export.calibration.data import read_sequences
from attn_export.calibration.lengths import TWEET_LENGTHS, length_histogram
from attn_export.engines.schedule import PlannedBatch
from attn_export.spec import TensorSpec

TOKENS = ("batch", "sequence")
IDS = TensorSpec(name="ids", dtype="int32", shape=TOKENS, role="ids", limit=900)
MASK = TensorSpec(name="mask", dtype="int32", shape=TOKENS, role="mask")
TYPES = TensorSpec(name="types", dtype="int32", shape=TOKENS, role="ids", limit=2)
VALUES = TensorSpec(name="x", dtype="float32", shape=(*TOKENS, 5))


def test_synthetic_sequences_are_as_long_as_tweets() -> None:
    sequences = synthetic_sequences((IDS, MASK), 128)
    assert length_histogram(sequences) == TWEET_LENGTHS
    ids = np.concatenate(sequences)
    assert ids.dtype == np.int32
    assert 0 <= ids.min() < ids.max() == 899


def test_synthetic_sequences_stop_at_the_models_maximum() -> None:
    assert max(map(len, synthetic_sequences((IDS,), 30))) == 30


def test_saved_sequences_are_read_back(tmp_path: Path) -> None:
    sequences = synthetic_sequences((IDS,), 128)[:50]
    save_sequences(tmp_path / "data.npz", sequences)
    back = read_sequences(tmp_path / "data.npz")
    assert all(map(np.array_equal, back, sequences))


def test_a_model_of_ids_and_masks_gets_the_sequences_as_they_are() -> None:
    sequences = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    workload = Workload((IDS, MASK), sequences)
    assert workload.lengths.tolist() == [3, 1]
    feeds = workload.feeds(PlannedBatch(np.array([1, 0]), 4))
    assert feeds["ids"].tolist() == [[8, 0, 0, 0], [5, 6, 7, 0]]
    assert feeds["mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_other_inputs_are_made_up_in_the_right_shape() -> None:
    workload = Workload((TYPES, IDS, MASK, VALUES), [np.array([5, 6, 7], np.int32)])
    feeds = workload.feeds(PlannedBatch(np.array([0]), 4))
    assert feeds["ids"].tolist() == [[5, 6, 7, 0]]
    assert {name: a.shape for name, a in feeds.items()} == (
        {"types": (1, 4), "ids": (1, 4), "mask": (1, 4), "x": (1, 4, 5)}
    )
    assert (feeds["x"][0, :3] != 0).all()
    assert (feeds["x"][0, 3] == 0).all()


def test_a_model_without_ids_gets_values_of_each_length() -> None:
    workload = Workload((VALUES,), [np.zeros(2, np.int32), np.zeros(3, np.int32)])
    assert workload.lengths.tolist() == [2, 3]


def test_stratified_takes_the_middle_of_equal_parts_in_order() -> None:
    lengths = np.array([9, 1, 8, 2, 7, 3])  # sorted: 1 2 | 3 7 | 8 9; the second of each pair
    assert stratified(lengths, 3).tolist() == [0, 3, 4]
    assert stratified(lengths, 99).tolist() == list(range(6))


@pytest.mark.parametrize("count", [50, 200, 777])
def test_a_part_has_the_mean_length_of_all(count: int) -> None:
    lengths = np.array([len(s) for s in synthetic_sequences((IDS,), 128)])
    assert lengths[stratified(lengths, count)].mean() == pytest.approx(lengths.mean(), rel=0.01)


def test_padded_batches_are_full_and_as_long_as_the_maximum() -> None:
    batches = padded_batches(np.arange(1, 31), 11, batch_size=4, length=64)
    assert [(len(b.indices), b.length) for b in batches] == [(4, 64)] * 3
    few = padded_batches(np.arange(1, 3), 100, batch_size=4, length=64)
    assert [len(b.indices) for b in few] == [2]


def test_sorted_batches_pad_to_their_own_longest() -> None:
    lengths = np.array([3, 9, 1, 7, 5, 2])
    batches = sorted_batches(lengths, 6, batch_size=2)
    assert [(b.indices.tolist(), b.length) for b in batches] == (
        [([1, 3], 9), ([4, 0], 5), ([5, 2], 2)]
    )
    assert [b.length for b in sorted_batches(lengths, 2, batch_size=2)] == [5]


def test_budget_batches_hold_the_chosen_within_the_budget() -> None:
    lengths = np.array([3, 9, 1, 7, 5, 2])
    batches = budget_batches(lengths, np.array([0, 1, 2, 4]), 10)
    assert [(b.indices.tolist(), b.length) for b in batches] == [([1], 9), ([4, 0], 5), ([2], 1)]
    assert [b.length for b in budget_batches(lengths, np.array([1]), 4)] == [9]
