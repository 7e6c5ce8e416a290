"""Options from rooflines alone: which tier, which buckets, which times."""

from __future__ import annotations

import math

import pytest

from attn_export.benchmarks.hardware import GPUS, Limits
from attn_export.benchmarks.plan_estimate import (
    estimated_basis,
    mean_of,
    scaled_lengths,
)
from attn_export.benchmarks.plan_option import Basis, Option
from attn_export.benchmarks.roofline import roofline
from attn_export.calibration.lengths import TWEET_LENGTHS
from attn_export.errors import InputError, UsageError
from attn_export.spec import EncoderSpec

SPEC = EncoderSpec(num_kv_heads=1)


def basis(machine: str = "t4", lengths: dict[int, int] | None = None) -> Basis:
    given = lengths or {32: 1, 128: 1}
    return estimated_basis({"mqa": SPEC}, machine=machine, here=None, lengths=given)


def option(found: Basis, precision: str, batching: str) -> Option:
    pairs = [(item.precision, item.batching) for item in found.options]
    return found.options[pairs.index((precision, batching))]


def seconds(batch: int, length: int, limits: Limits, dtype: str = "fp16") -> float:
    return roofline(
        SPEC, batch=batch, length=length, dtype=dtype, limits=limits, first_row_only=True
    ).seconds


def test_a_single_length_takes_the_rooflines_time() -> None:
    found = basis(lengths={128: 5})
    service = option(found, "fp16", "padded").service
    for batch, time in zip(service.batches, service.seconds, strict=True):
        assert time == pytest.approx(seconds(batch, 128, GPUS["t4"]["sustained"]))
    assert service.p99_s == pytest.approx(service.seconds)
    assert [item.batching for item in found.options] == ["padded"] * 3  # one bucket is all


def test_one_request_of_two_lengths_is_their_mean_and_spread() -> None:
    short, long = (seconds(1, length, GPUS["t4"]["sustained"]) for length in (32, 128))
    service = option(basis(), "fp16", "buckets").service
    assert service.seconds[0] == pytest.approx((short + long) / 2)
    assert service.p99_s[0] == pytest.approx((short + long) / 2 + 2.326 * (long - short) / 2)


def test_two_requests_fall_into_one_bucket_or_two() -> None:
    limits = GPUS["t4"]["sustained"]
    # In each bucket: none with 1/4, else 4/3 requests on average.
    parts = [0.75 * (seconds(1, s, limits) * 2 / 3 + seconds(2, s, limits) / 3) for s in (32, 128)]
    assert option(basis(), "fp16", "buckets").service.seconds[1] == pytest.approx(sum(parts))


def test_padding_to_the_longest_costs_what_the_longest_costs() -> None:
    service = option(basis(), "fp16", "padded").service
    assert service.seconds[-1] == pytest.approx(seconds(128, 128, GPUS["t4"]["sustained"]))


def test_the_number_of_buckets_is_the_best_that_was_tried() -> None:
    found = basis(lengths=dict(TWEET_LENGTHS))
    for item in found.options:
        if item.batching == "buckets":
            assert max(item.tried.values()) == item.tried[str(len(item.edges))]
            assert item.service.best_capacity == pytest.approx(max(item.tried.values()))


def test_a_data_sheet_is_cut_to_what_engines_keep_up_on_a_t4() -> None:
    found = basis("l4", {128: 1})
    sheet = GPUS["l4"]["datasheet"]
    time = option(found, "fp16", "padded").service.seconds[-1]
    assert time > 2 * seconds(128, 128, sheet)
    assert "derated datasheet" in found.notes[0]
    assert "fp16 35%" in found.notes[0]  # 23 of 65 TFLOP/s
    assert "bandwidth 69%" in found.notes[0]  # 220 of 320 GB/s


# NVIDIA/TensorRT, release/8.4, demo/BERT/README.md: BERT-base, 128 tokens, T4.
@pytest.mark.parametrize(
    ("dtype", "batch", "published_ms", "tier_ms"),
    [
        ("fp16", 1, 1.95, 1.42),
        ("int8", 1, 1.69, 0.99),
        ("fp16", 64, 72.04, 67.9),
        ("int8", 64, 36.54, 40.1),
    ],
)
def test_the_tier_is_near_published_times_as_the_notes_say(
    dtype: str, batch: int, published_ms: float, tier_ms: float
) -> None:
    bert = EncoderSpec(num_kv_heads=12, ffn_size=3072)
    limits = GPUS["t4"]["sustained"]
    found = roofline(bert, batch=batch, length=128, dtype=dtype, limits=limits).seconds * 1e3
    assert found == pytest.approx(tier_ms, rel=5e-3)
    longer = {("fp16", 1): 1.4, ("int8", 1): 1.7}.get((dtype, batch), 1.0)
    assert published_ms / found == pytest.approx(longer, abs=0.1)


def test_a_machine_that_was_measured_is_taken_as_it_was() -> None:
    here = Limits(
        name="here",
        tier="measured",
        flops={"fp32": 5e11},
        bytes_per_s=3e10,
        launch_s=0.0,
        memory_bytes=None,
        watts=None,
        source="a test",
    )
    found = estimated_basis({"mqa": SPEC}, machine="here", here=here, lengths={128: 1})
    assert found.unit == "machine"
    assert found.options[0].service.seconds[0] == pytest.approx(seconds(1, 128, here, "fp32"))
    names = [(item.model, item.name) for item in found.refused]
    assert names == [("mqa", "mqa bf16"), ("mqa", "mqa int8")]
    assert "no measured int8 speed is known of here" in found.refused[1].reason


def test_a_machine_without_limits_is_refused_with_the_command_that_measures_them() -> None:
    with pytest.raises(UsageError, match="estimate --gpu here"):
        basis("here")


def test_a_request_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(InputError, match="129 tokens; allowed are 1 to 128"):
        basis(lengths={129: 1})


@pytest.mark.parametrize("mean", [5.0, 29.9, 400.0])
def test_stretched_lengths_have_the_mean_asked_for(mean: float) -> None:
    assert mean_of(scaled_lengths(mean)) == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("mean", [0.5, math.nan, math.inf, 1e9])
def test_a_mean_that_cannot_be_is_refused(mean: float) -> None:
    with pytest.raises(UsageError, match="1 to 100,000 tokens"):
        scaled_lengths(mean)
