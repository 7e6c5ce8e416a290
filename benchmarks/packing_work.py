"""What packed rows and buckets have to compute: tokens, and an estimate of the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from attn_export.engines.buckets import bucket_of
from attn_export.engines.packing import best_rows
from attn_export.engines.schedule import plan_for
from attn_export.engines.session import Session

# Computed tokens, padding included, each with the tokens that it attends to: (tokens, width).
Work = list[tuple[int, int]]


def packed_work(groups: Sequence[Sequence[int]], *, width: int, ways: int) -> Work:
    """Of the rows of a packed engine; a group is the lengths of its texts, in tokens."""
    packed = [best_rows(group, width=width, ways=ways) for group in groups]
    return [(len(rows) * length, length) for rows, length in packed]


def sorted_work(groups: Sequence[Sequence[int]], session: Session) -> Work:
    """Of the sorted batches that ``run_many`` makes for a session."""
    return [
        (len(batch.indices) * batch.length, batch.length)
        for group in groups
        for batch in plan_for(session, group)
    ]


def edges_work(groups: Sequence[Sequence[int]], *, edges: tuple[int, ...]) -> Work:
    """Of texts padded to their bucket's edge, as an engine with profiles has to."""
    widths = [edges[bucket_of(length, edges)] for group in groups for length in group]
    return [(width, width) for width in widths]


def empty_share(work: Work, groups: Sequence[Sequence[int]]) -> float:
    """The share of computed tokens that are padding."""
    return 1 - sum(map(sum, groups)) / sum(tokens for tokens, _ in work)


def arithmetic(work: Work, width: int) -> int:
    """What it costs, in the unit of one token that attends to one token.

    Args:
        width: see :func:`~attn_export.engines.packing.break_even_width`.
    """
    return sum(tokens * (width + attended) for tokens, attended in work)
