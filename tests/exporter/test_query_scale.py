"""A power of two goes into the weights, to the last bit; any other scale stays where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from attn_export.exporter.eager import run_eager
from attn_export.exporter.export import export_graph
from attn_export.exporter.query_scale import fold_scales
from attn_export.exporter.source import load_model

from .conftest import encoder_feeds, run_onnx, tiny_source

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, 5)).astype(np.float32)
BIAS = RNG.normal(size=5).astype(np.float32)
X = RNG.normal(size=(3, 6)).astype(np.float32)


def linear(
    scale: float, *, bias: bool = True, extra_reader: bool = False, scale_first: bool = False
) -> ir.Model:
    """y = (x W + b) * scale; maybe the linear layer is read by a second output as well."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"])]
    last = "a"
    if bias:
        nodes.append(helper.make_node("Add", ["a", "b"], ["c"]))
        last = "c"
    operands = ["s", last] if scale_first else [last, "s"]
    nodes.append(helper.make_node("Mul", operands, ["y"]))
    outputs = ["y"]
    if extra_reader:
        nodes.append(helper.make_node("Neg", [last], ["z"]))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 5]) for name in outputs],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in (("w", WEIGHT), ("b", BIAS), ("s", np.array(scale, np.float32)))
            if bias or name != "b"
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def run(model: ir.Model) -> np.ndarray:
    results = list(onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": X}))
    return np.asarray(results[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [0.125, 0.25, 4.0])
@pytest.mark.parametrize("scale_first", [True, False])
def test_a_power_of_two_is_folded_exactly(bias: bool, scale: float, scale_first: bool) -> None:
    model = linear(scale, bias=bias, scale_first=scale_first)
    expected = run(model)
    fold_scales(model.graph)
    assert "Mul" not in [node.op_type for node in model.graph]
    np.testing.assert_array_equal(run(model), expected)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(linear(8**-0.5), id="not a power of two"),
        pytest.param(linear(-0.5), id="negative"),
        pytest.param(linear(0.25, extra_reader=True), id="read elsewhere"),
    ],
)
def test_anything_else_is_left_alone(model: ir.Model) -> None:
    expected = run(model)
    fold_scales(model.graph)
    assert "Mul" in [node.op_type for node in model.graph]
    np.testing.assert_array_equal(run(model), expected)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_an_encoder_of_head_size_16_has_no_scale_left(tmp_path: Path, kv_heads: int) -> None:
    source = tiny_source("gqa", num_heads=2, num_kv_heads=kv_heads)
    model = load_model(source)
    textbook = load_model(source).module
    export_graph(model, tmp_path / "m.onnx", lowering="fold", metadata={})
    names = [node.name for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert not [name for name in names if name.endswith("scale")]
    feeds = encoder_feeds(2, 9, "right")
    np.testing.assert_allclose(
        run_onnx(tmp_path / "m.onnx", feeds)["logits"],
        run_eager(textbook, feeds)["logits"],
        atol=5e-6,
        rtol=1e-5,
    )
