"""How long batches take between those that are known."""

from __future__ import annotations

import pytest

from attn_export.benchmarks.plan_option import Service

SERVICE = Service(batches=(4, 12), seconds=(0.4, 0.8), p99_s=(0.5, 0.8))


def test_times_are_on_straight_lines_and_never_below_the_smallest_known() -> None:
    assert SERVICE.times(8).tolist() == pytest.approx([0.4, 0.4, 0.4, 0.4, 0.45, 0.5, 0.55, 0.6])


def test_capacity_is_of_full_batches() -> None:
    assert SERVICE.capacity(4) == pytest.approx(10.0)
    assert SERVICE.capacity(12) == pytest.approx(15.0)
    assert SERVICE.best_capacity == pytest.approx(15.0)


def test_the_spread_is_what_the_slowest_of_a_hundred_takes_longer() -> None:
    assert SERVICE.spread(2) == pytest.approx(0.1)
    assert SERVICE.spread(8) == pytest.approx(0.05)
    assert SERVICE.spread(12) == 0.0


def test_sizes_are_powers_of_two_and_what_is_known() -> None:
    assert SERVICE.sizes == [1, 2, 4, 8, 12]


def test_a_single_request_goes_in_front_and_is_never_slower_than_a_batch() -> None:
    alone = Service(batches=(1, 128), seconds=(0.1, 9.0), p99_s=(0.15, 9.0))
    assert SERVICE.after(alone).times(4).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    slow = Service(batches=(1, 128), seconds=(0.6, 9.0), p99_s=(0.7, 9.0))
    assert SERVICE.after(slow).seconds[0] == 0.4
