"""Attention against torch's own, both lowerings against each other, and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attn_export.errors import UsageError
from attn_export.exporter.attention import LOWERINGS, Attention, Lowering, additive_mask

KV_HEADS = [
    pytest.param(4, id="mha"),
    pytest.param(2, id="gqa"),
    pytest.param(1, id="mqa"),
]


def make_mask(kind: str, batch: int, length: int) -> torch.Tensor:
    mask = torch.ones(batch, length, dtype=torch.int32)
    if kind == "right":
        mask[0, length // 2 :] = 0
    elif kind == "left":
        mask[0, : length // 2] = 0
    return mask


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("kind", ["full", "right", "left"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7), (2, 16)])
def test_it_is_torchs_attention(
    kv_heads: int, lowering: Lowering, kind: str, batch: int, length: int
) -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4, kv_heads).eval()
    attention.lowering = lowering
    x = torch.randn(batch, length, 32)
    mask = make_mask(kind, batch, length)
    if not mask.any(dim=1).all():
        mask[0, 0] = 1

    def heads(projection: torch.nn.Module, count: int) -> torch.Tensor:
        split: torch.Tensor = projection(x).view(batch, length, count, 8)
        return split.transpose(1, 2)

    expected = scaled_dot_product_attention(
        heads(attention.query, 4),
        heads(attention.key, kv_heads),
        heads(attention.value, kv_heads),
        attn_mask=mask.bool()[:, None, None, :],
        enable_gqa=True,
    )
    expected = attention.output(expected.transpose(1, 2).reshape(batch, length, 32))
    got = attention(x, additive_mask(mask, x.dtype))
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("rows", [1, 3, None])
def test_the_lowerings_agree_on_any_number_of_rows(kv_heads: int, rows: int | None) -> None:
    torch.manual_seed(1)
    attention = Attention(32, 4, kv_heads).eval()
    x = torch.randn(2, 5, 32)
    bias = additive_mask(make_mask("right", 2, 5), x.dtype)
    results = {}
    for lowering in LOWERINGS:
        attention.lowering = lowering
        results[lowering] = attention(x, bias, None if rows is None else x[:, :rows])
    torch.testing.assert_close(results["fold"], results["expand"], atol=2e-6, rtol=1e-5)
    assert results["fold"].shape == (2, rows or 5, 32)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_first_rows_are_the_first_rows_of_all(lowering: Lowering) -> None:
    torch.manual_seed(2)
    attention = Attention(16, 2, 1).eval()
    attention.lowering = lowering
    x, bias = torch.randn(2, 6, 16), torch.zeros(2, 1, 1, 6)
    torch.testing.assert_close(attention(x, bias, x[:, :1]), attention(x, bias)[:, :1])


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_two_tokens_by_hand(lowering: Lowering) -> None:
    """One head of size 1, identity projections: token a attends with weights softmax(a*a, a*b)."""
    attention = Attention(1, 1, 1)
    attention.lowering = lowering
    for projection in (attention.query, attention.key, attention.value, attention.output):
        torch.nn.init.ones_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    got = attention(torch.tensor([[[1.0], [2.0]]]), torch.zeros(1, 1, 1, 2))
    first = (math.exp(1) * 1 + math.exp(2) * 2) / (math.exp(1) + math.exp(2))
    second = (math.exp(2) * 1 + math.exp(4) * 2) / (math.exp(2) + math.exp(4))
    torch.testing.assert_close(got.flatten(), torch.tensor([first, second]))


def test_the_mask_is_finite_and_a_fully_masked_row_attends_everywhere() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.int32)
    bias = additive_mask(mask, torch.float32)
    assert bias.shape == (3, 1, 1, 3)
    assert bias[:, 0, 0].tolist() == [[0, 0, -1e4], [0, 0, 0], [0, 0, 0]]
    assert bias.half().float().equal(bias)  # exact in FP16


@pytest.mark.parametrize(("size", "heads", "kv_heads"), [(10, 4, 4), (32, 4, 3)])
def test_heads_that_do_not_divide_are_refused(size: int, heads: int, kv_heads: int) -> None:
    with pytest.raises(UsageError, match="each must divide the one before it"):
        Attention(size, heads, kv_heads)
