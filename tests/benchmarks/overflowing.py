"""Models that FP16 breaks on purpose, each in one place.

Factories as ``attn-export build overflowing.py:factory`` takes them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attn_export.exporter.attention import Attention, additive_mask

SIZE, VOCABULARY, LENGTH = 32, 40, 16


class _Model(nn.Module):
    """Token ids -> FP32 values for every token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.max_length = LENGTH
        self.tokens = nn.Embedding(VOCABULARY, SIZE)


class LargeScores(_Model):
    """Two attentions; each adds its offset to every score, which no softmax sees.

    One feature of each head's query and key knows nothing of the input: the offset is their
    product.
    """

    def __init__(self, *offsets: float, mask: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.mask = mask or (lambda mask: additive_mask(mask, torch.float32))
        layers = [Attention(SIZE, 4, 4) for _ in offsets]
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            for layer, offset in zip(layers, offsets, strict=True):
                for projection in (layer.query, layer.key):
                    projection.weight[:: layer.head_size] = 0
                    projection.bias[:: layer.head_size] = (offset * layer.head_size**0.5) ** 0.5

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, S] -> [B, S, M]."""
        x = self.tokens(input_ids)
        bias = self.mask(attention_mask)
        for layer in self.layers:
            x = x + layer(x, bias)
        return x  # type: ignore[no-any-return]


class GrowingResidual(_Model):
    """Each layer adds 1e4 times its norm: beyond 65504 after some layers, fine after the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(SIZE) for _ in range(5))
        layers = [nn.Linear(SIZE, SIZE, bias=False) for _ in range(5)]
        self.layers = nn.ModuleList(layers)
        self.last = nn.LayerNorm(SIZE)
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(1e4 * torch.eye(SIZE))

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, M]."""
        x = self.tokens(input_ids)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.last(x)  # type: ignore[no-any-return]


class _RmsNorm(nn.Module):
    """Written out, with its weight multiplied in first."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((SIZE,), weight))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, M] -> [B, S, M]."""
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class OutlierNorm(_Model):
    """A decomposed RMSNorm reads outliers: its squares, and with a weight of 4 also its product."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.norm = _RmsNorm(weight)
        self.head = nn.Linear(SIZE, 3)
        with torch.no_grad():
            self.tokens.weight[:, 5] = 2.0**14 + 2.0**13  # exact in FP16

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, 3]."""
        return self.head(self.norm(self.tokens(input_ids)))  # type: ignore[no-any-return]


class _Cancelling(nn.Module):
    """8192 is added and taken away again, transposed between: FP16 has steps of 8 there."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, M] -> [B, M, S]."""
        return (torch.tanh(x) + 8192.0).transpose(1, 2) - 8192.0


class Cancellation(_Model):
    """The same in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Cancelling() for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, 2 * M, S]."""
        x = self.tokens(input_ids)
        return torch.cat([layer(x + index) for index, layer in enumerate(self.layers)], 1)


class Vanishing(_Model):
    """Values go through 1e-9, where FP16 has only zero, and one is divided by what comes back."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, M]."""
        x = torch.sigmoid(self.tokens(input_ids))
        small = torch.relu(x * 1e-4) * 1e-5
        return 1.0 / (torch.relu(small * 1e4) * 1e4 + 1e-2 * x)


class Divided(_Model):
    """One is divided by the square root of what FP16 takes for zero."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, M]."""
        x = torch.sigmoid(self.tokens(input_ids)) * 1e-5
        return 1.0 / torch.sqrt(x * x) * 1e-5


class Jointly(_Model):
    """Two operators overflow, and only both together break the output; a third harms nothing.

    The tanh makes 1 of its infinite input, as in FP32. Of two numbers that are almost equal the
    smaller is right if one is infinite, and infinite if both are.
    """

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, M]."""
        x = 1.0 + torch.sigmoid(self.tokens(input_ids))
        flag = torch.tanh(x * 400.0 * 400.0)
        smaller = torch.minimum(torch.exp(x + 11.0), torch.exp(x + 11.0001))
        return flag + smaller * 1e-3 * 1e-3


def jointly() -> nn.Module:
    """Overflow that takes two."""
    return Jointly()


def large_scores() -> nn.Module:
    """Overflow in Q K^T."""
    return LargeScores(0, 1e5)


def all_large_scores() -> nn.Module:
    """The same in every layer."""
    return LargeScores(1e5, 1e5)


def harsh_mask() -> nn.Module:
    """The same, behind a mask that is -inf in FP16 and harms nothing there."""
    return LargeScores(0, 1e5, mask=lambda mask: (1.0 - mask.float())[:, None, None, :] * -3e38)


def coarse_scores() -> nn.Module:
    """Scores within FP16's range, where it has steps of 16."""
    return LargeScores(0, 2e4)


def growing_residual() -> nn.Module:
    """Overflow in the residual."""
    return GrowingResidual()


def outlier_norm() -> nn.Module:
    """Overflow in a norm's own multiplication."""
    return OutlierNorm(weight=4.0)


def outlier_statistics() -> nn.Module:
    """Overflow in a norm's squares, where these are not kept in FP32."""
    return OutlierNorm(weight=1.0)


def cancellation() -> nn.Module:
    """Rounding."""
    return Cancellation()


def vanishing() -> nn.Module:
    """Underflow that stays finite."""
    return Vanishing()


def divided() -> nn.Module:
    """Underflow that becomes infinite."""
    return Divided()
