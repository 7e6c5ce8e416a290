"""Bucket edges: the few sequence lengths that an engine is built for.

A sequence is padded up to the smallest edge that holds it, so the edges decide how much of the
work is padding.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

import numpy as np

from attn_export.errors import InputError, UsageError


def choose_edges(histogram: Mapping[int, int], count: int, last: int) -> tuple[int, ...]:
    """Choose ascending edges, at most ``count``, that pad the fewest tokens.

    The optimum is exact: dynamic programming over the distinct lengths, as an edge between two
    of them only adds padding. The last edge is always ``last``, also when no sequence is that
    long, and it counts as one of ``count``. With fewer distinct lengths than ``count``, each
    gets its own edge and there are fewer edges.

    Args:
        histogram: tokens of a sequence -> number of sequences.
        last: the longest sequence that the engine must take, in tokens.

    Raises:
        UsageError: if ``count`` is below 1.
        InputError: if the histogram is empty, or a length is below 1 or above ``last``.
    """
    if count < 1:
        raise UsageError(f"{count} buckets were asked for; ask for at least 1")
    lengths = sorted(length for length, number in histogram.items() if number)
    if not lengths:
        raise InputError("the length histogram is empty; give the lengths of some sequences")
    if lengths[0] < 1 or lengths[-1] > last:
        wrong = lengths[0] if lengths[0] < 1 else lengths[-1]
        raise InputError(
            f"the length histogram holds a sequence of {wrong} tokens; allowed are 1 to {last}: "
            "remove it, or choose another maximum length"
        )
    points = lengths if lengths[-1] == last else [*lengths, last]
    numbers = [histogram.get(point, 0) for point in points]
    return _least_tokens(points, numbers, min(count, len(points)))


def _least_tokens(points: list[int], numbers: list[int], count: int) -> tuple[int, ...]:
    """Exactly ``count`` of the points, the last one among them, for the fewest tokens in all.

    ``tokens[j]`` is the least number of tokens, padding included, of the sequences of the first
    j points in k buckets: the last bucket starts at some i < j and pads to point j - 1.
    """
    edge = np.array(points, dtype=np.int64)
    below = np.concatenate([[0], np.cumsum(np.array(numbers, dtype=np.int64))])
    tokens = edge * below[1:]
    tokens = np.concatenate([[0], tokens])
    starts = []
    for k in range(2, count + 1):
        start = np.zeros(len(points) + 1, dtype=np.int64)
        longer = np.zeros_like(tokens)
        for j in range(k, len(points) + 1):
            first = k - 1  # k - 1 buckets need as many points
            totals = tokens[first:j] + edge[j - 1] * (below[j] - below[first:j])
            best = int(np.argmin(totals))
            start[j], longer[j] = first + best, totals[best]
        starts.append(start)
        tokens = longer
    edges, end = [], len(points)
    for start in reversed(starts):
        edges.append(points[end - 1])
        end = int(start[end])
    edges.append(points[end - 1])
    return tuple(reversed(edges))


def padded_tokens(histogram: Mapping[int, int], edges: Sequence[int]) -> int:
    """Count the padding alone, in tokens, with each sequence padded to its bucket's edge.

    Raises:
        InputError: if a length is below 1 or above the last edge.
    """
    return sum(
        number * (edges[bucket_of(length, edges)] - length)
        for length, number in histogram.items()
        if number
    )


def bucket_of(length: int, edges: Sequence[int]) -> int:
    """The index of the smallest of the ascending edges that holds ``length`` tokens.

    Raises:
        InputError: if ``length`` is below 1 or above the last edge.
    """
    if not 1 <= length <= edges[-1]:
        raise length_error("a sequence", length, edges)
    return bisect.bisect_left(edges, length)


def length_error(name: str, length: int, edges: Sequence[int]) -> InputError:
    """The error for a sequence that fits no bucket; ``name`` says which one it is."""
    return InputError(
        f"{name} has {length} tokens; the buckets are {', '.join(map(str, edges))}: give 1 to "
        f"{edges[-1]} tokens, or build with a larger maximum length"
    )
