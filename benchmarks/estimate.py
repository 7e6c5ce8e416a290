"""What a model costs, worked out from its dimensions: no model is run.

Q, K, V and attention matrices are of one layer: those of another one exist at another time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

from .roofline import Kernel, kernels, widths_of


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Memory and work of one model at one batch and length.

    Args:
        qkv_bytes: Q [B, H, S, D], K and V [B, K, S, D] of one layer.
        attention_bytes: the attention matrices [B, H, S, S] of one layer.
        reduction: the share of their sum that is saved against MHA of the same size.
        kv_cache_bytes_per_token: keys and values of all layers, if this were a decoder.
        kv_cache_bytes: the same for the whole batch and length.
        flops_per_sample: of every product; ``flops_per_sample_first_row`` where the last layer
            computes the row alone that the classifier reads.
        bytes_per_sample: moved by a fused engine that computes every row, weights shared by the
            batch.
        bytes_per_sample_unfused: the same, and attention matrices that pass through memory.
    """

    spec: EncoderSpec
    batch: int
    length: int
    dtype: str
    qkv_bytes: int
    attention_bytes: int
    reduction: float
    kv_cache_bytes_per_token: int
    kv_cache_bytes: int
    parameters: int
    flops_per_sample: float
    flops_per_sample_first_row: float
    bytes_per_sample: float
    bytes_per_sample_unfused: float

    @property
    def attention_kind(self) -> str:
        """``"MHA"``, ``"MQA"`` or ``"GQA-4"`` (4 key/value heads)."""
        if self.spec.num_kv_heads == self.spec.num_heads:
            return "MHA"
        return "MQA" if self.spec.num_kv_heads == 1 else f"GQA-{self.spec.num_kv_heads}"

    @property
    def total_bytes(self) -> int:
        """Q, K, V and the attention matrices of one layer."""
        return self.qkv_bytes + self.attention_bytes

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "attention": self.attention_kind,
            **asdict(self),
            "total_bytes": self.total_bytes,
        }


def estimate(spec: EncoderSpec, *, batch: int, length: int, dtype: str = "fp32") -> Estimate:
    """Work a model's memory and products out.

    Args:
        length: tokens a sample, padding included.
        dtype: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` (Q, K, V and attention stay FP16) or
            ``"int8-all"``.

    Raises:
        UsageError: if the dtype is unknown, batch or length are not positive, or the length is
            beyond the model's positions.
    """
    if length > spec.max_length:
        raise UsageError(
            f"length {length} is beyond the model's {spec.max_length} positions; take a shorter "
            "one, or a model with more positions"
        )
    element = widths_of(dtype).write
    moved = _moved(kernels(spec, batch=batch, length=length, dtype=dtype))
    qkv, attention = _sizes(spec, batch, length, element)
    full = sum(_sizes(replace(spec, num_kv_heads=spec.num_heads), batch, length, element))
    token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_size * element
    # Written by Q·K^T, read and written by the softmax, read by the product with V.
    passes = 4 * spec.num_layers * attention
    return Estimate(
        spec=spec,
        batch=batch,
        length=length,
        dtype=dtype,
        qkv_bytes=qkv,
        attention_bytes=attention,
        reduction=1 - (qkv + attention) / full,
        kv_cache_bytes_per_token=token,
        kv_cache_bytes=token * batch * length,
        parameters=spec.parameter_count,
        flops_per_sample=flops_per_sample(spec, length, first_row_only=False),
        flops_per_sample_first_row=flops_per_sample(spec, length, first_row_only=True),
        bytes_per_sample=moved / batch,
        bytes_per_sample_unfused=(moved + passes) / batch,
    )


def flops_per_sample(spec: EncoderSpec, length: float, *, first_row_only: bool) -> float:
    """Floating point operations (a multiplication and an addition are two) of all products.

    A layer has ``4·S·M² + 4·S·M·K·D + 4·S²·M`` for its projections and attention, and ``4·S·M·F``
    with a feed-forward block of width F; pooler and classifier see one row, embeddings cost none.

    Args:
        first_row_only: the last layer computes its query, attention and all that follows for the
            first token alone: exact, since the classifier reads no other.

    Raises:
        UsageError: if the length is not positive.
    """
    found = kernels(spec, batch=1, length=length, dtype="fp32", first_row_only=first_row_only)
    return sum(item.count * item.flops for item in found)


def _sizes(spec: EncoderSpec, batch: int, length: int, element: int) -> tuple[int, int]:
    """Bytes of Q, K and V, and of the attention matrices, of one layer."""
    columns = spec.hidden_size + 2 * spec.num_kv_heads * spec.head_size
    qkv = batch * length * columns * element
    return qkv, batch * spec.num_heads * length * length * element


def _moved(found: list[Kernel]) -> float:
    return sum(item.count * item.bytes for item in found)
