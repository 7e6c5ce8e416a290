"""What a sparse attention mask keeps, counted exactly.

A dense kernel that adds a mask saves nothing: these are what a kernel saves that skips the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

from .estimate import Estimate, flops_per_sample


@dataclass(frozen=True, kw_only=True)
class SparseSavings:
    """What a pattern keeps of a model's attention.

    Args:
        pattern: as it was given, for instance ``"local:64"``.
        meaning: who attends to whom.
        pairs: pairs of tokens that attend, of ``length`` squared.
        kept: the same as a share: of the attention's FLOPs, and of its matrices if only the
            pairs are stored.
        attention_bytes: what is left of one layer's matrices.
        model_flops_kept: what is left of all FLOPs of the model.
    """

    pattern: str
    meaning: str
    length: int
    pairs: int
    kept: float
    attention_bytes: float
    model_flops_kept: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def _local(length: int, size: int) -> int:
    reach = min(size // 2, length - 1)
    return length + 2 * sum(length - distance for distance in range(1, reach + 1))


def _strided(length: int, size: int) -> int:
    near = range(1, min(size, length))
    far = range(size, length, size)
    return length + 2 * sum(length - distance for part in (near, far) for distance in part)


def _global(length: int, size: int) -> int:
    chosen = min(size, length)
    return 2 * chosen * length - chosen**2 + (length - chosen)


def _block(length: int, size: int) -> int:
    whole, rest = divmod(length, size)
    return whole * size**2 + rest**2


_PATTERNS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    # Beltagy et al. 2020, arXiv:2004.05150, section 3.1: half of the window on each side.
    "local": ("tokens at most {0}/2 apart, rounded down", _local),
    # Child et al. 2019, arXiv:1904.10509, section 4.2, both heads together and both directions.
    "strided": ("tokens less than {0} apart, or a multiple of {0}", _strided),
    # Beltagy et al. 2020, section 3.1, global attention by itself.
    "global": ("the first {0} tokens and every other one, both ways, and each itself", _global),
    "block": ("tokens of the same {0}, counted from the first", _block),
}


def kept_pairs(pattern: str, length: int) -> int:
    """Pairs (query, key) that a pattern keeps of ``length`` squared.

    Raises:
        UsageError: if the pattern is unknown or its size is not a positive number.
    """
    return _parsed(pattern)[1](length)


def sparse_savings(pattern: str, model: Estimate) -> SparseSavings:
    """What a pattern would save in a model.

    Raises:
        UsageError: as :func:`kept_pairs`.
    """
    meaning, count = _parsed(pattern)
    length = model.length
    pairs = count(length)
    kept = pairs / length**2
    all_flops = flops_per_sample(model.spec, length, first_row_only=False)
    return SparseSavings(
        pattern=pattern,
        meaning=meaning,
        length=length,
        pairs=pairs,
        kept=kept,
        attention_bytes=kept * model.attention_bytes,
        model_flops_kept=1 - (1 - kept) * _attention_flops(model.spec, length) / all_flops,
    )


def _attention_flops(spec: EncoderSpec, length: int) -> float:
    return 4.0 * spec.num_layers * length**2 * spec.hidden_size


def _parsed(pattern: str) -> tuple[str, Callable[[int], int]]:
    name, _, size = pattern.partition(":")
    if name not in _PATTERNS or not size.isdecimal() or not int(size):
        allowed = ", ".join(f"{name}:N" for name in _PATTERNS)
        raise UsageError(
            f"sparse pattern {pattern!r}: allowed are {allowed}, N is tokens, at least 1"
        )
    meaning, count = _PATTERNS[name]
    return meaning.format(size), lambda length: count(length, int(size))
