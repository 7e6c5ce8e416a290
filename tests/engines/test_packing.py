"""Rows of texts: all texts in, none twice, none too long, and hardly more rows than needed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from attn_export.engines.packing import EIGHTHS, best_rows, break_even_width, pack_rows
from attn_export.errors import UsageError


def fewest_rows(lengths: Sequence[int], row_length: int) -> int:
    """By trying every way to put one text after the other into the rows so far."""
    best = len(lengths)

    def place(index: int, loads: list[int]) -> None:
        nonlocal best
        if len(loads) >= best:
            return
        if index == len(lengths):
            best = len(loads)
            return
        for row in range(len(loads)):
            if loads[row] + lengths[index] <= row_length:
                grown = [*loads]
                grown[row] += lengths[index]
                place(index + 1, grown)
        place(index + 1, [*loads, lengths[index]])

    place(0, [])
    return best


def loads_by_scan(lengths: Sequence[int], row_length: int) -> list[int]:
    """Best-fit decreasing as its definition says it, looking at every row."""
    loads: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, load in enumerate(loads) if load + length <= row_length]
        if fitting:
            loads[max(fitting, key=lambda row: loads[row])] += length
        else:
            loads.append(length)
    return loads


def drawn(seed: int, count: int, longest: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(1, longest + 1, count)]


@pytest.mark.parametrize(
    ("lengths", "row_length", "expected"),
    [
        ([], 8, []),
        ([8], 8, [[0]]),
        ([3, 5], 8, [[1, 0]]),
        ([5, 4, 3, 4], 8, [[0, 2], [1, 3]]),
        ([6, 5, 2, 3, 3], 9, [[0, 3], [1, 4], [2]]),  # 9 + 8 + 2
        ([1, 1, 1], 2, [[0, 1], [2]]),
    ],
)
def test_worked_by_hand(lengths: list[int], row_length: int, expected: list[list[int]]) -> None:
    assert pack_rows(lengths, row_length) == expected


@pytest.mark.parametrize("seed", range(40))
def test_it_is_near_the_fewest_rows(seed: int) -> None:
    lengths = drawn(seed, 9, 7 + seed % 4)
    rows, fewest = pack_rows(lengths, 12), fewest_rows(lengths, 12)
    assert fewest <= len(rows) <= Fraction(11, 9) * fewest + Fraction(6, 9)


@pytest.mark.parametrize(("count", "row_length"), [(1, 65), (200, 65), (500, 128), (500, 40)])
def test_every_text_is_in_one_row_and_the_rows_are_those_of_a_scan(
    count: int, row_length: int
) -> None:
    lengths = drawn(count, count, 40)
    rows = pack_rows(lengths, row_length)
    assert sorted(itertools.chain(*rows)) == list(range(count))
    loads = [sum(lengths[index] for index in row) for row in rows]
    assert max(loads) <= row_length
    assert sorted(loads) == sorted(loads_by_scan(lengths, row_length))


@pytest.mark.parametrize(("length", "words"), [(0, "text 1 .* has 0 tokens"), (9, "has 9 tokens")])
def test_a_text_that_fits_no_row_is_named(length: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pack_rows([3, length], 8)


@pytest.mark.parametrize(
    ("width", "ways", "rows", "length"),
    [
        # 16, 15 and 12 tokens in rows of 4, 5 and 6, each at 1000 and the row's length.
        (1000, 1, [[0, 3], [1, 2]], 6),
        # 16 x 5 = 80 against 15 x 6 = 90 and 12 x 7 = 84: attention costs more than padding.
        (1, 1, [[0], [1], [2], [3]], 4),
        # Four run at a time, so two rows of 6 take as long as four of them.
        (1000, 4, [[0], [1], [2], [3]], 4),
    ],
)
def test_the_row_length_is_the_cheapest_by_hand(
    width: int, ways: int, rows: list[list[int]], length: int
) -> None:
    assert best_rows([4, 3, 3, 2], width=width, ways=ways) == (rows, length)


def test_stopping_early_leaves_no_cheaper_length_untried() -> None:
    for seed in range(30):
        lengths = drawn(seed, 12, 30)
        rows, length = best_rows(lengths, width=200)
        tried = {max(lengths) * eighths // 8 for eighths in EIGHTHS}
        costs = [len(pack_rows(lengths, n)) * n * (200 + n) for n in tried]
        assert len(rows) * length * (200 + length) == min(costs)


@pytest.mark.parametrize(
    ("kv_heads", "ffn_size", "width"), [(12, 0, 1536), (1, 0, 832), (12, 3072, 4608)]
)
def test_attention_costs_as_much_as_the_rest_at_that_width(
    kv_heads: int, ffn_size: int, width: int
) -> None:
    spec = {"hidden_size": 768, "num_heads": 12, "num_kv_heads": kv_heads, "ffn_size": ffn_size}
    assert break_even_width(spec) == width
    products = 2 * 2 * 768 * 768 + 2 * 2 * 768 * 64 * kv_heads + 2 * 2 * 768 * ffn_size
    assert 2 * 2 * 768 * width == products
