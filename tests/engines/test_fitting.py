"""Batches that no profile takes as they are: padded, run, and cut back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from attn_export.engines.fitting import run_all_fitted, run_fitted
from attn_export.engines.profiles import given_profiles
from attn_export.engines.session import Feeds, Outputs
from attn_export.errors import InputError
from attn_export.spec import TensorSpec

TOKENS = ("batch", "sequence")
IDS = TensorSpec(name="input_ids", dtype="int32", shape=TOKENS, role="ids", limit=50)
MASK = TensorSpec(name="attention_mask", dtype="int32", shape=TOKENS, role="mask")
OUTPUTS = (
    TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),
    TensorSpec(name="hidden", dtype="float32", shape=(*TOKENS, 8)),
)
Twin = Callable[[Any, Any], dict[str, Any]]


class NumPySession:
    """The tiny encoder in NumPy behind profiles; it refuses every other shape."""

    profiles = given_profiles([(4, 4, 8)], [(6, 8, 8), (12, 16, 16)])
    buckets: tuple[int, ...] = (8, 16)
    batch_tokens = 64
    inputs: tuple[TensorSpec, ...] = (IDS, MASK)
    outputs: tuple[TensorSpec, ...] = OUTPUTS

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: Feeds) -> Outputs:
        shape = feeds["input_ids"].shape
        assert any(profile.holds(*shape) for profile in self.profiles)
        self.shapes.append(shape)
        return self._twin(feeds["input_ids"], feeds["attention_mask"])

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        return map(self.run, batches)

    def close(self) -> None:
        """Nothing is held."""


def batch(rows: int, length: int) -> Feeds:
    ids = np.random.default_rng(rows * 100 + length).integers(0, 50, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.mark.parametrize(
    ("shape", "ran"),
    [((1, 3), (4, 6)), ((4, 8), (4, 8)), ((5, 7), (5, 7)), ((8, 9), (8, 12)), ((2, 16), (4, 16))],
)
def test_padding_changes_no_result(
    twin: Twin, shape: tuple[int, int], ran: tuple[int, int]
) -> None:
    session, feeds = NumPySession(twin), batch(*shape)
    outputs = run_fitted(session, feeds)
    assert session.shapes == [ran]
    for name, expected in twin(feeds["input_ids"], feeds["attention_mask"]).items():
        assert outputs[name].shape == expected.shape
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5, rtol=1e-5)


def test_many_batches_come_back_in_order(twin: Twin) -> None:
    shapes = [(1, 3), (8, 16), (3, 9), (4, 8)]
    session = NumPySession(twin)
    for shape, outputs in zip(
        shapes, run_all_fitted(session, (batch(*shape) for shape in shapes)), strict=True
    ):
        feeds = batch(*shape)
        expected = twin(feeds["input_ids"], feeds["attention_mask"])["hidden"]
        np.testing.assert_allclose(outputs["hidden"], expected, atol=1e-5, rtol=1e-5)
    assert session.shapes == [(4, 6), (8, 16), (4, 12), (4, 8)]


def test_a_model_without_a_mask_is_never_padded_with_tokens(twin: Twin) -> None:
    session = NumPySession(twin)
    session.inputs = (IDS,)
    with pytest.raises(InputError, match="have 3 tokens and the engine's profiles begin at 6"):
        run_fitted(session, batch(4, 3))


def test_a_batch_over_every_profile_is_refused(twin: Twin) -> None:
    with pytest.raises(InputError, match="a batch of 9 with 3 tokens is outside every profile"):
        run_fitted(NumPySession(twin), batch(9, 3))
