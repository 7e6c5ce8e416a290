"""The Q/DQ graph: its numbers by hand, its form, and the rules of TensorRT's importers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from attn_export.calibration import qdq
from attn_export.calibration.graph_structure import graph_digest
from attn_export.calibration.placement import Placement, PlacementOptions, place
from attn_export.calibration.qdq import QdqSummary, write_qdq
from attn_export.calibration.ranges import Ranges, TensorRange
from attn_export.errors import BuildFailed, BundleError
from attn_export.exporter.lint import lint_file
from attn_export.exporter.tensorrt_importers import VERSIONS
from tests.calibration.tiny_graphs import (
    Array,
    encoder_feeds,
    encoder_ranges,
    export_encoder,
    node,
    run_graph,
    save_graph,
    sqnr,
)

WEIGHT = np.array([[1.27, -2.0], [-0.5, 2.54]], np.float32)
CHOICES = {
    "default": PlacementOptions(),
    "residuals": PlacementOptions(residuals=True),
    "attention": PlacementOptions(attention=True, max_length=16),
    "all": PlacementOptions(attention=True, residuals=True, max_length=16),
}


def placed(graph: Path, options: PlacementOptions = CHOICES["default"]) -> Placement:
    return place(ir.load(graph), options)


def given_ranges(graph: Path, **high: float) -> Ranges:
    """Ranges from zero up to these numbers."""
    return Ranges(
        graph_sha256=graph_digest(graph),
        method="minmax",
        samples=1,
        tokens=1,
        tensors={name: TensorRange(0.0, bound) for name, bound in high.items()},
    )


def product(folder: Path, **weights: Array) -> Path:
    """``y = x @ w + b``, beside nothing else."""
    nodes = [node("MatMul", "x,w", "a"), node("Add", "a,b", "y")]
    values = {"w": WEIGHT, "b": np.array([10, 20], np.float32), **weights}
    return save_graph(folder / "model.onnx", nodes, values, shape=("batch", "sequence", 2))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GQA encoder."""
    return export_encoder(tmp_path_factory.mktemp("encoder"), "gqa", "expand")


@pytest.fixture(scope="module")
def written(
    encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, QdqSummary]]:
    """The encoder's Q/DQ graph by one of the choices; each is written once."""
    made: dict[str, tuple[Path, QdqSummary]] = {}

    def write(choice: str) -> tuple[Path, QdqSummary]:
        if choice not in made:
            out = tmp_path_factory.mktemp(choice) / "model.int8.onnx"
            placement = placed(encoder, CHOICES[choice])
            made[choice] = (
                out,
                write_qdq(encoder, encoder_ranges(encoder, placement), placement, out),
            )
        return made[choice]

    return write


# Numbers


def test_the_product_is_that_of_the_rounded_integers(tmp_path: Path) -> None:
    graph = product(tmp_path)
    out = tmp_path / "q.onnx"
    write_qdq(graph, given_ranges(graph, x=2.54), placed(graph), out)
    x: Array = np.array([[[1.0, -0.4], [9.0, -9.0]]], np.float32)
    # Steps: x 0.02; w 0.01 and 0.02 by output channel. 9 and -9 are clipped to 127 and -128.
    codes_x = np.array([[[50, -20], [127, -128]]])
    codes_w = np.array([[127, -100], [-50, 127]])
    expected = (codes_x @ codes_w) * 0.02 * np.array([0.01, 0.02]) + np.array([10, 20])
    np.testing.assert_allclose(run_graph(out, {"x": x}), expected, rtol=1e-5)
    # By hand: (50 * 127 + 20 * 50) * 0.0002 + 10.
    np.testing.assert_allclose(expected[0, 0, 0], 11.47)


def test_a_gemm_with_a_transposed_weight_has_its_scales_on_axis_0(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x,w,b", "y", transB=1)]
    weights = {"w": WEIGHT.T.copy(), "b": np.array([10, 20], np.float32)}
    graph = save_graph(tmp_path / "model.onnx", nodes, weights, shape=("batch", 2))
    out = tmp_path / "q.onnx"
    write_qdq(graph, given_ranges(graph, x=2.54), placed(graph), out)
    x: Array = np.array([[1.0, -0.4]], np.float32)
    np.testing.assert_allclose(run_graph(out, {"x": x})[0, 0], 11.47, rtol=1e-6)
    scale = initializers(out)["w.quantize.scale"]
    np.testing.assert_allclose(numpy_helper.to_array(scale), [0.01, 0.02])


def test_a_channel_of_zeros_gets_a_positive_scale_and_is_noted(tmp_path: Path) -> None:
    graph = product(tmp_path, w=np.array([[1.27, 0], [0, 0]], np.float32))
    out = tmp_path / "q.onnx"
    summary = write_qdq(graph, given_ranges(graph, x=1.0), placed(graph), out)
    scale = numpy_helper.to_array(initializers(out)["w.quantize.scale"])
    np.testing.assert_allclose(scale, [0.01, 1 / 127], rtol=1e-6)
    assert summary.notes == ("w: 1 of 2 output channels are all zero",)
    assert run_graph(out, {"x": np.ones((1, 1, 2), np.float32)})[0, 0, 1] == 20


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("choice", "decibels"), [("default", 35), ("residuals", 25), ("attention", 25), ("all", 22)]
)
def test_an_encoder_answers_nearly_as_before(
    encoder: Path,
    written: Callable[[str], tuple[Path, QdqSummary]],
    choice: str,
    decibels: float,
    padded: bool,
) -> None:
    feeds = encoder_feeds(12, padded=padded)
    noise = sqnr(run_graph(encoder, feeds), run_graph(written(choice)[0], feeds))
    assert decibels < noise < 60  # infinite where nothing was quantized, NaN for NaN


# Form


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {item.name: item for item in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_of_tensorrt_may_read_it(
    written: Callable[[str], tuple[Path, QdqSummary]], choice: str, version: str
) -> None:
    assert [str(item) for item in lint_file(written(choice)[0], version)] == []


def test_pairs_are_symmetric_fp32_and_named_after_their_tensor(
    encoder: Path, written: Callable[[str], tuple[Path, QdqSummary]]
) -> None:
    path, summary = written("default")
    model = onnx.load(path)
    stored = {item.name: item for item in model.graph.initializer}
    quantizers = [item for item in model.graph.node if item.op_type == "QuantizeLinear"]
    dequantizers = {item.name: item for item in model.graph.node if item.op_type[:3] == "Deq"}
    assert [item.version for item in model.opset_import] == [17]
    assert len(quantizers) == len(dequantizers) == summary.activations + summary.weights == 9
    for item in quantizers:
        tensor, scale, zero = item.input
        assert item.name == item.output[0] == f"{tensor}.quantize"
        pair = dequantizers[f"{tensor}.dequantize"]
        assert list(pair.input) == [item.name, scale, zero]
        assert item.attribute == pair.attribute
        assert stored[scale].data_type == TensorProto.FLOAT
        assert stored[zero].data_type == TensorProto.INT8
        assert not numpy_helper.to_array(stored[zero]).any()
        assert stored[zero].dims == stored[scale].dims
        per_channel = tensor in stored
        assert [a.i for a in item.attribute] == ([1] if per_channel else [])
        if per_channel:  # FP32, and as it was
            before = numpy_helper.to_array(initializers(encoder)[tensor])
            np.testing.assert_array_equal(numpy_helper.to_array(stored[tensor]), before)


def test_the_summary_names_the_products_in_int8_and_the_others(
    written: Callable[[str], tuple[Path, QdqSummary]],
) -> None:
    summary = written("default")[1]
    assert len(summary.gemms) == 6
    assert summary.left == (
        "layers.1.attention.query.gemm",
        "layers.1.attention.output.gemm",
        "pooler.gemm",
        "classifier.gemm",
    )
    assert summary.to_json()["activations"] == 3


def test_a_weight_that_two_products_read_both_ways_has_two_pairs(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x,w", "a"), node("Gemm", "a,w", "y", transB=1)]
    graph = save_graph(tmp_path / "model.onnx", nodes, {"w": WEIGHT}, shape=("batch", 2))
    out = tmp_path / "q.onnx"
    write_qdq(graph, given_ranges(graph, x=1.0, a=4.0), placed(graph), out)
    stored = initializers(out)
    across = numpy_helper.to_array(stored["w.axis_1.quantize.scale"]) * 127
    along = numpy_helper.to_array(stored["w.axis_0.quantize.scale"]) * 127
    np.testing.assert_allclose(across, [1.27, 2.54], rtol=1e-6)
    np.testing.assert_allclose(along, [2.0, 2.54], rtol=1e-6)
    x: Array = np.array([[1, 1]], np.float32)
    np.testing.assert_allclose(run_graph(out, {"x": x}), x @ WEIGHT @ WEIGHT.T, atol=0.1)


def test_many_weights_go_into_a_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdq, "ONE_FILE_LIMIT", 8)
    graph = save_graph(
        tmp_path / "model.onnx",
        [node("MatMul", "x,w", "y")],
        {"w": np.eye(2, 64, dtype=np.float32)},
    )
    out = tmp_path / "q.onnx"
    write_qdq(graph, given_ranges(graph, x=1.0), placed(graph), out)
    assert (tmp_path / "q.onnx.data").stat().st_size >= 2 * 64 * 4
    x: Array = np.ones((1, 1, 2), np.float32)
    np.testing.assert_allclose(run_graph(out, {"x": x})[0, 0, :3], [1, 1, 0], rtol=1e-6)


# Refusals


def spoiled(graph: Path, placement: Placement, ranges: Ranges) -> dict[str, tuple[Any, ...]]:
    """What goes wrong, with the error and its words."""
    other = replace(ranges, graph_sha256="0" * 64)
    edges = replace(placement, edges=(*placement.edges, ("nowhere", 0)), activations=("z",))
    return {
        "other-graph": (placement, other, BundleError, "graph"),
        "no-range": (placement, replace(ranges, tensors={}), BundleError, "x has no range"),
        "other-placement": (edges, ranges, BuildFailed, "made for another graph; place again"),
    }


@pytest.mark.parametrize("what", ["other-graph", "no-range", "other-placement"])
def test_what_does_not_belong_together_is_refused_and_nothing_is_written(
    tmp_path: Path, what: str
) -> None:
    graph = product(tmp_path)
    placement, ranges, error, words = spoiled(graph, placed(graph), given_ranges(graph, x=1.0))[
        what
    ]
    with pytest.raises(error, match=words):
        write_qdq(graph, ranges, placement, tmp_path / "q.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_quantized_graph_is_refused(tmp_path: Path) -> None:
    graph = product(tmp_path)
    placement = placed(graph)
    once = tmp_path / "q.onnx"
    write_qdq(graph, given_ranges(graph, x=1.0), placement, once)
    with pytest.raises(BuildFailed, match="quantized already"):
        write_qdq(once, given_ranges(once, x=1.0), placement, tmp_path / "twice.onnx")


def test_a_graph_at_another_opset_is_refused(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x,w", "y")]
    graph = save_graph(tmp_path / "model.onnx", nodes, {"w": WEIGHT}, opset=18)
    with pytest.raises(BuildFailed, match="at opset 18, not 17"):
        write_qdq(graph, given_ranges(graph, x=1.0), placed(graph), tmp_path / "q.onnx")


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    graph = product(tmp_path, w=np.array([[1, np.nan], [1, 1]], np.float32))
    with pytest.raises(BuildFailed, match="w holds NaN or infinity"):
        write_qdq(graph, given_ranges(graph, x=1.0), placed(graph), tmp_path / "q.onnx")
