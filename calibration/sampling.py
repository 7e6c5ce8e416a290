"""Requests that stand for all: a sample spread over the real lengths, and batches of it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from attn_export.errors import InputError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .requests import Array, Request, request_length


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some of the requests.

    Attributes:
        requests: in the order in which they were read.
        lengths: tokens -> number of requests, of all that were read, shortest first.
        seen: how many were read.
        notes: what a reader of the result should know.
    """

    requests: tuple[Request, ...]
    lengths: dict[int, int]
    seen: int
    notes: tuple[str, ...] = ()


def stratified_sample(
    requests: Iterable[Request],
    count: int,
    edges: Sequence[int],
    seed: int,
    *,
    inputs: Sequence[TensorSpec],
) -> Sample:
    """Draw about ``count`` requests whose lengths are spread over the buckets as those of all.

    One pass; at most ``count`` requests of each bucket are in memory. Each bucket gives its share
    (the largest remainders are rounded up), and each that has any gives at least one, so that a
    very small ``count`` may be exceeded. The same requests, edges and seed give the same sample.

    Args:
        edges: the ascending bucket edges, in tokens.
        inputs: what the model takes.

    Raises:
        UsageError: if ``count`` is below 1.
        InputError: if there are no requests, or one is longer than the last edge.
    """
    if count < 1:
        raise UsageError(f"a sample of {count} requests was asked for; it must be at least 1")
    rng = np.random.default_rng(seed)
    lengths: Counter[int] = Counter()
    buckets: defaultdict[int, _Reservoir] = defaultdict(_Reservoir)
    for index, request in enumerate(requests):
        length = request_length(request, inputs)
        if length > edges[-1]:
            raise InputError(
                f"request {index} (from 0) has {length} tokens, the last bucket ends at "
                f"{edges[-1]}; read them with that maximum length"
            )
        lengths[length] += 1
        buckets[bisect_left(edges, length)].offer(index, request, count, rng)
    if not lengths:
        raise InputError("there are no requests to sample; give data with at least one")
    filled = [buckets[number] for number in sorted(buckets)]
    shares = _shares([bucket.seen for bucket in filled], count)
    drawn = [item for bucket, n in zip(filled, shares, strict=True) for item in bucket.draw(n, rng)]
    return Sample(
        requests=tuple(request for _, request in sorted(drawn, key=lambda item: item[0])),
        lengths=dict(sorted(lengths.items())),
        seen=lengths.total(),
        notes=_notes(lengths, count, inputs),
    )


def batches_of_one_length(
    requests: Iterable[Request], inputs: Sequence[TensorSpec], batch_tokens: int
) -> Iterator[dict[str, Array]]:
    """Feeds [B, S] of requests of exactly S tokens each, masks all ones: nothing is padding.

    Full batches come as soon as they are full, the rest at the end, shortest first.

    Args:
        batch_tokens: the most tokens of a batch; a longer request is a batch of its own.

    Raises:
        UsageError: if ``batch_tokens`` is below 1.
    """
    if batch_tokens < 1:
        raise UsageError(f"batches of {batch_tokens} tokens were asked for; give at least 1")
    waiting: dict[int, list[Request]] = {}
    for request in requests:
        length = request_length(request, inputs)
        group = waiting.setdefault(length, [])
        group.append(request)
        if (len(group) + 1) * length > batch_tokens:
            yield _feeds(waiting.pop(length), inputs, length)
    for length, group in sorted(waiting.items()):
        yield _feeds(group, inputs, length)


@dataclass
class _Reservoir:
    """A uniform sample of what was offered (Vitter 1985, algorithm R)."""

    items: list[tuple[int, Request]] = field(default_factory=list)
    seen: int = 0

    def offer(self, index: int, request: Request, size: int, rng: np.random.Generator) -> None:
        self.seen += 1
        if len(self.items) < size:
            self.items.append((index, request))
            return
        place = int(rng.integers(self.seen))
        if place < size:
            self.items[place] = (index, request)

    def draw(self, count: int, rng: np.random.Generator) -> list[tuple[int, Request]]:
        # The places are not uniform, only the set of items is: hence a draw, not a slice.
        return [self.items[i] for i in rng.choice(len(self.items), count, replace=False)]


def _shares(seen: Sequence[int], count: int) -> list[int]:
    """How many of ``count`` each bucket gives: its part, by largest remainder, at least one."""
    total = sum(seen)
    count = min(count, total)
    shares = [n * count // total for n in seen]
    by_remainder = sorted(range(len(seen)), key=lambda i: -(seen[i] * count % total))
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    shares = [max(1, share) for share in shares]
    while sum(shares) > max(count, len(seen)):
        shares[shares.index(max(shares))] -= 1
    return shares


def _notes(lengths: Counter[int], count: int, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    notes = []
    if lengths.total() < count:
        notes.append(f"{count} requests were asked for and the data holds {lengths.total()}")
    if len(lengths) == 1 and any(spec.axis(SEQUENCE) is not None for spec in inputs):
        notes.append(
            f"all {lengths.total()} requests have {min(lengths)} tokens: padded or cut data? "
            "ranges from one length may not hold for others"
        )
    return tuple(notes)


def _feeds(
    requests: Sequence[Request], inputs: Sequence[TensorSpec], length: int
) -> dict[str, Array]:
    sizes = {BATCH: len(requests), SEQUENCE: length}
    feeds: dict[str, Array] = {}
    for spec in inputs:
        if spec.role == "mask":
            shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
            feeds[spec.name] = np.ones(shape, spec.dtype)
        else:
            feeds[spec.name] = np.stack([request[spec.name] for request in requests])
    return feeds
