"""Rounding for real activations: by hand, against the textbook form, and what it gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.calibration.cpu_int8 import write_cpu_int8
from attn_export.calibration.weight_rounding import compensated, second_moments
from attn_export.errors import BuildFailed, BundleError, InputError
from tests.calibration.tiny_graphs import node, run_graph, save_graph, sqnr

Array = np.ndarray[Any, Any]
SIZE, COLUMNS = 150, 5  # more rows than two blocks


def correlated(rng: np.random.Generator, rows: int, size: int = SIZE) -> Array:
    """Activations that lie mostly in a tenth of all directions."""
    directions = rng.standard_normal((size // 10, size))
    wide = rng.standard_normal((rows, size // 10)) @ directions
    return (wide + 0.1 * rng.standard_normal((rows, size))).astype(np.float32)


def weight_and_scales(rng: np.random.Generator, size: int = SIZE) -> tuple[Array, Array]:
    weight = rng.standard_normal((size, COLUMNS)).astype(np.float32)
    return weight, (np.abs(weight).max(axis=0) / 127).astype(np.float32)


def textbook(weight: Array, scales: Array, moment: Array) -> Array:
    """One row at a time; the inverse loses that row's and column's part after each."""
    order = np.argsort(-np.diag(moment).astype(np.float64), kind="stable")
    damped = moment.astype(np.float64) + 0.01 * np.diag(moment).mean() * np.eye(len(weight))
    inverse = np.linalg.inv(damped)
    left = weight.astype(np.float64)
    rounded = np.empty(weight.shape, np.int8)
    for row in order:
        rounded[row] = np.clip(np.rint(left[row] / scales), -127, 127)
        error = (left[row] - rounded[row] * scales) / inverse[row, row]
        left -= np.outer(inverse[:, row], error)
        inverse -= np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
    return rounded


def test_two_activations_that_go_together_share_their_rounding() -> None:
    # Each 0.4 alone rounds to 0. Together they count 0.8: the second makes up for the first. The
    # damping of a hundredth passes on 1 / 1.01 of the error.
    weight, scales = np.array([[0.4], [0.4]], np.float32), np.array([1.0], np.float32)
    together = np.ones((2, 2), np.float32)
    assert compensated(weight, scales, together).tolist() == [[0], [1]]
    assert compensated(weight, scales, np.eye(2, dtype=np.float32)).tolist() == [[0], [0]]


def test_it_is_the_textbook_algorithm() -> None:
    rng = np.random.default_rng(0)
    x = correlated(rng, 400)
    weight, scales = weight_and_scales(rng)
    got = compensated(weight, scales, x.T @ x)
    expected = textbook(weight, scales, x.T @ x)
    # In FP32 a number that lies halfway may fall to the other side.
    assert np.mean(got != expected) < 0.02
    assert np.mean(got != np.rint(weight / scales)) > 0.1


def test_the_product_on_such_activations_loses_less() -> None:
    rng = np.random.default_rng(1)
    x, unseen = np.split(correlated(rng, 800), 2)
    weight, scales = weight_and_scales(rng)
    nearest = np.rint(weight / scales) * scales
    best = compensated(weight, scales, x.T @ x) * scales
    exact = unseen @ weight
    assert sqnr(exact, unseen @ best) > sqnr(exact, unseen @ nearest) + 6


@pytest.mark.parametrize("moment", [np.zeros((SIZE, SIZE)), np.diag(np.arange(1.0, SIZE + 1))])
def test_activations_that_know_no_directions_are_rounded_to_the_nearest(moment: Array) -> None:
    weight, scales = weight_and_scales(np.random.default_rng(2))
    got = compensated(weight, scales, moment.astype(np.float32))
    np.testing.assert_array_equal(got, np.rint(weight / scales))


def test_a_moment_of_another_size_is_refused() -> None:
    weight, scales = weight_and_scales(np.random.default_rng(3))
    with pytest.raises(BundleError, match=r"\[4, 4\] and its weight \[150, 5\]"):
        compensated(weight, scales, np.eye(4, dtype=np.float32))


def wide_product(folder: Path, weight: Array) -> Path:
    nodes = [node("Relu", "x", "r"), node("MatMul", "r,w", "y")]
    shape = ("batch", "sequence", len(weight))
    return save_graph(folder / "model.onnx", nodes, {"w": weight}, shape=shape)


def test_moments_are_summed_over_positions_and_batches(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    weight, _ = weight_and_scales(rng, 6)
    batches = [rng.standard_normal((b, s, 6)).astype(np.float32) for b, s in ((2, 3), (1, 5))]
    seen: list[int] = []
    found = second_moments(
        wide_product(tmp_path, weight),
        ["r"],
        [{"x": batch} for batch in batches],
        threads=1,
        progress=seen.append,
    )
    rows = np.maximum(np.concatenate([batch.reshape(-1, 6) for batch in batches]), 0)
    assert seen == [1, 2]
    np.testing.assert_allclose(found["r"], rows.T @ rows, rtol=1e-5)
    assert found["r"].dtype == np.float32


def test_no_batches_and_broken_activations_are_refused(tmp_path: Path) -> None:
    graph = wide_product(tmp_path, np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match="no calibration batches"):
        second_moments(graph, ["r"], [], threads=1)
    broken = {"x": np.full((1, 1, 2), np.inf, np.float32)}
    with pytest.raises(BuildFailed, match="tensor r is NaN or infinite"):
        second_moments(graph, ["r"], [broken], threads=1)


def test_a_cpu_graph_written_with_moments_loses_less(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    x = correlated(rng, 600)[None]
    weight, _ = weight_and_scales(rng)
    graph = wide_product(tmp_path, weight)
    moments = second_moments(graph, ["r"], [{"x": x[:, :300]}], threads=1)
    expected = run_graph(graph, {"x": x[:, 300:]})
    found = []
    for given in (None, moments):
        write_cpu_int8(graph, tmp_path / "out.onnx", kind="dynamic", moments=given)
        found.append(sqnr(expected, run_graph(tmp_path / "out.onnx", {"x": x[:, 300:]})))
    nearest, best = found
    assert best > nearest + 1
