"""How many machines an option takes: the fewest whose load leaves the head-room, in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .plan_option import Option
from .plan_queue import MOST_LOAD, Served, served
from .report_numbers import number

MOST_MACHINES = 10_000
# Of the batches with the capacity, as many of the smallest are tried for a shorter latency.
SMALL_BATCHES = 3


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for.

    Args:
        rate: samples a second, of all machines together.
        latency_s: the most that 99 of 100 requests may take, or None.
        head_room: the share of the capacity that stays free.
        price: of a machine for an hour, or None.
    """

    rate: float
    latency_s: float | None = None
    head_room: float = 0.3
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class Size:
    """An option on some machines.

    Args:
        batch: the largest batch.
        window_s: how long a free machine waits for a batch to fill.
        load: the rate as a share of the capacity; ``busy`` is the share of the time that it
            computes, more than the load where batches are not full.
        p99_s: from arrival to answer; the spread of a batch's own time is added in full.
    """

    machines: int
    batch: int
    window_s: float
    capacity: float
    load: float
    busy: float
    mean_batch: float
    mean_s: float
    p50_s: float
    p99_s: float


def alone_s(option: Option) -> float:
    """The 99th percentile of one request with nobody else there."""
    return float(option.service.times(1)[0]) + option.service.spread(1)


def smallest(option: Option, wish: Wish) -> Size | str:
    """The fewest machines on which the option meets the wish; or in words why there are none."""
    service = option.service
    least = machines_for(wish.rate, (1 - wish.head_room) * service.best_capacity)
    if least > MOST_MACHINES:
        return f"needs {least:,} machines; {MOST_MACHINES:,} are the most that is planned"
    alone = alone_s(option)
    if wish.latency_s is not None and alone > wish.latency_s:
        return f"one request alone takes {milliseconds(alone)}"
    few = many = least
    size = _best(option, least, wish)
    while not is_in_time(size, wish):
        if many == MOST_MACHINES:
            return f"p99 {milliseconds(size.p99_s)} even on {MOST_MACHINES:,} machines"
        few, many = many, min(2 * many, MOST_MACHINES)
        size = _best(option, many, wish)
    while many - few > 1:
        middle = (few + many) // 2
        tried = _best(option, middle, wish)
        if is_in_time(tried, wish):
            many, size = middle, tried
        else:
            few = middle
    return size


def size_of(
    option: Option, *, machines: int, batch: int, window_s: float, rate: float
) -> Size | None:
    """An option on so many machines; None where their load would be beyond what a queue stands."""
    each, capacity = rate / machines, option.service.capacity(batch)
    if each > MOST_LOAD * capacity:
        return None
    found: Served = served(option.service.times(batch), rate=each, window_s=window_s)
    return Size(
        machines=machines,
        batch=batch,
        window_s=window_s,
        capacity=capacity,
        load=each / capacity,
        busy=found.busy,
        mean_batch=found.mean_batch,
        mean_s=found.mean_s,
        p50_s=found.p50_s,
        p99_s=found.p99_s + option.service.spread(found.mean_batch),
    )


def milliseconds(seconds: float) -> str:
    """For a message: ``"4.71 ms"``."""
    return f"{number(seconds * 1e3)} ms"


def machines_for(rate: float, each: float) -> int:
    """The fewest machines for a rate, of ``each`` samples a second."""
    return max(1, math.ceil(rate / each * (1 - 1e-9)))


def is_in_time(size: Size, wish: Wish) -> bool:
    """Whether the 99th percentile is within the wish, if there is one."""
    return wish.latency_s is None or size.p99_s <= wish.latency_s


def _best(option: Option, machines: int, wish: Wish) -> Size:
    """With the batch of the most capacity, or a smaller one where that one answers too late.

    Batches are as large as the load makes them: the largest one allowed decides what a burst gets.
    """
    service, each = option.service, wish.rate / machines
    room = (1 - wish.head_room) * (1 + 1e-9)
    fitting = [batch for batch in service.sizes if each <= room * service.capacity(batch)]
    first = max(fitting, key=service.capacity)
    sizes = []
    for batch in dict.fromkeys((first, *fitting[:SMALL_BATCHES])):
        found = size_of(option, machines=machines, batch=batch, window_s=0.0, rate=wish.rate)
        assert found, "the head-room keeps the load below the most"
        if is_in_time(found, wish):
            return found
        sizes.append(found)
    return min(sizes, key=lambda size: size.p99_s)
