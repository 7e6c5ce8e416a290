"""What each way has to compute, worked by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from attn_export.benchmarks.packing_work import (
    arithmetic,
    edges_work,
    empty_share,
    packed_work,
    sorted_work,
)

GROUPS = [[3, 4, 2, 3], [5]]

TAKING_8: Any = SimpleNamespace(buckets=(4, 8), batch_tokens=8, profiles=())


def test_the_tokens_and_what_each_attends_to() -> None:
    # Rows of 6 hold 4 + 2 and 3 + 3; the second group is one row.
    assert packed_work(GROUPS, width=1000, ways=1) == [(12, 6), (5, 5)]
    # Two batches of two: 4 and 3 tokens as 2 x 4, then 3 and 2 as 2 x 3.
    assert sorted_work(GROUPS, TAKING_8) == [(8, 4), (6, 3), (5, 5)]
    assert edges_work(GROUPS, edges=(4, 8)) == [(4, 4)] * 4 + [(8, 8)]


def test_shares_and_sums() -> None:
    assert empty_share([(12, 6), (5, 5)], GROUPS) == 0
    assert empty_share([(4, 4)] * 4 + [(8, 8)], GROUPS) == pytest.approx(7 / 24)
    assert arithmetic([(12, 6), (5, 5)], 10) == 12 * 16 + 5 * 15
