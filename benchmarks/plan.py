"""From a rate and a latency to a deployment: what runs, in which batches, on how many machines.

Each option is sized on its own: the fewest machines whose load leaves the head-room and whose
99th percentile is within the wish. Requests are spread over the machines at random, so each has a
queue of its own (see :mod:`~attn_export.benchmarks.plan_queue`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from attn_export.errors import GateFailed

from .plan_option import Basis, Option
from .plan_size import (
    MOST_MACHINES,
    Size,
    Wish,
    alone_s,
    is_in_time,
    machines_for,
    milliseconds,
    size_of,
    smallest,
)
from .report_numbers import plural

SCHEMA_VERSION = 1
WINDOWS_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
# A window must lower the 99th percentile by at least this share to be worth a setting.
WORTH = 0.01


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """An option that was not chosen, and why; ``size`` where it could be sized."""

    option: str
    model: str
    reason: str
    size: Size | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The deployment.

    Args:
        batches: with other largest batches, on as many machines; those that lack the capacity are
            absent.
        windows: the same with other windows.
        least: machines that the rate alone needs; the latency takes the rest.
        one_lost: while one machine is down; None where the rest cannot take the load.
        cost_per_hour: of all machines, in the price's currency; ``cost_per_million`` samples.
    """

    wish: Wish
    basis: Basis
    option: Option
    size: Size
    batches: list[Size]
    windows: list[Size]
    least: int
    one_lost: Size | None
    alternatives: list[Alternative]
    cost_per_hour: float | None
    cost_per_million: float | None
    assumptions: list[str] = field(default_factory=list)

    @property
    def survives(self) -> bool:
        """Whether the wish still holds while one machine is down."""
        return self.one_lost is not None and is_in_time(self.one_lost, self.wish)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        basis = self.basis
        return {
            "schema_version": SCHEMA_VERSION,
            "wish": asdict(self.wish),
            "basis": basis.kind,
            "hardware": basis.hardware,
            "unit": basis.unit,
            "option": self.option.to_json(),
            "size": asdict(self.size),
            "machines_for_rate": self.least,
            "survives_one_lost": self.survives,
            "one_lost": asdict(self.one_lost) if self.one_lost else None,
            "cost_per_hour": self.cost_per_hour,
            "cost_per_million": self.cost_per_million,
            "batches": [asdict(item) for item in self.batches],
            "windows": [asdict(item) for item in self.windows],
            "alternatives": [asdict(item) for item in self.alternatives],
            "assumptions": self.assumptions,
            "notes": basis.notes,
        }


def make_plan(wish: Wish, basis: Basis) -> Plan:
    """Size every option; take the one on the fewest machines, and of those the most exact.

    Raises:
        GateFailed: if none meets the wish; the message says what would be possible.
    """
    found = {option.name: smallest(option, wish) for option in basis.options}
    sizes = {name: size for name, size in found.items() if isinstance(size, Size)}
    reasons = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if not sizes:
        raise GateFailed(_impossible(wish, basis))
    options = {option.name: option for option in basis.options}
    order = sorted(sizes, key=lambda name: _rank(options[name], sizes[name]))
    option, size = options[order[0]], sizes[order[0]]
    windows = _windows(option, size, wish)
    best = min(windows, key=lambda item: item.p99_s, default=size)
    if best.p99_s < size.p99_s * (1 - WORTH):
        size = best
    lost = [
        _lost(
            options[name],
            _why(options[name], sizes[name], option, size, basis.unit),
            sizes[name],
        )
        for name in order[1:]
    ]
    lost += [_lost(options[name], reason) for name, reason in reasons.items()]
    lost += [
        Alternative(option=item.name, model=item.model, reason=item.reason)
        for item in basis.refused
    ]
    hourly = None if wish.price is None else size.machines * wish.price
    return Plan(
        wish=wish,
        basis=basis,
        option=option,
        size=size,
        batches=_batches(option, size, wish),
        windows=windows,
        least=machines_for(wish.rate, (1 - wish.head_room) * option.service.best_capacity),
        one_lost=_one_lost(option, size, wish),
        alternatives=lost,
        cost_per_hour=hourly,
        cost_per_million=None if hourly is None else hourly / (wish.rate * 3600) * 1e6,
        assumptions=ASSUMPTIONS,
    )


ASSUMPTIONS = [
    "requests come at random (Poisson) at a steady rate and are spread over the machines at "
    "random: bursts need more, a balancer that knows the queues needs less",
    "a free machine takes all that waits, up to the largest batch; latency is from a request's "
    "arrival at the machine to its answer, without network and tokenizer",
    "a batch takes its usual time; how much longer one in a hundred takes is added to the 99th "
    "percentile in full",
]


def _batches(option: Option, size: Size, wish: Wish) -> list[Size]:
    return _all(
        size_of(option, machines=size.machines, batch=batch, window_s=size.window_s, rate=wish.rate)
        for batch in option.service.sizes
    )


def _windows(option: Option, size: Size, wish: Wish) -> list[Size]:
    """Other windows that may leave the latency within the wish, if there is one."""
    if wish.latency_s is None or size.batch == 1:
        return []
    slack_ms = (wish.latency_s - size.p99_s) * 1e3
    tried = [window for window in WINDOWS_MS if window <= max(slack_ms, WINDOWS_MS[0])]
    return _all(
        size_of(
            option,
            machines=size.machines,
            batch=size.batch,
            window_s=window * 1e-3,
            rate=wish.rate,
        )
        for window in tried
    )


def _one_lost(option: Option, size: Size, wish: Wish) -> Size | None:
    if size.machines == 1:
        return None
    return size_of(
        option,
        machines=size.machines - 1,
        batch=size.batch,
        window_s=size.window_s,
        rate=wish.rate,
    )


def _all(sizes: Iterable[Size | None]) -> list[Size]:
    return [size for size in sizes if size is not None]


def _rank(option: Option, size: Size) -> tuple[float, ...]:
    return size.machines, option.exactness, size.p99_s


def _lost(option: Option, reason: str, size: Size | None = None) -> Alternative:
    return Alternative(option=option.name, model=option.model, reason=reason, size=size)


def _why(option: Option, size: Size, best: Option, best_size: Size, unit: str) -> str:
    """Why an option that meets the wish lost."""
    more = size.machines - best_size.machines
    if more:
        return f"{more:,} {unit}{'s' * (more > 1)} more"
    if option.exactness > best.exactness:
        return f"{option.precision} is less exact, saves no {unit}"
    return f"a longer p99, saves no {unit}"


def _impossible(wish: Wish, basis: Basis) -> str:
    """What was asked, the limit, and what would be possible."""
    fastest = max(basis.options, key=lambda option: option.service.best_capacity)
    most = (1 - wish.head_room) * fastest.service.best_capacity * MOST_MACHINES
    asked = f"{wish.rate:,.1f} samples/s on {basis.hardware}"
    if wish.rate > most:
        return (
            f"{asked}: {MOST_MACHINES:,} {basis.unit}s with {wish.head_room:.0%} head-room answer "
            f"at most {most:,.0f} samples/s ({fastest.name}); ask for a lower rate"
        )
    option, size = _soonest(wish, basis.options)
    return (
        f"{asked} with a p99 of {milliseconds(wish.latency_s or 0)} cannot be met: one request "
        f"alone takes {milliseconds(alone_s(option))} at best ({option.name}). Possible is "
        f"--latency-p99 {math.ceil(size.p99_s * 1e4) / 10:g}ms, on "
        f"{plural(size.machines, basis.unit)}"
    )


def _soonest(wish: Wish, options: Sequence[Option]) -> tuple[Option, Size]:
    """Of the options with the capacity, the one that answers soonest, with room for a queue."""
    eased = replace(wish, latency_s=None)
    able = [option for option in options if isinstance(smallest(option, eased), Size)]
    option = min(able, key=alone_s)
    for times in (1.5, 2, 3, 5, math.inf):
        found = smallest(option, replace(wish, latency_s=times * alone_s(option)))
        if isinstance(found, Size):
            return option, found
    raise AssertionError("any latency is within an infinite one")
