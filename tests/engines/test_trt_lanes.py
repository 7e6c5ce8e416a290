"""The pool of lanes: waiting, broken lanes, and closing while others work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from attn_export.bundle import Bundle
from attn_export.engines.trt_lane import Lane, Shape
from attn_export.engines.trt_lanes import LanePool
from attn_export.errors import HostError, UsageError

from .tiny_plan import TinyPlan, build_tiny

SHAPE = Shape(2, 3, 0)


class Rig:
    """Pools of one engine."""

    def __init__(self, tiny: TinyPlan) -> None:
        self.tiny = tiny
        self.engine = tiny.engine()
        self.made: list[Lane] = []
        self.freed = 0

    def pool(self, limit: int, wait_s: float = 0.0) -> LanePool:
        return LanePool(self.make, limit=limit, wait_s=wait_s, free=self.free)

    def make(self) -> Lane:
        self.made.append(self.tiny.lane(self.engine))
        return self.made[-1]

    def free(self) -> None:
        self.freed += 1


@pytest.fixture
def rig(bundle: Bundle, tensorrt_double: Callable[[str], Any], cuda_double: Any) -> Iterator[Rig]:
    rig = Rig(build_tiny(bundle, tensorrt_double("10.16.1.11")))
    yield rig
    cuda_double.reset()


def test_lanes_are_made_only_when_they_are_needed(rig: Rig) -> None:
    pool = rig.pool(3)
    one = pool.take()
    pool.give(one)
    assert pool.take() is one
    other = pool.take()
    assert len(rig.made) == 2
    pool.give(one)
    pool.give(other)
    assert pool.take() is other  # the one that was used last
    pool.give(other)
    pool.close()


def test_a_batch_waits_for_a_lane_and_no_longer_than_it_is_told(rig: Rig) -> None:
    pool = rig.pool(2, wait_s=0.05)
    lanes = [pool.take(), pool.take()]
    with pytest.raises(HostError, match=r"all 2 streams were busy for 0\.05 s; send fewer"):
        pool.take()
    for lane in lanes:
        pool.give(lane)
    assert pool.take() in lanes


def test_a_lane_that_is_given_back_goes_to_who_waits(rig: Rig) -> None:
    pool = rig.pool(1, wait_s=60)
    lane = pool.take()
    got: list[Lane] = []
    waiting = threading.Thread(target=lambda: got.append(pool.take()))
    waiting.start()
    pool.give(lane)
    waiting.join()
    assert got == [lane]


def test_a_batch_in_flight_is_finished_by_who_needs_its_lane(rig: Rig) -> None:
    pool = rig.pool(1)
    flights = [pool.launch(rig.tiny.feeds(2, 3, seed), SHAPE) for seed in range(3)]
    for seed, flight in enumerate(flights):
        lane = pool.take()
        lane.start(rig.tiny.feeds(2, 3, seed), SHAPE)
        expected = lane.finish()
        pool.give(lane)
        assert flight.outputs()["logits"].tolist() == expected["logits"].tolist()
    pool.close()


def test_a_broken_lane_is_freed_and_replaced(rig: Rig, cuda_double: Any) -> None:
    pool = rig.pool(1)
    lane = pool.take()
    lane.broken = True
    pool.give(lane)
    assert cuda_double.live == []
    assert pool.take() is not lane


def test_a_lane_that_cannot_be_made_is_an_error_where_there_is_no_other(
    rig: Rig, cuda_double: Any
) -> None:
    cuda_double.total_bytes = 0
    pool = rig.pool(2)
    with pytest.raises(HostError, match="no room for"):
        pool.take()
    assert pool.limit == 2
    pool.close()
    assert rig.freed == 1


def test_closing_waits_for_the_lanes_in_use_and_refuses_new_ones(
    rig: Rig, cuda_double: Any
) -> None:
    pool = rig.pool(1, wait_s=60)
    lane = pool.take()
    refused: list[BaseException] = []

    def wait_for_lane() -> None:
        try:
            pool.take()
        except UsageError as error:
            refused.append(error)

    waiting = threading.Thread(target=wait_for_lane)
    waiting.start()
    closing = threading.Thread(target=pool.close)
    closing.start()
    waiting.join()
    assert "the engine is closed" in str(refused[0])
    assert closing.is_alive()
    assert rig.freed == 0
    lane.start(rig.tiny.feeds(2, 3), SHAPE)
    assert lane.finish()
    pool.give(lane)
    closing.join()
    assert rig.freed == 1
    assert cuda_double.live == []


def test_an_interrupted_batch_says_so_to_its_owner(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = rig.pool(1)
    flight = pool.launch(rig.tiny.feeds(2, 3), SHAPE)

    def interrupt() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(rig.made[0], "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.take()
    with pytest.raises(HostError, match="this batch was interrupted; run it again"):
        flight.outputs()
