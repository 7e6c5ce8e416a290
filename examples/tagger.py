"""A model of one's own: a token tagger with grouped-query attention and rotary positions.

    attn-export build --fp16 examples/tagger.py:make -o tagger-bundle
    attn-export parity tagger-bundle

It returns a score for every token, so ``engine.run_many`` gives back one array for each request,
as long as that request.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """Root mean square norm, written out: its statistics stay FP32 in the FP16 graph."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, M] -> [B, S, M]."""
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, size: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, size // heads
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, kv_heads * self.head_size, bias=False)
        self.value = nn.Linear(size, kv_heads * self.head_size, bias=False)
        self.output = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, S, M] -> [B, S, M]; ``mask`` is additive, [B, 1, 1, S]."""
        q = self._split(self.query(x), self.heads) * self.head_size**-0.5
        k, v = self._split(self.key(x), self.kv_heads), self._split(self.value(x), self.kv_heads)
        group = self.heads // self.kv_heads
        k = rotate(k, cos, sin).repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        scores = rotate(q, cos, sin) @ k.transpose(-1, -2) + mask
        return self.output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_size)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, section 3.4) on [B, H, S, D]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Tagger(nn.Module):
    """Tokens to tags."""

    def __init__(self, *, vocabulary: int, size: int, layers: int, tags: int, length: int) -> None:
        super().__init__()
        self.max_length = length  # attn-export reads it; --max-length would say it too
        self.tokens = nn.Embedding(vocabulary, size)
        self.norms = nn.ModuleList(RmsNorm(size) for _ in range(layers))
        self.layers = nn.ModuleList(Attention(size, heads=8, kv_heads=2) for _ in range(layers))
        self.head = nn.Linear(size, tags)
        half = size // 8 // 2
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Int [B, S] ids and mask -> ``tags`` [B, S, tags]."""
        x = self.tokens(input_ids)
        keep = attention_mask.to(x.dtype)
        mask = ((keep - keep.amax(-1, keepdim=True)) * 1e4)[:, None, None, :]
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x), mask, cos, sin)
        return {"tags": self.head(x)}


def make() -> Tagger:
    """The factory that attn-export calls. A real one would load a checkpoint here."""
    torch.manual_seed(0)
    return Tagger(vocabulary=5000, size=128, layers=4, tags=9, length=64).eval()
