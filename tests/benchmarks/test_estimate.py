"""Memory and work from dimensions, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from attn_export.benchmarks.estimate import estimate, flops_per_sample
from attn_export.benchmarks.roofline import kernels
from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

MIB = 1 << 20
MHA, GQA, MQA = (EncoderSpec(num_kv_heads=k) for k in (12, 4, 1))
SPECS = pytest.mark.parametrize("spec", [MHA, GQA, MQA], ids=["mha", "gqa-4", "mqa"])


@pytest.mark.parametrize(
    ("spec", "name", "qkv", "reduction"),
    [
        # Batch 32 of 128 tokens in FP32: Q 32·128·768·4 = 12 MiB, K and V a twelfth a head each.
        pytest.param(MHA, "MHA", 36.0, 0.0, id="mha"),
        pytest.param(GQA, "GQA-4", 20.0, 16 / 60, id="gqa-4"),
        pytest.param(MQA, "MQA", 14.0, 22 / 60, id="mqa"),
    ],
)
def test_shared_heads_make_q_k_v_smaller_and_the_matrices_not(
    spec: EncoderSpec, name: str, qkv: float, reduction: float
) -> None:
    found = estimate(spec, batch=32, length=128)
    assert found.attention_kind == name
    assert found.qkv_bytes == qkv * MIB
    assert found.attention_bytes == 24.0 * MIB  # 32·12·128·128·4
    assert found.total_bytes == (qkv + 24.0) * MIB
    assert found.reduction == pytest.approx(reduction)


@pytest.mark.parametrize(
    ("dtype", "qkv"), [("fp16", 18.0), ("bf16", 18.0), ("int8", 18.0), ("int8-all", 9.0)]
)
def test_int8_keeps_the_attention_in_fp16_unless_everything_is_int8(dtype: str, qkv: float) -> None:
    found = estimate(MHA, batch=32, length=128, dtype=dtype)
    assert found.qkv_bytes == qkv * MIB
    assert found.attention_bytes == qkv * 24 / 36 * MIB


@pytest.mark.parametrize(("spec", "kib"), [(MHA, 72), (GQA, 24), (MQA, 6)])
def test_a_decoders_cache_holds_keys_and_values_of_every_layer(spec: EncoderSpec, kib: int) -> None:
    found = estimate(spec, batch=32, length=128)
    assert found.kv_cache_bytes_per_token == kib * 1024  # 2·12·K·64·4
    assert found.kv_cache_bytes == 32 * 128 * kib * 1024


@SPECS
def test_parameters_are_the_specs_own(spec: EncoderSpec) -> None:
    assert estimate(spec, batch=1, length=1).parameters == spec.parameter_count


@SPECS
def test_weights_of_the_kernels_are_the_models(spec: EncoderSpec) -> None:
    """Bytes at batch 0 are the weights: a straight line through two batches gives them."""
    one, two = (
        sum(k.count * k.bytes for k in kernels(spec, batch=batch, length=128, dtype="fp32"))
        for batch in (1, 2)
    )
    biases_norms = 12 * (2 * 768 + 2 * spec.num_kv_heads * 64 + 2 * 768) + 768 + 3
    embeddings = (30522 + 128) * 768
    assert (2 * one - two) / 4 == spec.parameter_count - embeddings - biases_norms


@pytest.mark.parametrize(
    ("spec", "length", "gflop"),
    [
        # 12·(4·S·768² + 4·S·768·64·K + 4·S²·768), and the head's 2·768² + 2·768·3.
        pytest.param(MHA, 128, 7.852, id="mha-128"),
        pytest.param(GQA, 128, 5.436, id="gqa-128"),
        pytest.param(MQA, 128, 4.530, id="mqa-128"),
        pytest.param(MHA, 29.9, 1.726, id="mha-short"),
        pytest.param(MQA, 29.9, 0.950, id="mqa-short"),
    ],
)
def test_flops_are_those_of_the_formula(spec: EncoderSpec, length: float, gflop: float) -> None:
    head = (2 * 768**2 + 2 * 768 * 3) / 1e9
    found = flops_per_sample(spec, length, first_row_only=False) / 1e9
    assert found - head == pytest.approx(gflop, abs=0.0006)


def test_a_feed_forward_block_makes_it_bert_base() -> None:
    bert = replace(MHA, ffn_size=3072, max_length=512)
    found = [flops_per_sample(bert, s, first_row_only=False) / 1e9 for s in (64, 128, 384)]
    assert found == pytest.approx([11.02, 22.35, 70.67], rel=0.001)


@pytest.mark.parametrize(("spec", "saved"), [(MHA, 0.044), (MQA, 0.077)], ids=["mha", "mqa"])
def test_the_last_layers_first_row_saves_what_is_published(spec: EncoderSpec, saved: float) -> None:
    found = estimate(spec, batch=1, length=128)
    share = 1 - found.flops_per_sample_first_row / found.flops_per_sample
    assert share == pytest.approx(saved, abs=0.0007)


@SPECS
@pytest.mark.parametrize("first_row_only", [False, True], ids=["every-row", "first-row"])
def test_flops_of_a_real_run_are_counted_the_same(spec: EncoderSpec, first_row_only: bool) -> None:
    """PyTorch counts the products that a real forward pass calls."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    from attn_export.exporter.encoder import build_encoder

    small = replace(spec, hidden_size=48, vocab_size=20, num_layers=2, ffn_size=40, max_length=16)
    model = build_encoder(small, seed=0)
    model.first_token_only = first_row_only
    ids, mask = torch.zeros(1, 16, dtype=torch.int32), torch.ones(1, 16, dtype=torch.int32)
    with flop_counter.FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(ids, mask)
    assert flops_per_sample(small, 16, first_row_only=first_row_only) == counter.get_total_flops()


def test_attention_that_passes_through_memory_moves_four_times_its_matrices_more() -> None:
    found = estimate(MHA, batch=32, length=128)
    more = found.bytes_per_sample_unfused - found.bytes_per_sample
    assert more == 12 * 4 * 12 * 128 * 128 * 4
    assert more / 12 == pytest.approx(8 * 128 * 768 * 4)  # as published for this size


def test_json_is_plain_and_has_what_is_derived() -> None:
    data = json.loads(json.dumps(estimate(MQA, batch=32, length=128).to_json()))
    assert data["attention"] == "MQA"
    assert data["total_bytes"] == 38 * MIB
    assert data["spec"]["num_kv_heads"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"length": 129}, "length 129 is beyond the model's 128 positions", id="long"),
        pytest.param({"dtype": "int4"}, "unknown dtype 'int4'", id="dtype"),
        pytest.param({"batch": 0}, "batch 0", id="batch"),
    ],
)
def test_what_cannot_be_estimated_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"batch": 32, "length": 128}
    with pytest.raises(UsageError, match=message):
        estimate(MHA, **{**arguments, **change})  # type: ignore[arg-type]
