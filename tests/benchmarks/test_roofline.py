"""The least time of each kernel, against published tables and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attn_export.benchmarks.hardware import GPUS, Limits
from attn_export.benchmarks.roofline import Kernel, kernels, roofline
from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

MHA, MQA = EncoderSpec(num_kv_heads=12), EncoderSpec(num_kv_heads=1)
T4 = GPUS["t4"]
# The table below takes INT8 as twice the FP16 that was measured.
DOUBLED = replace(T4["measured"], flops={**T4["measured"].flops, "int8": 2 * 49.4e12})
TIERS = (T4["datasheet"], DOUBLED, T4["sustained"])
HAND = Limits(
    name="hand",
    tier="datasheet",
    flops={"fp32": 1e3},
    bytes_per_s=1e3,
    launch_s=0.5,
    memory_bytes=None,
    watts=None,
    source="by hand",
)
TINY = EncoderSpec(
    num_kv_heads=1,
    vocab_size=10,
    hidden_size=4,
    num_heads=2,
    num_layers=3,
    max_length=8,
    num_classes=2,
    ffn_size=6,
)


# Most samples/s of a T4 at batch 64: the sum over kernels of the longer of compute and memory, from
# a script that shares nothing with this package.
@pytest.mark.parametrize(
    ("spec", "dtype", "length", "expected"),
    [
        pytest.param(MHA, "fp32", 128, (983, 887, 538), id="mha-fp32"),
        pytest.param(MQA, "fp32", 128, (1647, 1476, 907), id="mqa-fp32"),
        pytest.param(MHA, "fp16", 128, (6062, 4455, 2525), id="mha-fp16"),
        pytest.param(MQA, "fp16", 128, (9967, 7270, 4255), id="mqa-fp16"),
        pytest.param(MHA, "int8", 128, (9157, 6618, 4008), id="mha-int8"),
        pytest.param(MQA, "int8", 128, (14258, 10222, 6143), id="mqa-int8"),
        pytest.param(MHA, "int8-all", 128, (12124, 8910, 4748), id="mha-int8-all"),
        pytest.param(MQA, "int8-all", 128, (19933, 14539, 7939), id="mqa-int8-all"),
        pytest.param(MHA, "fp32", 29.9, (4274, 3796, 2357), id="mha-fp32-short"),
        pytest.param(MQA, "fp32", 29.9, (7583, 6660, 4189), id="mqa-fp32-short"),
        pytest.param(MHA, "fp16", 29.9, (25952, 19072, 10531), id="mha-fp16-short"),
        pytest.param(MQA, "fp16", 29.9, (42667, 31121, 17659), id="mqa-fp16-short"),
        pytest.param(MHA, "int8", 29.9, (39201, 28330, 16468), id="mha-int8-short"),
        pytest.param(MQA, "int8", 29.9, (61039, 43762, 26258), id="mqa-int8-short"),
    ],
)
def test_a_t4_reaches_what_an_independent_script_says(
    spec: EncoderSpec, dtype: str, length: float, expected: tuple[int, ...]
) -> None:
    found = [
        roofline(spec, batch=64, length=length, dtype=dtype, limits=tier).samples_per_s
        for tier in TIERS
    ]
    assert found == pytest.approx(expected, rel=0.012)


@pytest.mark.parametrize(
    ("spec", "dtype", "megabytes"),
    [
        pytest.param(MHA, "fp32", 64.3, id="mha-fp32"),
        pytest.param(MQA, "fp32", 46.2, id="mqa-fp32"),
        pytest.param(MHA, "fp16", 32.1, id="mha-fp16"),
        pytest.param(MQA, "int8", 20.5, id="mqa-int8"),
        pytest.param(MHA, "int8-all", 16.1, id="mha-int8-all"),
    ],
)
def test_bytes_of_a_sample_are_as_published(
    spec: EncoderSpec, dtype: str, megabytes: float
) -> None:
    moved = sum(k.count * k.bytes for k in kernels(spec, batch=64, length=128, dtype=dtype))
    assert moved / 64 / 1e6 == pytest.approx(megabytes, rel=0.005)


def by_name(spec: EncoderSpec, *, first_row_only: bool = False) -> dict[str, Kernel]:
    found = kernels(spec, batch=2, length=5, dtype="fp32", first_row_only=first_row_only)
    assert len({item.name for item in found}) == len(found)
    return {item.name: item for item in found}


def test_every_kernel_of_a_tiny_encoder_by_hand() -> None:
    found = by_name(TINY)  # 10 tokens, M 4, K·D 2, F 6, FP32
    expected = {
        "embedding": (1, 0, 4 * 3 * 10 * 4),
        "QKV GEMM": (3, 2 * 10 * 4 * 8, 4 * (10 * 4 + 4 * 8 + 10 * 8)),
        "attention": (3, 4 * 2 * 5 * 5 * 4, 4 * (10 * 8 + 10 * 4)),
        "output GEMM": (3, 2 * 10 * 4 * 4, 4 * (10 * 4 + 4 * 4 + 10 * 4)),
        "residual + norm": (3, 0, 4 * 3 * 10 * 4),
        "FFN up": (3, 2 * 10 * 4 * 6, 4 * (10 * 4 + 4 * 6 + 10 * 6)),
        "FFN down": (3, 2 * 10 * 6 * 4, 4 * (10 * 6 + 6 * 4 + 10 * 4)),
        "FFN norm": (3, 0, 4 * 3 * 10 * 4),
        "pooler": (1, 2 * 2 * 4 * 4, 4 * (2 * 4 + 4 * 4 + 2 * 4)),
        "classifier": (1, 2 * 2 * 4 * 2, 4 * (2 * 4 + 4 * 2 + 2 * 2)),
    }
    assert {name: (k.count, k.flops, k.bytes) for name, k in found.items()} == expected


def test_the_last_layer_may_compute_one_row_of_each_sample() -> None:
    full, found = by_name(TINY), by_name(TINY, first_row_only=True)
    assert found["QKV GEMM"] == replace(full["QKV GEMM"], count=2)
    last = {name: k for name, k in found.items() if name.endswith(", last")}
    assert [k.count for k in last.values()] == [1] * 7
    # Q of 2 rows, K and V of 10: 2·4 + 10·4 elements.
    assert last["QKV GEMM, last"].flops == 2 * 4 * (2 * 4 + 10 * 4)
    assert last["QKV GEMM, last"].bytes == 4 * (10 * 4 + 4 * 8 + 2 * 4 + 10 * 4)
    assert last["attention, last"].flops == 4 * 2 * 1 * 5 * 4
    assert last["FFN down, last"].flops == 2 * 2 * 6 * 4


def test_a_model_of_one_layer_has_no_other_layers() -> None:
    found = by_name(replace(TINY, num_layers=1), first_row_only=True)
    assert "QKV GEMM" not in found
    assert found["QKV GEMM, last"].count == 1


@pytest.mark.parametrize(
    ("flops", "bytes_per_s", "launch_s", "bound"),
    [
        pytest.param(1.0, 1e9, 0.0, "compute", id="slow-products"),
        pytest.param(1e9, 1.0, 0.0, "memory", id="slow-memory"),
        pytest.param(1e9, 1e9, 1.0, "launch", id="slow-launches"),
    ],
)
def test_what_takes_longest_is_what_bounds(
    flops: float, bytes_per_s: float, launch_s: float, bound: str
) -> None:
    limits = replace(HAND, flops={"fp32": flops}, bytes_per_s=bytes_per_s, launch_s=launch_s)
    found = roofline(MHA, batch=1, length=8, dtype="fp32", limits=limits)
    gemm = next(item for item in found.kernels if item.kernel.name == "QKV GEMM")
    assert gemm.bound == bound
    assert found.share(bound) > 0.9


def test_products_and_memory_overlap_and_a_launch_comes_on_top() -> None:
    found = roofline(TINY, batch=2, length=5, dtype="fp32", limits=HAND)
    gemm = next(item for item in found.kernels if item.kernel.name == "QKV GEMM")
    assert gemm.compute_s == pytest.approx(3 * 0.640)
    assert gemm.memory_s == pytest.approx(3 * 0.608)
    assert gemm.seconds == pytest.approx(3 * (0.640 + 0.5))
    assert found.seconds == pytest.approx(sum(item.seconds for item in found.kernels))
    assert found.samples_per_s == pytest.approx(2 / found.seconds)
    assert found.products_samples_per_s > found.samples_per_s


def test_where_fp16_is_unknown_int8s_attention_takes_what_is_known_and_says_so() -> None:
    limits = replace(HAND, flops={"fp32": 1e3, "int8": 4e3})
    found = roofline(TINY, batch=2, length=5, dtype="int8", limits=limits)
    attention = next(item for item in found.kernels if item.kernel.name == "attention")
    assert attention.compute_s == pytest.approx(3 * 800 / 1e3)
    assert found.note == "attention's products at the speed of fp32"


def test_json_holds_every_time_and_the_limits() -> None:
    found = roofline(TINY, batch=2, length=5, dtype="fp32", limits=HAND)
    data = found.to_json()
    assert sum(item["seconds"] for item in data["kernels"]) == pytest.approx(data["seconds"])
    assert data["limits"]["source"] == "by hand"
    assert data["kernels"][0]["kernel"]["name"] == "embedding"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"dtype": "fp8"}, "unknown dtype 'fp8'; there are: fp32, fp16", id="dtype"),
        pytest.param({"dtype": "fp16"}, "no datasheet fp16 speed is known of hand", id="unknown"),
        pytest.param({"batch": 0}, "batch 0, length 5: both must be at least 1", id="batch"),
        pytest.param({"length": 0}, "length 0", id="length"),
    ],
)
def test_what_cannot_be_worked_out_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"batch": 2, "length": 5, "dtype": "fp32", "limits": HAND}
    with pytest.raises(UsageError, match=message):
        roofline(TINY, **{**arguments, **change})  # type: ignore[arg-type]
