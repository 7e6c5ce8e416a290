"""Shapes: the dimensions of the reference encoder, and what a graph takes and gives.

The legend used everywhere: B batch, S sequence length (tokens), H query heads, K key/value
heads (K = H: MHA, 1 < K < H: GQA, K = 1: MQA), D head size, M = H * D hidden size,
L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from attn_export.errors import UsageError

BATCH = "batch"
SEQUENCE = "sequence"


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Dimensions of the reference encoder classifier.

    Raises:
        UsageError: if a dimension is not positive, H does not divide M, or K does not divide H.
    """

    num_kv_heads: int
    vocab_size: int = 30522
    hidden_size: int = 768
    num_heads: int = 12
    num_layers: int = 12
    max_length: int = 128
    num_classes: int = 3
    ffn_size: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "ffn_size" else 1
            if value < least:
                raise UsageError(f"{name} is {value}; it must be at least {least}")
        if self.hidden_size % self.num_heads:
            raise UsageError(
                f"{self.num_heads} heads do not divide the hidden size {self.hidden_size}; "
                "choose a number of heads that does"
            )
        if self.num_heads % self.num_kv_heads:
            raise UsageError(
                f"{self.num_kv_heads} key/value heads do not divide {self.num_heads} query heads; "
                "choose a divisor of the query heads"
            )

    @property
    def head_size(self) -> int:
        """D, the width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def parameter_count(self) -> int:
        """The number of parameters, worked out from the dimensions."""
        m, f = self.hidden_size, self.ffn_size
        kv = self.num_kv_heads * self.head_size
        attention = 2 * (m * m + m) + 2 * (m * kv + kv)
        ffn = (m * f + f) + (f * m + m) + 2 * m if f else 0
        embeddings = (self.vocab_size + self.max_length) * m
        head = (m * m + m) + (m * self.num_classes + self.num_classes)
        return embeddings + self.num_layers * (attention + 2 * m + ffn) + head


def shared_heads(heads: int) -> int:
    """GQA's key/value heads where none are given: the largest divisor up to a third of the heads.

    One, where there is no such divisor.
    """
    return next((heads // group for group in range(3, heads + 1) if heads % group == 0), 1)


def builtin_spec(model: str, options: Mapping[str, int]) -> EncoderSpec:
    """The dimensions of ``"mha"``, ``"gqa"`` or ``"mqa"``.

    Args:
        options: fields of :class:`EncoderSpec`.

    Raises:
        UsageError: if they do not fit together, or are not what the model's name says.
    """
    heads = options.get("num_heads", EncoderSpec.num_heads)
    default = {"mha": heads, "gqa": shared_heads(heads), "mqa": 1}[model]
    spec = EncoderSpec(**{"num_kv_heads": default, **options})
    if model != "gqa" and spec.num_kv_heads != default:
        raise UsageError(
            f"{model} has {default} key/value heads, got {spec.num_kv_heads}; use the model gqa "
            "to choose their number"
        )
    return spec


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph.

    Args:
        dtype: a NumPy name: ``"int32"``, ``"float32"``.
        shape: fixed sizes as numbers, dynamic axes as ``"batch"`` and ``"sequence"``.
        role: what an input holds: ``"ids"`` (values in ``[0, limit)``), ``"mask"`` (1 is a real
            token) or ``"values"``. Outputs are ``"values"``.
        limit: for ids, one more than the largest id.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: str = "values"
    limit: int | None = None

    def axis(self, name: str) -> int | None:
        """The position of a dynamic axis, or None."""
        return self.shape.index(name) if name in self.shape else None

    def to_json(self) -> dict[str, Any]:
        """A plain dict for the manifest."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        """The inverse of :meth:`to_json`."""
        return cls(**{**data, "shape": tuple(data["shape"])})
