"""Many sequences of different lengths -> batches with little padding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.errors import UsageError

from .buckets import length_error
from .profiles import largest_batches
from .session import Session

Lengths = npt.NDArray[np.int64]
# A batch as (start, stop, length): a slice of the sorted sequences, and the tokens each is padded
# to.
Cut = tuple[int, int, int]
# With more turns than these a last one that is not full costs little.
FEW_TURNS = 4


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """One batch.

    Args:
        indices: which of the given sequences, longest first; int64 of shape [B].
        length: S, the tokens that each of them is padded to.
    """

    indices: npt.NDArray[np.int64]
    length: int


def plan_batches(
    lengths: Sequence[int] | npt.NDArray[np.integer[Any]],
    *,
    edges: tuple[int, ...],
    batch_tokens: int,
    largest: Sequence[int] | None = None,
    unpadded_tokens: int | None = None,
    at_a_time: int = 1,
) -> list[PlannedBatch]:
    """Sort sequences by length and cut them into batches, the longest first.

    Each sequence is in exactly one batch; sequences of one length keep their order. A batch has
    at most ``batch_tokens`` tokens, padding included, or it is one sequence.

    Args:
        lengths: the tokens of each sequence, shape [N]; none give no batches.
        edges: the engine's ascending bucket edges, in tokens.
        largest: the most sequences that a batch of each bucket may have: a batch then stays in
            one bucket and is padded to its edge, and the batches of a bucket are of nearly equal
            size. None: a batch is padded to its own longest sequence, and holds none shorter than
            half of it.
        unpadded_tokens: without ``largest``, sequences of one length are a batch of their own from
            this many tokens on: some engines skip the mask where nothing is padding.
        at_a_time: without ``largest``, how many batches run beside each other: sequences that would
            not keep all of them busy are cut into more and smaller batches.

    Raises:
        UsageError: if ``batch_tokens`` is below 1.
        InputError: if a length is below 1 or above the last edge; its index is named.
    """
    if batch_tokens < 1:
        raise UsageError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    tokens = np.asarray(lengths, dtype=np.int64)
    wrong = np.flatnonzero((tokens < 1) | (tokens > edges[-1]))
    if wrong.size:
        raise length_error(f"sequence {wrong[0]} (from 0)", int(tokens[wrong[0]]), edges)
    order = np.argsort(-tokens, kind="stable")
    # Negative, so that it ascends, as searchsorted needs.
    negative = -tokens[order]
    cuts = (
        _shared_out(negative, batch_tokens, unpadded_tokens, at_a_time)
        if largest is None
        else _cuts_at_edges(negative, edges, _sizes(edges, largest, batch_tokens))
    )
    return [PlannedBatch(order[start:stop], length) for start, stop, length in cuts]


def plan_for(
    session: Session,
    lengths: Sequence[int] | npt.NDArray[np.integer[Any]],
    batch_tokens: int | None = None,
) -> list[PlannedBatch]:
    """The batches that a session answers sequences in, the longest first.

    Args:
        lengths: the tokens of each sequence, shape [N].
        batch_tokens: None for the session's own.

    Raises:
        InputError: if a length is below 1 or above the session's last bucket edge.
    """
    return plan_batches(
        lengths,
        edges=session.buckets,
        batch_tokens=session.batch_tokens if batch_tokens is None else batch_tokens,
        largest=largest_batches(session.profiles) or None,
        unpadded_tokens=getattr(session, "unpadded_tokens", None),
        at_a_time=1 if are_few(session, len(lengths)) else getattr(session, "streams", 1),
    )


def are_few(session: Session, sequences: int) -> bool:
    """Whether batches are faster one after the other, each on the whole device."""
    return sequences < getattr(session, "streams", 1)


def _sizes(edges: Sequence[int], largest: Sequence[int], batch_tokens: int) -> list[int]:
    """The sequences that fill a batch of each bucket."""
    return [
        max(1, min(most, batch_tokens // edge)) for edge, most in zip(edges, largest, strict=True)
    ]


def _cuts_at_edges(
    negative: Lengths, edges: tuple[int, ...], sizes: Sequence[int]
) -> Iterator[Cut]:
    start = 0
    below = (0, *edges)
    for bucket in reversed(range(len(edges))):
        edge = edges[bucket]
        stop = int(np.searchsorted(negative, -below[bucket]))
        size = stop - start
        # Equal parts: a full batch and a tiny one leave the tiny one's worker idle.
        parts = -(-size // sizes[bucket])
        for part in range(parts):
            yield start + size * part // parts, start + size * (part + 1) // parts, edge
        start = stop


def _shared_out(
    negative: Lengths, batch_tokens: int, unpadded_tokens: int | None, at_a_time: int
) -> list[Cut]:
    """The smallest batches of which there are no more than full ones need turns for."""
    full = list(_cuts_at_longest(negative, batch_tokens, unpadded_tokens))
    turns = -(-len(full) // at_a_time)
    if at_a_time == 1 or not 1 <= turns <= FEW_TURNS:
        return full

    def cut(tokens: int) -> list[Cut]:
        return list(_cuts_at_longest(negative, tokens, unpadded_tokens))

    budgets = range(-int(negative[0]), batch_tokens)
    most = turns * at_a_time
    least = bisect_left(budgets, True, key=lambda tokens: len(cut(tokens)) <= most)
    return cut(budgets[least]) if least < len(budgets) else full


def _cuts_at_longest(
    negative: Lengths, batch_tokens: int, unpadded_tokens: int | None
) -> Iterator[Cut]:
    start = 0
    while start < len(negative):
        longest = -int(negative[start])
        # A few sequences of very different lengths would else be one batch, mostly padding.
        half = int(np.searchsorted(negative, -((longest + 1) // 2), side="right"))
        stop = min(start + max(1, batch_tokens // longest), half)
        equal = int(np.searchsorted(negative, -longest, side="right"))
        if unpadded_tokens is not None and (equal - start) * longest >= unpadded_tokens:
            stop = min(stop, equal)
        yield start, stop, longest
        start = stop
