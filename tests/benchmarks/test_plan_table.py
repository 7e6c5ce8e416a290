"""A plan on the terminal."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from attn_export.benchmarks.plan import make_plan
from attn_export.benchmarks.plan_option import ESTIMATED, MEASURED, Basis, Option, Service
from attn_export.benchmarks.plan_size import Wish
from attn_export.benchmarks.plan_table import render_plan


def option(precision: str, seconds: float, **changed: Any) -> Option:
    service = Service(batches=(1, 10), seconds=(seconds / 3, seconds), p99_s=(seconds, seconds))
    values = {"model": "mqa", "runner": precision, "precision": precision, "batching": "buckets"}
    return Option(**{"edges": (8, 16), "service": service, **values, **changed})


def text(wish: Wish, *options: Option, kind: str = MEASURED, width: int = 100) -> str:
    basis = Basis(kind=kind, hardware="T4", unit="GPU", options=[*options], notes=["a note"])
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(render_plan(make_plan(wish, basis)))
    return capture.get()


def test_the_first_sentence_is_the_plan() -> None:
    shown = text(Wish(rate=250.0, head_room=0.5), option("fp32", 0.1))
    assert shown.startswith("[PLAN] mqa fp32, buckets on 5 T4 GPUs: 250 samples/s, p50 ")
    assert "load 50% of 500 samples/s, head-room 50% (50% asked)" in shown
    assert "2 buckets, to 8, 16 tokens" in shown
    assert "N+1 is within the head-room" in " ".join(shown.split())


def test_an_estimate_is_marked_before_all_else() -> None:
    assert text(Wish(rate=50.0), option("fp32", 0.1), kind=ESTIMATED).startswith("[ESTIMATE]")


def test_one_machine_is_no_redundancy() -> None:
    assert "nothing is answered; for N+1 take 2 GPUs" in text(Wish(rate=50.0), option("fp32", 0.1))


def test_a_price_gives_costs() -> None:
    shown = text(Wish(rate=250.0, head_room=0.5, price=0.4), option("fp32", 0.1))
    assert "costs 2.00 an hour, 2.22 a million samples" in shown


def test_other_models_and_int8_are_warned_of() -> None:
    fast = option("int8", 0.01)
    shown = text(Wish(rate=500.0), fast, option("fp32", 0.1, model="mha"))
    assert "mqa and mha are different models" in shown
    assert "INT8 must pass its accuracy gate" in shown
    assert "7 GPUs more" in shown


def test_a_models_name_may_have_spaces_and_is_one_model() -> None:
    options = [option(name, 0.1, model="my model") for name in ("fp32", "fp16")]
    shown = " ".join(text(Wish(rate=50.0), *options).split())
    assert "my model fp16, buckets" in shown
    assert "different models" not in shown
    shown = " ".join(text(Wish(rate=50.0), options[0], option("fp16", 0.1, model="my own")).split())
    assert "my model and my own are different models" in shown


def test_brackets_in_a_name_are_printed_as_they_are() -> None:
    options = [option("fp32", 0.1), option("fp16", 0.1, model="[bold]x[/y]")]
    assert "[bold]x[/y] fp16, buckets" in text(Wish(rate=50.0), *options)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    options = [option("fp32", 0.1, tried={"1": 50.0, "2": 100.0}), option("int8", 0.2)]
    shown = text(Wish(rate=60.0, latency_s=0.5), *options, width=width)
    assert max(map(len, shown.splitlines())) <= width
    for heading in ("largest batch", "waiting for a batch", "buckets", "also considered"):
        assert f"\n{heading}: " in shown
