"""Rates, durations, prices and shares as a person writes them; nothing is guessed."""

from __future__ import annotations

import math
import re

from attn_export.errors import UsageError

_NUMBER = r"(\d{1,15}(?:\.\d{1,15})?(?:e\d)?)"
_RATE = re.compile(_NUMBER + r"(?:/(s|min|h))?")
_DURATION = re.compile(_NUMBER + r"(us|ms|s)")
_PRICE = re.compile(_NUMBER + r"/h")
_SHARE = re.compile(_NUMBER + r"(%?)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_PARTS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
# Below it a queue's length is decided by chance, not by the load; no plan should rely on it.
LEAST_HEAD_ROOM, MOST_HEAD_ROOM = 0.02, 0.95


def parse_rate(text: str) -> float:
    """Samples a second, of ``"50000/min"``, ``"800/s"``, ``"3000000/h"`` or ``"833.3"``.

    Raises:
        UsageError: anything else, or zero.
    """
    found = _RATE.fullmatch(text)
    if not found or not float(found[1]):
        raise UsageError(
            f"the rate {text!r} is not understood; give a number above 0 of samples a second, or "
            "N/s, N/min or N/h, for instance 50000/min"
        )
    return float(found[1]) / _SECONDS[found[2] or "s"]


def parse_duration(text: str) -> float:
    """Seconds, of ``"25ms"``, ``"0.025s"`` or ``"800us"``.

    Raises:
        UsageError: anything else (a number without its unit, too), or zero.
    """
    found = _DURATION.fullmatch(text)
    if not found or not float(found[1]):
        raise UsageError(
            f"the duration {text!r} is not understood; give a number above 0 with its unit: us, "
            "ms or s, for instance 25ms or 0.025s"
        )
    return float(found[1]) * _PARTS[found[2]]


def parse_price(text: str) -> float:
    """The price of a machine for an hour, in any currency, of ``"0.35/h"``.

    Raises:
        UsageError: anything else, a currency's sign too.
    """
    found = _PRICE.fullmatch(text)
    if not found:
        raise UsageError(
            f"the price {text!r} is not understood; give what one machine costs an hour, without "
            "a currency: 0.35/h"
        )
    return float(found[1])


def parse_head_room(text: str) -> float:
    """A share of the capacity, of ``"30%"`` or ``"0.3"``.

    Raises:
        UsageError: anything else, or outside of 2 % to 95 %.
    """
    return parse_share(text, "head-room", least=LEAST_HEAD_ROOM, most=MOST_HEAD_ROOM)


def parse_share(text: str, name: str, *, least: float, most: float) -> float:
    """A share from ``least`` to ``most``, of ``"30%"`` or ``"0.3"``.

    Args:
        name: what it is, for the message.

    Raises:
        UsageError: anything else.
    """
    found = _SHARE.fullmatch(text)
    share = float(found[1]) / (100 if found[2] else 1) if found else math.nan
    if not least <= share <= most:
        raise UsageError(
            f"the {name} {text!r} is not understood or not possible; give a share from "
            f"{least:.0%} to {most:.0%}, for instance 30% or 0.3"
        )
    return share
