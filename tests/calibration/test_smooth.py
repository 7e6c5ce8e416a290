"""Moving scale into the weights: the same function, less to lose in INT8, and where it is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from attn_export.calibration.collect import collect
from attn_export.calibration.placement import PlacementOptions, place
from attn_export.calibration.qdq import write_qdq
from attn_export.calibration.smooth import smoothable, smoothing_scales, write_smoothed
from attn_export.errors import AttnExportError, BuildFailed, InputError, UsageError
from tests.calibration.tiny_graphs import (
    Array,
    export_encoder,
    node,
    ranges_of,
    run_graph,
    save_graph,
    sqnr,
)

SIZE = 32
RNG = np.random.default_rng(3)
GAMMA = np.ones(SIZE, np.float32)
GAMMA[5] = 60.0  # the one large channel
WEIGHTS = {
    "gamma": GAMMA,
    "beta": RNG.standard_normal(SIZE).astype(np.float32) * np.float32(0.1),
    "w": RNG.standard_normal((SIZE, 8)).astype(np.float32),
    "v": RNG.standard_normal((SIZE, 8)).astype(np.float32),
    "bias": RNG.standard_normal(8).astype(np.float32),
}
WEIGHTS["w"][5] *= np.float32(0.01)
WEIGHTS["v"][5] *= np.float32(0.01)
SHAPE = ("sequence", SIZE)
X = RNG.standard_normal((40, SIZE)).astype(np.float32)


def pre_norm(path: Path) -> Path:
    """A norm that two products read, one of them as a Gemm with a transposed weight."""
    nodes = [
        node("LayerNormalization", "x,gamma,beta", "norm"),
        node("MatMul", "norm,w", "a"),
        node("Gemm", "norm,vt,bias", "b", transB=1),
        node("Add", "a,b", "y"),
    ]
    weights = {**WEIGHTS, "vt": WEIGHTS["v"].T.copy()}
    del weights["v"]
    return save_graph(path, nodes, weights, shape=SHAPE)


def maxima(path: Path, *tensors: str) -> dict[str, Array]:
    found = collect(path, tensors, [{"x": X}], channels=tensors, threads=1)
    return dict(found.channel_maxima)


def stored(path: Path) -> dict[str, Array]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def test_equation_4_by_hand() -> None:
    activations, weights = np.array([16.0, 1.0, 0.0, 2.0]), np.array([4.0, 0.25, 3.0, 0.0])
    half = smoothing_scales(activations, weights, 0.5)
    # sqrt(16 / 4), sqrt(1 / 0.25), and channels that carry nothing.
    np.testing.assert_allclose(half, [2, 2, 1, 1])
    # 16^0.75 / 4^0.25 and 1 / 0.25^0.25
    np.testing.assert_allclose(
        smoothing_scales(activations, weights, 0.75)[:2], [5.65685, 1.41421], rtol=1e-5
    )
    # All of it: the activations' largest magnitudes become one.
    np.testing.assert_allclose(smoothing_scales(activations, weights, 1.0)[:2], [16, 1])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_the_function_stays_the_same(tmp_path: Path, alpha: float) -> None:
    graph = pre_norm(tmp_path / "model.onnx")
    out = tmp_path / "smooth.onnx"
    summary = write_smoothed(graph, maxima(graph, "norm"), out, alpha=alpha)
    assert summary.smoothed == ("norm",)
    assert summary.to_json() == {"smoothed": ("norm",), "skipped": {}}
    expected = run_graph(graph, {"x": X})
    np.testing.assert_allclose(run_graph(out, {"x": X}), expected, atol=1e-5, rtol=1e-5)
    assert not np.array_equal(stored(out)["gamma"], GAMMA)


def test_at_one_half_activations_and_weights_have_the_same_largest_magnitudes(
    tmp_path: Path,
) -> None:
    graph = pre_norm(tmp_path / "model.onnx")
    out = tmp_path / "smooth.onnx"
    write_smoothed(graph, maxima(graph, "norm"), out)
    after = stored(out)
    rows = np.concatenate([after["w"].T, after["vt"]])
    np.testing.assert_allclose(maxima(out, "norm")["norm"], np.abs(rows).max(axis=0), rtol=1e-4)


def test_int8_loses_less(tmp_path: Path) -> None:
    graph = pre_norm(tmp_path / "model.onnx")
    smooth = tmp_path / "smooth.onnx"
    write_smoothed(graph, maxima(graph, "norm"), smooth)
    noise = []
    for path in (graph, smooth):
        placement = place(ir.load(path), PlacementOptions())
        out = path.with_suffix(".int8.onnx")
        write_qdq(path, ranges_of(path, placement, [{"x": X}]), placement, out)
        noise.append(sqnr(run_graph(graph, {"x": X}), run_graph(out, {"x": X})))
    assert noise[1] > noise[0] + 10  # dB


def test_what_others_read_too_stays_as_it_was(tmp_path: Path) -> None:
    """One gamma for two norms, one weight for two products: each reader gets its own."""
    nodes = [
        node("LayerNormalization", "x,gamma,beta", "first"),
        node("MatMul", "first,square", "a"),
        node("Add", "a,x", "b"),
        node("LayerNormalization", "b,gamma,beta", "second"),
        node("MatMul", "second,square", "c"),
        node("Add", "second,c", "y"),
    ]
    square = RNG.standard_normal((SIZE, SIZE)).astype(np.float32)
    weights = {"gamma": GAMMA, "beta": WEIGHTS["beta"], "square": square}
    graph = save_graph(tmp_path / "model.onnx", nodes, weights, shape=SHAPE)
    out = tmp_path / "smooth.onnx"
    summary = write_smoothed(graph, maxima(graph, "first"), out)
    assert summary.smoothed == ("first",)
    assert summary.skipped == {"second": "y reads its output too and would need the old values"}
    after = stored(out)
    np.testing.assert_array_equal(after["gamma"], GAMMA)
    np.testing.assert_array_equal(after["square"], square)
    assert len(after) == 6
    expected = run_graph(graph, {"x": X})
    np.testing.assert_allclose(run_graph(out, {"x": X}), expected, atol=1e-4, rtol=1e-5)


def test_a_post_norm_encoder_cannot_be_smoothed_and_the_residual_is_named(tmp_path: Path) -> None:
    graph = export_encoder(tmp_path, "mha", "fold", ffn_size=64)
    found, skipped = smoothable(ir.load(graph))
    assert found == {}
    assert len(skipped) == 4
    with pytest.raises(BuildFailed, match=r"layers\.0\.norm\.norm: .* reads its output too"):
        write_smoothed(graph, {}, tmp_path / "smooth.onnx")
    assert not (tmp_path / "smooth.onnx").exists()


@pytest.mark.parametrize(
    ("norm", "readers", "outputs", "reason"),
    [
        ("x,gamma", [node("MatMul", "norm,w", "y")], ("y", "norm"), "is an output of the graph"),
        ("x,x2", [node("MatMul", "norm,w", "y")], ("y",), "is computed in the graph"),
        ("x,gamma", [node("Neg", "norm", "y")], ("y",), "y reads its output too"),
        ("x,gamma", [node("MatMul", "norm,norm_t", "y")], ("y",), "norm_t reads its output too"),
        (
            "x,gamma",
            [node("Gemm", "norm,big", "y", transA=1)],
            ("y",),
            "reads its output transposed",
        ),
    ],
    ids=["output", "computed", "other-reader", "no-weight", "transposed"],
)
def test_other_norms_are_left_with_the_reason(
    tmp_path: Path, norm: str, readers: list[onnx.NodeProto], outputs: tuple[str, ...], reason: str
) -> None:
    nodes = [
        node("ReduceMean", "x", "x2", axes=[0], keepdims=0),
        node("LayerNormalization", norm, "norm"),
        node("Transpose", "norm", "norm_t", perm=[1, 0]),
        *readers,
    ]
    if "norm_t" not in readers[0].input:
        del nodes[2]
    weights = {"gamma": GAMMA, "w": WEIGHTS["w"], "big": np.ones((4, 8), np.float32)}
    graph = save_graph(tmp_path / "m.onnx", nodes, weights, shape=(4, SIZE), outputs=outputs)
    found, skipped = smoothable(ir.load(graph))
    assert found == {}
    assert reason in skipped["norm"]


@pytest.mark.parametrize(
    ("given", "alpha", "error", "words"),
    [
        ({}, 0.5, InputError, "magnitudes of norm are missing"),
        ({"norm": np.ones(3)}, 0.5, InputError, r"shape \(3,\)"),
        ({"norm": np.full(SIZE, np.nan)}, 0.5, InputError, "finite numbers"),
        ({"norm": np.ones(SIZE)}, 1.5, UsageError, "between 0 and 1"),
    ],
    ids=["missing", "shape", "nan", "alpha"],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    tmp_path: Path, given: dict[str, Array], alpha: float, error: type[AttnExportError], words: str
) -> None:
    graph = pre_norm(tmp_path / "model.onnx")
    with pytest.raises(error, match=words):
        write_smoothed(graph, given, tmp_path / "smooth.onnx", alpha=alpha)
    assert not (tmp_path / "smooth.onnx").exists()
