"""A model beside the other kinds of attention, on every machine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from attn_export.benchmarks.estimate_study import Study, study_model
from attn_export.benchmarks.hardware import GPUS, Limits
from attn_export.benchmarks.roofline import roofline
from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

MQA = EncoderSpec(num_kv_heads=1)
HERE = Limits(
    name="here",
    tier="measured",
    flops={"fp32": 6e11, "bf16": 2e12},
    bytes_per_s=5e10,
    launch_s=0.0,
    memory_bytes=1 << 34,
    watts=None,
    source="by hand",
)


def study(
    spec: EncoderSpec = MQA,
    *,
    dtype: str = "fp32",
    machine: str = "t4",
    rate: float = 1000.0,
    here: Limits | None = None,
    sparse: tuple[str, ...] = (),
) -> Study:
    """The study of batch 32 of 128 tokens."""
    return study_model(
        spec,
        batch=32,
        length=128,
        dtype=dtype,
        machine=machine,
        rate=rate,
        here=here,
        sparse=sparse,
    )


def test_all_three_kinds_of_attention_stand_side_by_side() -> None:
    found = study()
    assert [model.attention_kind for model in found.models] == ["MHA", "GQA-4", "MQA"]
    assert found.model is found.models[2]
    assert [machine.name for machine in found.machines] == [*GPUS, "here"]


def test_a_tier_without_a_number_is_absent_and_said_to_be() -> None:
    found = {machine.name: machine for machine in study(dtype="int8").machines}
    assert list(found["t4"].rooflines) == ["datasheet", "sustained"]
    assert found["t4"].unknown["measured"].startswith("no measured int8 speed is known of t4")
    assert found["l4"].unknown == dict.fromkeys(("measured", "sustained"), "no numbers are known")
    assert "add --measure" in found["here"].unknown["measured"]


def test_a_rate_takes_shares_of_every_tier() -> None:
    found = study(rate=500.0)
    need = next(n for n in found.needs if (n.attention, n.tier) == ("MQA", "sustained"))
    model, limits = found.model, GPUS["t4"]["sustained"]
    assert need.bandwidth == pytest.approx(500 * model.bytes_per_sample / 220e9)
    line = roofline(MQA, batch=32, length=128, dtype="fp32", limits=limits, first_row_only=True)
    assert need.throughput == pytest.approx(500 / line.samples_per_s)
    assert found.machine.rooflines["sustained"] == line
    assert len(found.needs) == 3 * 3


def test_this_machine_takes_part_once_it_was_measured() -> None:
    found = study(machine="here", here=HERE)
    assert list(found.machine.rooflines) == ["measured"]
    # 4.181 GFLOP a sample at 600 GFLOP/s
    line = found.machine.rooflines["measured"]
    assert line.products_samples_per_s == pytest.approx(6e11 / 4.1806e9, rel=0.001)


def test_sparse_patterns_are_counted_for_the_model() -> None:
    found = study(sparse=("block:64", "local:2")).sparse
    assert [item.kept for item in found] == [0.5, pytest.approx((128 * 3 - 2) / 128**2)]


def test_json_can_be_written_and_read() -> None:
    found = study(sparse=("block:64",), here=HERE)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["machines"][0]["rooflines"]["datasheet"]["samples_per_s"] > 0
    assert data["model"] == data["models"][2]
    assert data["sparse"][0]["pairs"] == 2 * 64 * 64


@pytest.mark.parametrize(
    ("machine", "dtype", "here", "message"),
    [
        pytest.param("v100", "fp32", None, "unknown machine 'v100'; there are: t4, l4", id="name"),
        pytest.param("here", "fp32", None, "not measured yet; add --measure", id="not-measured"),
        pytest.param("here", "fp16", HERE, "no measured fp16 speed is known of here", id="cpu"),
        pytest.param("t4", "bf16", None, "no datasheet bf16 speed is known of t4", id="bf16"),
    ],
)
def test_a_machine_of_which_nothing_is_known_is_refused(
    machine: str, dtype: str, here: Limits | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        study(machine=machine, dtype=dtype, here=here)


def test_a_model_with_a_feed_forward_block_has_its_kernels() -> None:
    found = study(replace(MQA, ffn_size=3072))
    names = {item.kernel.name for item in found.machine.rooflines["datasheet"].kernels}
    assert {"FFN up", "FFN down", "FFN norm"} <= names
