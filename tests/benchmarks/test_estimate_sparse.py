"""What sparse masks keep, against masks that are really built."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from attn_export.benchmarks.estimate import estimate
from attn_export.benchmarks.estimate_sparse import kept_pairs, sparse_savings
from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

SIZES = (1, 2, 3, 4, 7, 16, 33, 64, 500)
LENGTHS = (1, 2, 5, 16, 31, 128)


def mask(name: str, size: int, length: int) -> npt.NDArray[np.bool_]:
    query, key = np.indices((length, length))
    distance = np.abs(query - key)
    masks: dict[str, npt.NDArray[np.bool_]] = {
        "local": distance <= size // 2,
        "strided": (distance < size) | (distance % size == 0),
        "global": (query < size) | (key < size) | (query == key),
        "block": query // size == key // size,
    }
    return masks[name]


@pytest.mark.parametrize("name", ["local", "strided", "global", "block"])
@pytest.mark.parametrize("size", SIZES)
def test_pairs_are_those_of_a_mask_that_is_built(name: str, size: int) -> None:
    for length in LENGTHS:
        assert kept_pairs(f"{name}:{size}", length) == mask(name, size, length).sum()


def test_savings_by_hand() -> None:
    model = estimate(EncoderSpec(num_kv_heads=12), batch=32, length=128)
    found = sparse_savings("block:32", model)
    assert found.pairs == 4 * 32 * 32
    assert found.kept == 0.25
    assert found.attention_bytes == 6.0 * (1 << 20)
    # The attention is 7.7 % of this model's FLOPs; three quarters of it go.
    assert found.model_flops_kept == pytest.approx(1 - 0.75 * 0.0769, abs=0.0001)


@pytest.mark.parametrize(
    "pattern", ["local", "local:", "local:0", "local:-4", "local:x", "ring:4", "", "4", "local:1.5"]
)
def test_other_patterns_are_refused_and_the_allowed_ones_named(pattern: str) -> None:
    with pytest.raises(UsageError, match="allowed are local:N, strided:N, global:N, block:N"):
        kept_pairs(pattern, 16)
