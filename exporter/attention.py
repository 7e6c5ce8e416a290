"""One attention for MHA, GQA and MQA: the number of key/value heads is the only difference.

Two lowerings of shared heads give the same numbers:

* ``expand`` repeats K and V to H heads: the textbook form, and the documented fusion pattern;
* ``fold`` puts the G = H / K queries of a group into the sequence axis (rows in the order
  token, query): exact, 4-D, and neither K nor V is ever copied.

Both emit MatMul, Add, Softmax, MatMul with the query scaled before the product, which is what
TensorRT's fused attention recognises.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attn_export.errors import UsageError

Lowering = Literal["expand", "fold"]
LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)
MASKED = 1e4  # finite, exact in FP16, and far beyond any score


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a [B, S] mask (1 is a real token) into an additive one [B, 1, 1, S].

    Masked positions get -1e4. The row's maximum is subtracted first, so a fully masked row gets
    zeros (it attends everywhere) and nothing is ever infinite.
    """
    mask = attention_mask.to(dtype)
    bias = (mask - mask.amax(dim=-1, keepdim=True)) * MASKED
    return bias[:, None, None, :]


class Attention(nn.Module):
    """Scaled dot-product attention with K key/value heads (Ainslie et al. 2023, section 2).

    Args:
        hidden_size: M; a multiple of ``num_heads``.
        num_heads: H query heads.
        num_kv_heads: K; H is MHA, 1 is MQA, any other divisor of H is GQA.

    Raises:
        UsageError: if H does not divide M or K does not divide H.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        if hidden_size % num_heads or num_heads % num_kv_heads:
            raise UsageError(
                f"hidden size {hidden_size}, {num_heads} heads, {num_kv_heads} key/value heads: "
                "each must divide the one before it"
            )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_size = hidden_size // num_heads
        kv_size = num_kv_heads * self.head_size
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, kv_size)
        self.value = nn.Linear(hidden_size, kv_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.lowering: Lowering = "expand"

    def forward(self, x: Tensor, bias: Tensor, queries: Tensor | None = None) -> Tensor:
        """Attend from some tokens (all by default) to all tokens.

        Args:
            x: hidden states [B, S, M].
            bias: additive mask, broadcast over heads: [B, 1, 1, S], or one row for each query,
                repeated G times in the form ``fold``: [B, 1, Sq or Sq * G, S].
            queries: the hidden states that attend [B, Sq, M].

        Returns:
            [B, Sq, M].
        """
        q = self.query(x if queries is None else queries) * self.head_size**-0.5
        attend = self._expand if self.lowering == "expand" else self._fold
        return self.output(attend(q, self.key(x), self.value(x), bias))  # type: ignore[no-any-return]

    def _expand(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q = _split(q, self.num_heads).transpose(1, 2)  # [B, H, Sq, D]
        k, v = self._repeat(k), self._repeat(v)  # [B, H, S, D]
        weights = torch.softmax(q @ k.transpose(-2, -1) + bias, dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def _repeat(self, x: Tensor) -> Tensor:
        x = _split(x, self.num_kv_heads).transpose(1, 2)  # [B, K, S, D]
        group = self.num_heads // self.num_kv_heads
        return x if group == 1 else x.repeat_interleave(group, dim=1)

    def _fold(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        batch, rows = q.shape[:2]
        kv_heads, size = self.num_kv_heads, self.head_size
        group = self.num_heads // kv_heads
        q = q.reshape(batch, rows, kv_heads, group * size).transpose(1, 2)
        q = q.reshape(batch, kv_heads, rows * group, size)  # [B, K, Sq * G, D]
        k = _split(k, kv_heads).permute(0, 2, 3, 1)  # [B, K, D, S]
        v = _split(v, kv_heads).transpose(1, 2)  # [B, K, S, D]
        weights = torch.softmax(q @ k + bias, dim=-1)
        out = (weights @ v).reshape(batch, kv_heads, rows, group * size)
        return out.transpose(1, 2).flatten(2)


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, S, heads * D] -> [B, S, heads, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads)
