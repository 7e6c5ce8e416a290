"""Rates, durations, prices and head-room: what is understood, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attn_export.benchmarks.plan_units import (
    parse_duration,
    parse_head_room,
    parse_price,
    parse_rate,
    parse_share,
)
from attn_export.errors import UsageError

Parse = Callable[[str], float]


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_rate, "50000/min", 50000 / 60),
        (parse_rate, "800/s", 800.0),
        (parse_rate, "3600000/h", 1000.0),
        (parse_rate, "833.3", 833.3),
        (parse_rate, "1e6/h", 1e6 / 3600),
        (parse_duration, "25ms", 0.025),
        (parse_duration, "0.025s", 0.025),
        (parse_duration, "800us", 0.0008),
        (parse_price, "0.35/h", 0.35),
        (parse_price, "0/h", 0.0),
        (parse_head_room, "30%", 0.3),
        (parse_head_room, "0.3", 0.3),
    ],
)
def test_what_a_person_writes_is_understood(parse: Parse, text: str, value: float) -> None:
    assert parse(text) == pytest.approx(value)


def test_a_share_is_named_with_its_own_limits() -> None:
    assert parse_share("0%", "loss", least=0.0, most=0.5) == 0.0
    assert parse_share("0.5", "loss", least=0.0, most=0.5) == 0.5
    with pytest.raises(UsageError, match=r"the loss '51%' is .* a share from 0% to 50%"):
        parse_share("51%", "loss", least=0.0, most=0.5)


@pytest.mark.parametrize(
    ("parse", "texts", "said"),
    [
        (
            parse_rate,
            ["", "0", "0/s", "-5", "5/day", "5 /s", "1,000", "nan", "inf", "1e99"],
            "N/min",
        ),
        (parse_duration, ["", "25", "0ms", "-1s", "1min", "1 ms", "nans"], "25ms or 0.025s"),
        (parse_price, ["", "0.35", "$0.35/h", "-1/h", "1/min", "nan/h"], "0.35/h"),
        (parse_head_room, ["", "0%", "1%", "96%", "30", "1.5", "-3%", "nan"], "2% to 95%"),
    ],
)
def test_all_else_is_refused_with_what_is_allowed(
    parse: Parse, texts: list[str], said: str
) -> None:
    for text in texts:
        with pytest.raises(UsageError, match="not understood") as error:
            parse(text)
        assert said in str(error.value)
        assert repr(text) in str(error.value)
