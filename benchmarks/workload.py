"""What a measurement runs on: sequences, requests made of them, and which ones a turn takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.calibration.lengths import TWEET_LENGTHS
from attn_export.engines.feeds import Requests
from attn_export.engines.schedule import PlannedBatch
from attn_export.spec import SEQUENCE, TensorSpec

Ids = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]
Batches = list[PlannedBatch]


def synthetic_sequences(inputs: Sequence[TensorSpec], max_length: int, seed: int = 0) -> list[Ids]:
    """2,000 sequences of uniform ids, as long as the built-in histogram of tweets says.

    Longer ones than ``max_length`` are as long as it.
    """
    spec = _ids_input(inputs)
    limit = spec.limit if spec and spec.limit else 2
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.repeat(list(TWEET_LENGTHS), list(TWEET_LENGTHS.values())))
    return [rng.integers(0, limit, min(n, max_length)).astype(np.int32) for n in lengths.tolist()]


def save_sequences(path: Path, sequences: Sequence[Ids]) -> None:
    """Write sequences as an .npz that ``read_sequences`` reads."""
    offsets = np.cumsum([0, *map(len, sequences)])
    np.savez(path, input_ids=np.concatenate(sequences), offsets=offsets)


class Workload:
    """Requests for any model, made of token sequences.

    A model that takes ids alone (and masks) gets each sequence as it is. For other inputs, seeded
    values of the sequence's length are made up; only their amount matters to a measurement.

    Attributes:
        raw: what ``Engine.run_many`` takes.
        lengths: tokens of each request; 1 for a model without a sequence axis.
    """

    def __init__(self, inputs: Sequence[TensorSpec], sequences: Sequence[Ids]) -> None:
        needed = [spec for spec in inputs if spec.role != "mask"]
        ids = _ids_input(inputs)
        self.raw: list[Any] = list(sequences)
        if needed != [ids]:
            longest = max(map(len, sequences))
            made_up = {spec.name: _values(spec, longest) for spec in needed if spec != ids}
            self.raw = [
                {
                    **({ids.name: sequence} if ids else {}),
                    **{s.name: _cut(s, made_up[s.name], len(sequence)) for s in needed if s != ids},
                }
                for sequence in sequences
            ]
        self.requests = Requests(self.raw, inputs, check_ids=False)
        self.lengths: Lengths = np.asarray(self.requests.lengths, dtype=np.int64)

    def feeds(self, batch: PlannedBatch) -> dict[str, Any]:
        """One padded batch."""
        return dict(self.requests.feeds(batch.indices.tolist(), batch.length))


def _ids_input(inputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """The input with the largest vocabulary: the tokens, and not segments or positions."""
    ids = [spec for spec in inputs if spec.role == "ids" and SEQUENCE in spec.shape[1:]]
    return max(ids, key=lambda spec: spec.limit or 0) if ids else None


def _values(spec: TensorSpec, longest: int) -> npt.NDArray[Any]:
    shape = [longest if size == SEQUENCE else int(size) for size in spec.shape[1:]]
    rng = np.random.default_rng(0)
    if spec.role == "ids":
        return rng.integers(0, spec.limit or 1, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)


def _cut(spec: TensorSpec, values: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    return values[tuple(slice(length) if n == SEQUENCE else slice(None) for n in spec.shape[1:])]


def stratified(lengths: Lengths, count: int) -> Lengths:
    """The indices of ``count`` requests whose lengths are spread as those of all; in order."""
    ranks = _spread(len(lengths), count)
    return np.sort(np.argsort(lengths, kind="stable")[ranks])


def padded_batches(lengths: Lengths, count: int, *, batch_size: int, length: int) -> Batches:
    """About ``count`` requests in full batches, each padded to ``length`` tokens."""
    whole = max(1, round(count / batch_size)) * batch_size
    chosen = stratified(lengths, min(whole, len(lengths)))
    starts = range(0, len(chosen), batch_size)
    return [PlannedBatch(chosen[start : start + batch_size], length) for start in starts]


def sorted_batches(lengths: Lengths, count: int, *, batch_size: int) -> Batches:
    """All requests sorted, in batches padded to their own longest; about ``count`` of them."""
    order = np.argsort(-lengths, kind="stable")
    starts = range(0, len(order), batch_size)
    batches = [order[start : start + batch_size] for start in starts]
    chosen = _spread(len(batches), max(1, round(count / batch_size)))
    return [PlannedBatch(batches[i], int(lengths[batches[i][0]])) for i in chosen.tolist()]


def budget_batches(lengths: Lengths, indices: Lengths, tokens: int) -> Batches:
    """Some requests sorted, in batches of at most ``tokens`` with their padding."""
    order = indices[np.argsort(-lengths[indices], kind="stable")]
    batches, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        stop = start + max(1, tokens // longest)
        batches.append(PlannedBatch(order[start:stop], longest))
        start = stop
    return batches


def _spread(total: int, count: int) -> Lengths:
    """``count`` of the numbers below ``total``, each from the middle of an equal part."""
    count = min(count, total)
    return ((np.arange(count) + 0.5) * total / count).astype(np.int64)
