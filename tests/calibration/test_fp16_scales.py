"""Opset 19 and FP16's scales: the form, and what the typed graph then computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from attn_export.calibration.fp16_scales import write_for_fp16
from attn_export.calibration.placement import PlacementOptions, place
from attn_export.calibration.qdq import write_qdq
from attn_export.calibration.ranges import Ranges
from attn_export.errors import BuildFailed
from attn_export.exporter.fp16 import to_fp16
from attn_export.exporter.graph_file import read_graph, write_graph
from attn_export.exporter.keep import keep_list
from attn_export.exporter.lint import lint
from attn_export.exporter.twin import write_twin
from tests.calibration.tiny_graphs import (
    Array,
    encoder_feeds,
    encoder_ranges,
    export_encoder,
    node,
    ranges_of,
    run_graph,
    save_graph,
    sqnr,
)


def quantized(graph: Path, batch: Array) -> Path:
    """The Q/DQ form of a graph with the input x, beside it."""
    placement = place(ir.load(graph), PlacementOptions())
    out = graph.with_name("q.onnx")
    write_qdq(graph, ranges_of(graph, placement, [{"x": batch.astype(np.float32)}]), placement, out)
    return out


def product(folder: Path, weight: Array, *nodes: onnx.NodeProto) -> Path:
    """``y = x @ w``, and what else is wanted of it."""
    weights = {"w": weight.astype(np.float32)}
    return save_graph(
        folder / "model.onnx", [node("MatMul", "x,w", "a"), *nodes], weights, shape=("batch", 2)
    )


def scales(path: Path) -> dict[str, Array]:
    return {
        item.name: numpy_helper.to_array(item)
        for item in onnx.load(path).graph.initializer
        if item.name.endswith(".scale")
    }


# The encoder, typed by the exporter


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Ranges]:
    """A tiny encoder's FP32 graph, its INT8 and FP16 form, that one's twin, and its ranges."""
    folder = tmp_path_factory.mktemp("encoder")
    graph = export_encoder(folder, "gqa", "expand")
    placement = place(
        ir.load(graph), PlacementOptions(residuals=True, attention=True, max_length=16)
    )
    ranges = encoder_ranges(graph, placement)
    write_qdq(graph, ranges, placement, folder / "int8.onnx")
    assert write_for_fp16(folder / "int8.onnx", folder / "opset-19.onnx") == ()
    model = read_graph(folder / "opset-19.onnx")
    # As many Casts as without INT8: before the mask is added and after the logits.
    assert to_fp16(model, keep_list(read_graph(graph)), fp16_io=False) == 2
    places = write_graph(model, folder / "half.onnx")
    onnx.checker.check_model(folder / "half.onnx", full_check=True)
    write_twin(folder / "half.onnx", places, folder / "twin.onnx")
    return graph, folder / "half.onnx", folder / "twin.onnx", ranges


def test_all_its_scales_are_fp16_and_those_that_were_calibrated(
    typed: tuple[Path, Path, Path, Ranges],
) -> None:
    _, half, _, ranges = typed
    assert [item.version for item in onnx.load(half).opset_import] == [19]
    found = scales(half)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float16)}
    for name in ranges.tensors:
        assert found[f"{name}.quantize.scale"] == np.float16(ranges.scale(name))


@pytest.mark.parametrize("version", ["tensorrt-10", "tensorrt-11"])
def test_tensorrt_may_read_it(typed: tuple[Path, Path, Path, Ranges], version: str) -> None:
    assert [str(item) for item in lint(read_graph(typed[1]), version)] == []


@pytest.mark.parametrize("padded", [False, True])
def test_it_and_its_twin_answer_nearly_as_before(
    typed: tuple[Path, Path, Path, Ranges], padded: bool
) -> None:
    graph, half, twin, _ = typed
    feeds = encoder_feeds(12, padded=padded)
    expected = run_graph(graph, feeds)
    for path in (half, twin):
        assert 22 < sqnr(expected, run_graph(path, feeds)) < 60


# Numbers


def test_scales_are_rounded_to_fp16_and_stay_fp32(tmp_path: Path) -> None:
    path = quantized(product(tmp_path, np.eye(2), node("Neg", "a", "y")), np.full((1, 2), 0.1))
    out = tmp_path / "out.onnx"
    assert write_for_fp16(path, out) == ()
    found = scales(out)
    assert found["x.quantize.scale"].dtype == np.float32
    assert found["x.quantize.scale"] == np.float32(np.float16(0.1 / 127))
    assert found["x.quantize.scale"] != scales(path)["x.quantize.scale"]


def test_scales_too_small_for_fp16_stay_positive_and_are_reported(tmp_path: Path) -> None:
    weight = np.array([[1e-3, 1], [1e-9, 1]])
    graph = product(tmp_path, weight, node("Neg", "a", "y"))
    path = quantized(graph, np.ones((1, 2), np.float32))
    out = tmp_path / "out.onnx"
    assert write_for_fp16(path, out) == ("w.quantize: 1 of 2 scales are subnormal in FP16",)
    small = product(tmp_path, np.array([[1e-9, 1], [1e-9, 1]]), node("Neg", "a", "y"))
    write_for_fp16(quantized(small, np.ones((1, 2), np.float32)), out)
    assert scales(out)["w.quantize.scale"][0] == 2.0**-24


def test_a_scale_beyond_fp16_is_refused_by_name(tmp_path: Path) -> None:
    path = quantized(product(tmp_path, np.eye(2), node("Neg", "a", "y")), np.full((1, 2), 1e7))
    with pytest.raises(BuildFailed, match=r"x\.quantize: its scale is 7\.87e\+04, beyond FP16"):
        write_for_fp16(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


# Opsets


def test_reductions_and_splits_take_their_newer_form_and_compute_the_same(tmp_path: Path) -> None:
    nodes = (
        node("ReduceMean", "a", "mean", axes=[1], keepdims=1),
        node("ReduceMax", "a", "most", keepdims=1),
        node("Split", "a", "left,right", axis=1),
        node("Sum", "mean,most,left,right", "y"),
    )
    path = quantized(product(tmp_path, np.array([[1, 2], [3, 4]]), *nodes), np.ones((1, 2)))
    out = tmp_path / "out.onnx"
    write_for_fp16(path, out)
    made = {item.name: item for item in onnx.load(out).graph.node}
    assert list(made["mean"].input) == ["a", "mean.axes"]
    assert list(made["most"].input) == ["a"]
    assert {a.name: a.i for a in made["left"].attribute} == {"axis": 1, "num_outputs": 2}
    # a is [4, 6]: the mean 5, the largest 6, and both parts.
    np.testing.assert_allclose(
        run_graph(out, {"x": np.ones((1, 2), np.float32)}), [[5 + 6 + 4 + 6]], rtol=1e-2
    )


def test_a_graph_at_another_opset_is_refused(tmp_path: Path) -> None:
    path = quantized(product(tmp_path, np.eye(2), node("Neg", "a", "y")), np.ones((1, 2)))
    write_for_fp16(path, tmp_path / "once.onnx")
    with pytest.raises(BuildFailed, match="at opset 19, not 17"):
        write_for_fp16(tmp_path / "once.onnx", tmp_path / "twice.onnx")


def test_a_pinned_products_operands_come_in_fp32_without_a_cast(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x,w", "a"), node("MatMul", "a,v", "b"), node("Neg", "b", "y")]
    weights = {name: np.eye(2, dtype=np.float32) for name in "wv"}
    graph = save_graph(tmp_path / "model.onnx", nodes, weights, shape=("batch", 2))
    path = quantized(graph, np.full((1, 2), 0.1, np.float32))
    write_for_fp16(path, tmp_path / "opset-19.onnx")
    model = read_graph(tmp_path / "opset-19.onnx")
    # x before its Q, b after the pinned product, and the output.
    assert to_fp16(model, {"excluded": ["b"]}, fp16_io=False) == 3
    write_graph(model, tmp_path / "half.onnx")
    onnx.checker.check_model(tmp_path / "half.onnx", full_check=True)
    made = {item.name: item for item in model.graph}
    types = {name: item.outputs[0].dtype for name, item in made.items()}
    assert types["w.dequantize"] == types["a"] == ir.DataType.FLOAT16
    assert types["a.dequantize"] == types["v.dequantize"] == types["b"] == ir.DataType.FLOAT
    assert [v.name for v in made["b"].inputs if v is not None] == ["a.dequantize", "v.dequantize"]
    # a is quantized from FP16 and comes back as FP32, by the same number in both types.
    found = scales(tmp_path / "half.onnx")
    assert found["a.quantize.scale"].dtype == np.float32
    half = made["a.quantize"].inputs[1]
    assert half is not None
    assert half.const_value is not None
    assert half.const_value.numpy() == found["a.quantize.scale"]
    x: Array = np.array([[0.05, 0.1]], np.float32)
    np.testing.assert_allclose(run_graph(tmp_path / "half.onnx", {"x": x}), -x, atol=1e-3)
