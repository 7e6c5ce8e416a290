"""The reference encoder classifier: token and position embeddings, L layers, pooler, classes.

A layer is [attention + residual + LayerNorm], and with ``ffn_size`` also [feed-forward +
residual + LayerNorm], post-norm as in BERT (Devlin et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_export.spec import EncoderSpec

from .attention import Attention, Lowering, additive_mask


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them: [B, S, M] -> [B, S, M]."""

    def __init__(self, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, ffn_size)
        self.down = nn.Linear(ffn_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every token."""
        return self.down(nn.functional.gelu(self.up(x)))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """One post-norm layer."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        m = spec.hidden_size
        self.attention = Attention(m, spec.num_heads, spec.num_kv_heads)
        self.norm = nn.LayerNorm(m)
        self.ffn = FeedForward(m, spec.ffn_size) if spec.ffn_size else None
        self.ffn_norm = nn.LayerNorm(m) if spec.ffn_size else None

    def forward(self, x: Tensor, bias: Tensor, queries: Tensor | None = None) -> Tensor:
        """[B, S, M] -> [B, Sq, M]: of some tokens of ``x``, all by default."""
        residual = x if queries is None else queries
        x = self.norm(residual + self.attention(x, bias, queries))
        if self.ffn is not None and self.ffn_norm is not None:
            x = self.ffn_norm(x + self.ffn(x))
        return x


class EncoderClassifier(nn.Module):
    """Classify a text from its first token.

    With ``first_token_only`` the last layer computes that token's row alone: exact, since the
    head reads no other.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        m = spec.hidden_size
        self.spec = spec
        self.tokens = nn.Embedding(spec.vocab_size, m)
        self.positions = nn.Embedding(spec.max_length, m)
        self.layers = nn.ModuleList(EncoderLayer(spec) for _ in range(spec.num_layers))
        self.pooler = nn.Linear(m, m)
        self.classifier = nn.Linear(m, spec.num_classes)
        self.first_token_only = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Int [B, S] ids and mask (1 is a real token) -> logits [B, classes]."""
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        bias = additive_mask(attention_mask, x.dtype)
        for layer in self.layers[:-1]:
            x = layer(x, bias)
        x = self.layers[-1](x, bias, x[:, :1] if self.first_token_only else None)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))  # type: ignore[no-any-return]


def lower(module: nn.Module, lowering: Lowering) -> None:
    """Switch every reference part inside ``module`` from the textbook form to the export form."""
    for part in module.modules():
        if isinstance(part, Attention):
            part.lowering = lowering
        elif isinstance(part, EncoderClassifier):
            part.first_token_only = True


def build_encoder(spec: EncoderSpec, seed: int) -> EncoderClassifier:
    """Make an encoder with seeded weights at the scale of a trained one.

    Every projection keeps the variance of what it reads, so that logits differ between inputs by
    about 0.5; with a fresh module's weights they all look alike, and parity compares constants.
    """
    with torch.device("meta"):
        module = EncoderClassifier(spec)
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            _initialise(part, generator)
    return module.eval()


def _initialise(part: nn.Module, generator: torch.Generator) -> None:
    if isinstance(part, nn.Embedding):
        part.weight.normal_(std=0.5, generator=generator)
    elif isinstance(part, nn.Linear):
        part.weight.normal_(std=part.in_features**-0.5, generator=generator)
        part.bias.normal_(std=0.02, generator=generator)
    elif isinstance(part, nn.LayerNorm):
        part.weight.normal_(mean=1.0, std=0.05, generator=generator)
        part.bias.normal_(std=0.02, generator=generator)
