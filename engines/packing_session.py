"""A packed graph behind the same inputs and outputs as a padded one.

The adapter takes padded batches, puts their real tokens into rows that texts share, runs the
packed graph on these, and returns each answer to where its text was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from attn_export.manifest import EngineRecord, GraphRecord
from attn_export.spec import TensorSpec

from .packing import best_rows
from .session import Array, Feeds, Outputs, Session

PACKED = "packed"
# Texts of many batches share rows; more than this, padding included, would only wait in memory.
WINDOW_TOKENS = 1 << 16


def provider_of(record: EngineRecord) -> str:
    """The provider in an ONNX Runtime engine's variant, ``""`` for the CPU."""
    return record.variant.removesuffix(PACKED).removesuffix("-")


def is_packed(record: EngineRecord) -> bool:
    """Whether an engine packs texts into rows."""
    return record.variant.endswith(PACKED)


def graph_specs(graph: GraphRecord, which: str) -> list[TensorSpec]:
    """A packed graph's own ``"inputs"`` or ``"outputs"``, which are not the model's."""
    return [TensorSpec.from_json(item) for item in graph.summary[which]]


class PackingSession:
    """Session of a packed graph; the rows' length is chosen for the texts that are given.

    Args:
        inner: a session of the packed graph, which takes rows of any number and length.
        inputs: the padded model's: ids and a mask of shape [B, S].
        outputs: the padded model's, each [B, ...].
        width: the row length at which attention takes as long as all else, in tokens.
        threads: how many batches run at a time; rows that fit into fewer are split into as many.
    """

    def __init__(
        self,
        inner: Session,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        buckets: Sequence[int],
        width: int,
        threads: int,
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.buckets = tuple(buckets)
        self.profiles = inner.profiles
        self.batch_tokens = inner.batch_tokens
        self.threads = threads
        self.width, self._inner = width, inner

    def run(self, feeds: Feeds) -> Outputs:
        """One batch.

        Raises:
            AttnExportError: as the packed graph's session does.
        """
        return next(self.run_all([feeds]))

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        """Many batches, whose texts share rows; results in order.

        Raises:
            AttnExportError: as the packed graph's session does.
        """
        window: list[Feeds] = []
        tokens = 0
        for feeds in batches:
            window.append(feeds)
            tokens += feeds[self.inputs[0].name].size
            if tokens >= WINDOW_TOKENS:
                yield from self._answer(window)
                window, tokens = [], 0
        if window:
            yield from self._answer(window)

    def close(self) -> None:
        """Free the packed graph; later runs are errors."""
        self._inner.close()

    def _answer(self, window: Sequence[Feeds]) -> Iterator[Outputs]:
        ids, mask = (self._name(role) for role in ("ids", "mask"))
        texts = Texts([feeds[ids] for feeds in window], [feeds[mask] for feeds in window])
        rows, length = best_rows(texts.lengths, width=self.width, ways=self.threads)
        # Rows of as many texts go together: the last layer computes the fullest row's number.
        rows.sort(key=len)
        size = max(1, min(self.batch_tokens // length, -(-len(rows) // self.threads)))
        plan = [rows[start : start + size] for start in range(0, len(rows), size)]
        packed = (texts.feeds(part, length) for part in plan)
        # A single batch has nothing to run beside it: run() gives it the whole device.
        single = len(plan) == 1
        results = map(self._inner.run, packed) if single else self._inner.run_all(packed)
        answers = {
            spec.name: np.empty((len(texts.lengths), *map(int, spec.shape[1:])), spec.dtype)
            for spec in self.outputs
        }
        for part, outputs in zip(plan, results, strict=True):
            for name, array in answers.items():
                for row, indices in zip(outputs[name], part, strict=True):
                    array[indices] = row[: len(indices)]
        ends = list(accumulate(len(feeds[ids]) for feeds in window))
        for start, end in zip([0, *ends], ends, strict=False):
            yield {name: array[start:end] for name, array in answers.items()}

    def _name(self, role: str) -> str:
        return next(spec.name for spec in self.inputs if spec.role == role)


class Texts:
    """The tokens of padded batches, text by text.

    What padding the model computes with stays: all tokens of a fully masked text, which attends
    everywhere, and a masked first token, which the answer is read from but no other token reads.

    Args:
        ids: of each batch [B, S]; ``masks`` likewise.

    Attributes:
        lengths: the tokens that each text keeps.
    """

    def __init__(self, ids: Sequence[Array], masks: Sequence[Array]) -> None:
        batches = [_kept(*pair) for pair in zip(ids, masks, strict=True)]
        self._ids, self._positions, self._signs = (
            np.concatenate(parts) for parts in zip(*(arrays for arrays, _ in batches), strict=True)
        )
        self.lengths: list[int] = np.concatenate([counts for _, counts in batches]).tolist()
        self._ends = list(accumulate(self.lengths))

    def feeds(self, rows: Sequence[Sequence[int]], length: int) -> Feeds:
        """The packed graph's inputs for some rows of ``length`` tokens, each a list of texts."""
        names = ("input_ids", "position_ids", "segment_ids")
        feeds = {name: np.zeros((len(rows), length), np.int32) for name in names}
        firsts = np.zeros((len(rows), max(map(len, rows))), np.int32)
        ids, positions, segments = (array.reshape(-1) for array in feeds.values())
        for row, texts in enumerate(rows):
            at = row * length
            firsts[row] = at
            for place, text in enumerate(texts):
                there = slice(at, at + self.lengths[text])
                here = slice(self._ends[text] - self.lengths[text], self._ends[text])
                ids[there], positions[there] = self._ids[here], self._positions[here]
                segments[there] = (place + 1) * self._signs[here]
                firsts[row, place] = at
                at = there.stop
        return {**feeds, "first_tokens": firsts}


def _kept(ids: Array, mask: Array) -> tuple[tuple[Array, Array, Array], Array]:
    """Of the tokens that a batch computes with: id, position, -1 if it is not read, else 1.

    Also how many there are of each text.
    """
    read = mask != 0
    read[~read.any(axis=1)] = True
    kept = read.copy()
    kept[:, 0] = True
    positions = np.nonzero(kept)[1].astype(np.int32)
    signs = np.where(read[kept], 1, -1).astype(np.int32)
    return (ids[kept], positions, signs), kept.sum(axis=1)
