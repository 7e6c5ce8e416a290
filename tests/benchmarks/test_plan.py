"""From options to a deployment, with numbers worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attn_export.benchmarks.plan import make_plan
from attn_export.benchmarks.plan_option import MEASURED, Basis, Option, Refused, Service
from attn_export.benchmarks.plan_size import Size, Wish, is_in_time, size_of, smallest
from attn_export.errors import GateFailed


def option(
    precision: str = "fp32",
    *,
    alone: float = 0.010,
    ten: float = 0.100,
    p99: float = 1.0,
    model: str = "mqa",
) -> Option:
    """A batch of 10 in 100 ms: 100 samples/s; ``p99`` times as long in one case of a hundred."""
    service = Service(batches=(1, 10), seconds=(alone, ten), p99_s=(p99 * alone, p99 * ten))
    return Option(
        model=model, runner=precision, precision=precision, batching="buckets", edges=(),
        service=service,
    )  # fmt: skip


def basis(*options: Option, **changed: Any) -> Basis:
    return Basis(
        **{"kind": MEASURED, "hardware": "T4", "unit": "GPU", "options": [*options], **changed}
    )


def sized(found: Size | str) -> Size:
    assert isinstance(found, Size), found
    return found


@pytest.mark.parametrize(
    ("rate", "head_room", "machines"),
    [(70.0, 0.3, 1), (71.0, 0.3, 2), (250.0, 0.5, 5), (50.0, 0.5, 1), (90.0, 0.1, 1)],
)
def test_machines_are_the_rate_over_what_the_head_room_leaves(
    rate: float, head_room: float, machines: int
) -> None:
    found = sized(smallest(option(), Wish(rate=rate, head_room=head_room)))
    assert found.machines == machines
    assert found.capacity == pytest.approx(100.0)
    assert found.load == pytest.approx(rate / machines / 100)


def test_a_load_that_is_beyond_the_least_head_room_by_rounding_alone_is_planned() -> None:
    found = sized(smallest(option(), Wish(rate=98.0 * (1 + 5e-10), head_room=0.02)))
    assert found.machines == 1
    assert found.load > 0.98


def test_a_latency_takes_as_many_machines_as_it_needs_and_no_more() -> None:
    wish = Wish(rate=500.0, latency_s=0.040)
    found = sized(smallest(option(), wish))
    assert found.machines > 8  # what the rate alone needs
    assert is_in_time(found, wish)
    fewer = [
        size_of(option(), machines=found.machines - 1, batch=batch, window_s=0.0, rate=500.0)
        for batch in (1, 2, 4)
    ]
    assert all(size is None or size.p99_s > 0.040 for size in fewer)


def test_the_spread_of_a_batch_is_added_to_the_99th_percentile_in_full() -> None:
    steady = sized(smallest(option(), Wish(rate=0.001)))
    assert steady.p99_s == pytest.approx(0.010, rel=2e-3)
    spread = sized(smallest(option(p99=1.5), Wish(rate=0.001)))
    assert spread.p99_s == pytest.approx(0.015, rel=2e-3)


def test_cost_is_of_all_machines_and_by_the_sample() -> None:
    plan = make_plan(Wish(rate=250.0, head_room=0.5, price=0.4), basis(option()))
    assert plan.cost_per_hour == pytest.approx(2.0)
    assert plan.cost_per_million == pytest.approx(2.0 / (250 * 3600) * 1e6)
    assert make_plan(Wish(rate=250.0), basis(option())).cost_per_hour is None


def test_the_fewest_machines_win_then_the_most_exact_then_the_soonest() -> None:
    options = (
        option("int8", alone=0.001, ten=0.010),
        option("fp16", alone=0.002, ten=0.020),
        option("fp32"),
        option("fp32", alone=0.012, model="mha"),
    )
    assert make_plan(Wish(rate=5000.0), basis(*options)).option.precision == "int8"
    small = make_plan(Wish(rate=60.0), basis(*options))
    assert (small.option.model, small.option.precision) == ("mqa", "fp32")
    reasons = {item.option: item.reason for item in small.alternatives}
    assert reasons == {
        "mha fp32, buckets": "a longer p99, saves no GPU",
        "mqa fp16, buckets": "fp16 is less exact, saves no GPU",
        "mqa int8, buckets": "int8 is less exact, saves no GPU",
    }


def test_every_option_that_lost_is_there_with_its_reason() -> None:
    slow = option("fp32", alone=0.2, ten=2.0)
    none = Refused(name="mha bf16", model="mha", reason="none")
    plan = make_plan(
        Wish(rate=60.0, latency_s=0.150),
        basis(option("fp16"), slow, option("int8", model="gqa", ten=0.5), refused=[none]),
    )
    reasons = {item.option: item.reason for item in plan.alternatives}
    assert reasons["mqa fp32, buckets"] == "one request alone takes 200 ms"
    assert "GPU" in reasons["gqa int8, buckets"]
    assert reasons["mha bf16"] == "none"
    assert [item.model for item in plan.alternatives] == ["gqa", "mqa", "mha"]


def test_no_window_is_chosen_where_waiting_only_delays() -> None:
    plan = make_plan(Wish(rate=60.0, latency_s=0.5), basis(option(alone=0.03)))
    assert plan.size.window_s == 0.0
    assert plan.windows
    assert all(item.p99_s >= plan.size.p99_s for item in plan.windows)
    assert all(item.busy <= plan.size.busy + 1e-9 for item in plan.windows)


def test_the_loss_of_a_machine_is_the_same_plan_on_one_less() -> None:
    plan = make_plan(Wish(rate=250.0, head_room=0.5), basis(option()))
    assert plan.one_lost is not None
    assert plan.one_lost.machines == 4
    assert plan.one_lost.load == pytest.approx(250 / 400)
    assert plan.survives
    alone = make_plan(Wish(rate=50.0), basis(option()))
    assert alone.one_lost is None
    assert not alone.survives
    tight = make_plan(Wish(rate=185.0, head_room=0.05), basis(option()))
    assert (tight.size.machines, tight.one_lost) == (2, None)


def test_a_latency_below_a_single_request_says_what_is_possible() -> None:
    with pytest.raises(GateFailed, match=r"one request alone takes 10\.0 ms at best") as error:
        make_plan(Wish(rate=500.0, latency_s=0.005), basis(option()))
    possible = str(error.value).split("--latency-p99 ")[1].split("ms")[0]
    plan = make_plan(Wish(rate=500.0, latency_s=float(possible) / 1e3), basis(option()))
    assert f"on {plan.size.machines} GPUs" in str(error.value)


def test_a_rate_beyond_all_machines_says_what_is_possible() -> None:
    with pytest.raises(GateFailed, match="at most 700,000 samples/s"):
        make_plan(Wish(rate=700_001.0), basis(option()))
    assert make_plan(Wish(rate=700_000.0), basis(option())).size.machines == 10_000


def test_the_plan_is_json_with_every_number() -> None:
    plan = make_plan(Wish(rate=60.0, latency_s=0.5, price=1.0), basis(option(), option("int8")))
    data = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert data["size"]["machines"] == 1
    assert data["option"]["name"] == "mqa fp32, buckets"
    assert data["machines_for_rate"] == 1
    assert data["alternatives"][0]["size"]["p99_s"] > 0
    assert data["wish"]["latency_s"] == 0.5
