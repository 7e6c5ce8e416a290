"""Which texts share a row: the plan of packed rows, in numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attn_export.errors import UsageError

Rows = list[list[int]]  # the indices of the texts in each row
EIGHTHS = range(8, 25)  # row lengths that are tried, in eighths of the longest text
# What a FLOP of attention costs in those of a product with weights: its products are small and its
# softmax is no product at all. Measured with ONNX Runtime on a CPU.
ATTENTION_PRICE = 5


def best_rows(lengths: Sequence[int], *, width: int, ways: int = 1) -> tuple[Rows, int]:
    """Pack texts into rows of the length that costs least; the rows and that length in tokens.

    Longer rows leave fewer tokens empty, but each of a row's T tokens attends to all T. Rows that
    run at a time wait for each other, so they are counted in multiples of ``ways``.

    Args:
        width: the T at which attention takes as long as all else.
        ways: how many parts run at a time.
    """
    longest, total = max(lengths), sum(lengths)
    best: tuple[int, Rows, int] | None = None
    for eighths in EIGHTHS:
        length = longest * eighths // 8
        price = width + length  # of a token
        if best is not None and total * price >= best[0]:
            break  # without one empty token it would cost as much, and longer ones more
        rows = pack_rows(lengths, length)
        cost = -(-len(rows) // ways) * ways * length * price
        if best is None or cost < best[0]:
            best = cost, rows, length
    assert best is not None
    return best[1:]


def break_even_width(spec: Mapping[str, int]) -> int:
    """The row length at which attention's products cost as much as those with weights.

    A token of a layer costs 4 M M + 4 M K D FLOPs in the projections and 4 M F in the feed-forward
    block, and 4 T M in attention over T tokens.

    Args:
        spec: the dimensions of a reference encoder, fields of EncoderSpec.
    """
    shared = spec["num_kv_heads"] * (spec["hidden_size"] // spec["num_heads"])
    return spec["hidden_size"] + shared + spec["ffn_size"]


def pack_rows(lengths: Sequence[int], row_length: int) -> Rows:
    """Put texts into few rows of at most ``row_length`` tokens; the texts' indices by row.

    The longest text first, each into the fullest row that still holds it: best-fit decreasing,
    which is the longest-pack-first packing of arXiv:2107.02027. It needs at most 11/9 of the fewest
    possible rows, and 4 (Johnson et al. 1974, SIAM J. Comput. 3(4)). Rows are found by the space
    that they have left, so the time does not grow with their number.

    Raises:
        UsageError: if a text is empty or longer than a row; its index is named.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= row_length:
            raise UsageError(
                f"text {index} (from 0) has {length} tokens; a row holds 1 to {row_length}: "
                "give longer rows"
            )
    rows: Rows = []
    by_space: dict[int, list[list[int]]] = {}
    spaces = 0  # bit s is set where a row has s tokens left
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, row = row_length, []
            rows.append(row)
        row.append(index)
        left = space - length
        if left:
            by_space.setdefault(left, []).append(row)
            spaces |= 1 << left
    return rows
