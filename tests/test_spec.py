"""Dimensions: parameter counts worked out by hand, and what is refused."""

from __future__ import annotations

import json

import pytest

from attn_export.errors import UsageError
from attn_export.spec import BATCH, SEQUENCE, EncoderSpec, TensorSpec, builtin_spec, shared_heads


@pytest.mark.parametrize(
    ("num_kv_heads", "expected"),
    [
        pytest.param(12, 52_498_947, id="mha"),
        pytest.param(4, 43_049_475, id="gqa-4"),
        pytest.param(1, 39_505_923, id="mqa"),
    ],
)
def test_fewer_key_value_heads_mean_fewer_parameters(num_kv_heads: int, expected: int) -> None:
    assert EncoderSpec(num_kv_heads=num_kv_heads).parameter_count == expected


def test_every_part_of_a_tiny_encoder_is_counted() -> None:
    spec = EncoderSpec(
        num_kv_heads=1,
        vocab_size=10,
        hidden_size=4,
        num_heads=2,
        num_layers=3,
        max_length=5,
        num_classes=2,
        ffn_size=7,
    )
    embeddings = 10 * 4 + 5 * 4
    query_and_output = 2 * (4 * 4 + 4)
    key_and_value = 2 * (4 * 2 + 2)
    two_norms = 2 * (4 + 4)
    ffn = (4 * 7 + 7) + (7 * 4 + 4)
    head = (4 * 4 + 4) + (4 * 2 + 2)
    layer = query_and_output + key_and_value + two_norms + ffn
    assert spec.parameter_count == embeddings + 3 * layer + head
    assert spec.head_size == 2


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        pytest.param({"num_kv_heads": 0}, "num_kv_heads is 0; it must be at least 1", id="zero"),
        pytest.param(
            {"num_kv_heads": 1, "num_layers": -1}, "num_layers is -1", id="negative-layers"
        ),
        pytest.param({"num_kv_heads": 1, "ffn_size": -1}, "at least 0", id="negative-ffn"),
        pytest.param({"num_kv_heads": 1, "num_heads": 0}, "num_heads is 0", id="no-heads"),
        pytest.param(
            {"num_kv_heads": 1, "num_heads": 7},
            "7 heads do not divide the hidden size 768",
            id="uneven-heads",
        ),
        pytest.param(
            {"num_kv_heads": 5},
            "5 key/value heads do not divide 12 query heads",
            id="uneven-groups",
        ),
        pytest.param({"num_kv_heads": 24}, "24 key/value heads", id="more-groups-than-heads"),
    ],
)
def test_dimensions_that_cannot_work_are_refused(dimensions: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EncoderSpec(**dimensions)


@pytest.mark.parametrize(
    ("heads", "shared"),
    [(12, 4), (8, 2), (16, 4), (10, 2), (20, 5), (7, 1), (3, 1), (2, 1), (1, 1)],
)
def test_gqas_key_value_heads_are_the_largest_divisor_up_to_a_third(
    heads: int, shared: int
) -> None:
    assert shared_heads(heads) == shared
    spec = builtin_spec("gqa", {"num_heads": heads, "hidden_size": 8 * heads})
    assert spec.num_kv_heads == shared


@pytest.mark.parametrize("model", ["mha", "mqa"])
def test_only_gqa_lets_its_key_value_heads_be_chosen(model: str) -> None:
    assert builtin_spec("gqa", {"num_kv_heads": 6}).num_kv_heads == 6
    with pytest.raises(UsageError, match=rf"{model} has \d+ key/value heads, got 6; use the model"):
        builtin_spec(model, {"num_kv_heads": 6})


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
def test_no_heads_at_all_are_refused(model: str) -> None:
    with pytest.raises(UsageError, match="heads is 0; it must be at least 1"):
        builtin_spec(model, {"num_heads": 0})


def test_a_tensor_survives_the_manifest() -> None:
    spec = TensorSpec(
        name="input_ids", dtype="int32", shape=(BATCH, SEQUENCE), role="ids", limit=30522
    )
    assert TensorSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_position_of_an_axis() -> None:
    spec = TensorSpec(name="values", dtype="float32", shape=(BATCH, 4, SEQUENCE))
    assert spec.axis(BATCH) == 0
    assert spec.axis(SEQUENCE) == 2
    assert TensorSpec(name="logits", dtype="float32", shape=(BATCH, 3)).axis(SEQUENCE) is None
