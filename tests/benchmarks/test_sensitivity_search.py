"""The search for what must stay FP32, on made-up bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from attn_export.benchmarks.sensitivity_parts import Kind
from attn_export.benchmarks.sensitivity_report import Row
from attn_export.benchmarks.sensitivity_search import by_estimate, fewest_excluded


def row(name: str, kind: Kind, noise: float, *nodes: str) -> Row:
    return Row(
        name=name,
        kind=kind,
        nodes=nodes,
        sqnr_db=-10 * math.log10(noise) if noise else None,
        labels=1.0,
        cosine=1.0,
    )


@pytest.mark.parametrize("total", [1, 2, 3, 7, 16, 33])
def test_the_fewest_are_found_in_few_trials(total: int) -> None:
    order = [str(number) for number in range(total)]
    for needed in range(1, total + 1):
        trials: list[int] = []

        def holds(some: Sequence[str], needed: int = needed, trials: list[int] = trials) -> bool:
            assert some == order[: len(some)]
            trials.append(len(some))
            return len(some) >= needed

        assert fewest_excluded(order, holds) == order[:needed]
        assert len(trials) == len(set(trials)) <= 2 * math.ceil(math.log2(needed + 1)) + 1


def test_what_is_found_was_tried_where_more_is_not_better() -> None:
    good = {3, 4, 6, 8}
    tried: list[int] = []

    def holds(some: Sequence[str]) -> bool:
        tried.append(len(some))
        return len(some) in good

    found = len(fewest_excluded("abcdefgh", holds))
    assert found in good
    assert found in tried


def test_nothing_to_exclude_from() -> None:
    assert list(fewest_excluded([], lambda _: False)) == []


def test_a_layers_noise_is_divided_as_the_roles_noise_is() -> None:
    # Role a makes three times the noise of role b, layer 1 ten times that of layer 0:
    # 0.a 0.75, 0.b 0.25, 1.a 7.5, 1.b 2.5; the pooler's 4 are 2 for each node.
    rows = [
        row("0", "layer", 1.0, "0.b", "0.a"),
        row("1", "layer", 10.0, "1.b", "1.a"),
        row("pooler", "layer", 4.0, "p", "q"),
        row("a", "role", 6.0, "0.a", "1.a"),
        row("b", "role", 2.0, "0.b", "1.b"),
    ]
    assert by_estimate(rows) == ["1.a", "1.b", "p", "q", "0.a", "0.b"]


def test_layers_without_noise_come_last() -> None:
    rows = [row("0", "layer", 0.0, "x"), row("1", "layer", 0.5, "y"), row("a", "role", 0.0, "x")]
    assert by_estimate(rows) == ["y", "x"]
