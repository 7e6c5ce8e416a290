"""The rounding twin: shows the overflow that a CPU's FP16 run hides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from attn_export.exporter.attention import Attention
from attn_export.exporter.export import export_graph, write_checked
from attn_export.exporter.fp16 import to_fp16
from attn_export.exporter.graph_file import read_graph
from attn_export.exporter.keep import KeepList, keep_list
from attn_export.exporter.source import load_model
from attn_export.exporter.twin import write_twin

from .conftest import Exported, encoder_feeds, run_onnx, tiny_source


def type_and_twin(full: Path, folder: Path, keep: KeepList | None = None) -> tuple[Path, Path]:
    graph = read_graph(full)
    to_fp16(graph, keep_list(graph) if keep is None else keep, fp16_io=False)
    places = write_checked(graph, folder / "half.onnx")
    write_twin(folder / "half.onnx", places, folder / "twin.onnx")
    return folder / "half.onnx", folder / "twin.onnx"


def overflow(attention: Attention) -> None:
    """Add 1e5 to every score, through one feature of each head that knows nothing of the input.

    The softmax does not see it, so in FP32 the answers stay; in FP16 the scores are infinite.
    """
    size = attention.head_size
    with torch.no_grad():
        for projection in (attention.query, attention.key):
            projection.weight[::size] = 0
            projection.bias[::size] = (1e5 * size**0.5) ** 0.5  # the query's is divided by sqrt(D)


def test_it_rounds_after_every_operation(tmp_path: Path) -> None:
    """(x + 1) - 1 with x below FP16's resolution at 1 is 0 when each step is rounded."""
    nodes = [
        onnx.helper.make_node("Add", ["x", "one"], ["sum"], name="sum"),
        onnx.helper.make_node("Sub", ["sum", "one"], ["y"], name="y"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        [onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(onnx.shape_inference.infer_shapes(proto), tmp_path / "full.onnx")
    half, twin = type_and_twin(tmp_path / "full.onnx", tmp_path, keep={})
    x = {"x": np.array([2.0**-12], np.float32)}
    assert run_onnx(twin, x)["y"].tolist() == [0.0]
    assert run_onnx(half, x)["y"].tolist() == [2.0**-12]  # a CPU does not round between


@pytest.mark.parametrize("mask", ["full", "right", "left", "masked_row"])
@pytest.mark.parametrize("model", ["mha", "mqa"])
def test_it_agrees_with_fp16_arithmetic_where_nothing_overflows(
    exported: Callable[..., Exported], tmp_path: Path, model: str, mask: str
) -> None:
    full = exported(model)
    _, twin = type_and_twin(full.path, tmp_path)
    feeds = encoder_feeds(3, 9, mask)
    expected = run_onnx(full.path, feeds)["logits"]
    got = run_onnx(twin, feeds)["logits"]
    np.testing.assert_allclose(got, expected, atol=5e-3, rtol=5e-3)
    assert np.abs(got - expected).max() > 1e-6


def test_a_score_that_overflows_shows_in_the_twin_alone(tmp_path: Path) -> None:
    model = load_model(tiny_source("mha"))
    for part in model.module.modules():
        if isinstance(part, Attention):
            overflow(part)
    export_graph(model, tmp_path / "full.onnx", lowering="fold", metadata={})
    half, twin = type_and_twin(tmp_path / "full.onnx", tmp_path)
    feeds = encoder_feeds(2, 7)
    expected = run_onnx(tmp_path / "full.onnx", feeds)["logits"]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(run_onnx(half, feeds)["logits"], expected, atol=5e-2)
    assert not np.isfinite(run_onnx(twin, feeds)["logits"]).all()


def test_pinning_the_scores_mends_it(tmp_path: Path) -> None:
    model = load_model(tiny_source("mha"))
    for part in model.module.modules():
        if isinstance(part, Attention):
            overflow(part)
    export_graph(model, tmp_path / "full.onnx", lowering="fold", metadata={})
    graph = read_graph(tmp_path / "full.onnx")
    keep = keep_list(graph, nodes=[r".*\.(scores|mask_add|softmax)"])
    _, twin = type_and_twin(tmp_path / "full.onnx", tmp_path, keep)
    feeds = encoder_feeds(2, 7)
    assert np.isfinite(run_onnx(twin, feeds)["logits"]).all()


def test_it_carries_no_weights_of_its_own(
    exported: Callable[..., Exported], tmp_path: Path
) -> None:
    half, twin = type_and_twin(exported("mha").path, tmp_path)
    proto = onnx.load(twin, load_external_data=False)
    places = {
        entry.value
        for item in proto.graph.initializer
        for entry in item.external_data
        if entry.key == "location"
    }
    assert places == {half.name}
    offset = next(
        int(entry.value)
        for item in proto.graph.initializer
        if item.name == "pooler.weight"
        for entry in item.external_data
        if entry.key == "offset"
    )
    before = run_onnx(twin, encoder_feeds(1, 4))["logits"]
    altered = bytearray(half.read_bytes())
    altered[offset : offset + 64] = np.full(32, 3, np.float16).tobytes()
    half.write_bytes(altered)
    assert not np.array_equal(run_onnx(twin, encoder_feeds(1, 4))["logits"], before)
