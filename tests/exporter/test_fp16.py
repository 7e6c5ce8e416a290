"""FP16 typing: what becomes FP16, what stays, and how few Casts it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from attn_export.errors import BuildFailed, UsageError
from attn_export.exporter.attention import LOWERINGS, Lowering
from attn_export.exporter.export import write_checked
from attn_export.exporter.fp16 import to_fp16
from attn_export.exporter.graph_file import read_graph, write_graph
from attn_export.exporter.keep import keep_list, rounding_report

from .conftest import Exported, encoder_feeds, run_onnx

FLOAT = TensorProto.FLOAT


def small(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    outputs: tuple[str, ...] = ("y",),
) -> ir.Model:
    """x [b, 4] -> the outputs [b, 4], with types inferred as an export has them."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["b", 4])],
        [helper.make_tensor_value_info(name, FLOAT, ["b", 4]) for name in outputs],
        [onnx.numpy_helper.from_array(a, name) for name, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def node(
    op: str, inputs: list[str], output: str, name: str = "", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=name or output, **attributes)


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_encoder_takes_two_casts(
    exported: Callable[..., Exported], tmp_path: Path, model: str, lowering: Lowering
) -> None:
    graph = read_graph(exported(model, lowering).path)
    keep = keep_list(graph)
    assert list(keep) == ["mask"]
    assert to_fp16(graph, keep, fp16_io=False) == 2
    write_checked(graph, tmp_path / "half.onnx")
    proto = onnx.load(tmp_path / "half.onnx")
    assert [item.version for item in proto.opset_import] == [17]
    # The third Cast is the mask's own, from int32.
    assert Counter(n.op_type for n in proto.graph.node)["Cast"] == 3
    types = Counter(TensorProto.DataType.Name(item.data_type) for item in proto.graph.initializer)
    assert types["FLOAT"] == 1  # the mask's 1e4
    assert proto.graph.output[0].type.tensor_type.elem_type == FLOAT
    norm = next(n for n in proto.graph.node if n.op_type == "LayerNormalization")
    assert {a.name: a.i for a in norm.attribute}.get("stash_type", 1) == 1


@pytest.mark.parametrize("mask", ["full", "right", "left", "masked_row"])
def test_its_answers_are_close(
    exported: Callable[..., Exported], tmp_path: Path, mask: str
) -> None:
    full = exported("gqa")
    graph = read_graph(full.path)
    to_fp16(graph, keep_list(graph), fp16_io=False)
    write_checked(graph, tmp_path / "half.onnx")
    feeds = encoder_feeds(3, 9, mask)
    half = run_onnx(tmp_path / "half.onnx", feeds)["logits"]
    expected = run_onnx(full.path, feeds)["logits"]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, expected, atol=5e-3, rtol=5e-3)
    assert np.abs(half - expected).max() > 1e-7  # it was rounded


def test_fp16_io_types_float_inputs_and_outputs_too(tmp_path: Path) -> None:
    graph = small([node("Mul", ["x", "w"], "y")], {"w": np.full(4, 2, np.float32)})
    assert to_fp16(graph, {}, fp16_io=True) == 0
    write_checked(graph, tmp_path / "m.onnx")
    x = np.array([[1, 2, 3, 4]], np.float16)
    got = run_onnx(tmp_path / "m.onnx", {"x": x})["y"]
    assert got.dtype == np.float16
    assert got.tolist() == [[2, 4, 6, 8]]


def test_a_tensor_read_by_many_is_cast_once_and_no_cast_follows_a_cast(tmp_path: Path) -> None:
    nodes = [
        node("Neg", ["x"], "a"),
        node("Abs", ["a"], "kept"),
        node("Exp", ["kept"], "b"),
        node("Sqrt", ["kept"], "c"),
        node("Add", ["b", "c"], "y"),
    ]
    graph = small(nodes)
    # x down, a up for the kept node, its result down once for two readers, y up.
    assert to_fp16(graph, {"excluded": ["kept"]}, fp16_io=False) == 4
    for item in graph.graph:
        if item.op_type == "Cast":
            value = item.inputs[0]
            producer = value.producer() if value is not None else None
            assert producer is None or producer.op_type != "Cast"
    write_checked(graph, tmp_path / "m.onnx")
    x = np.array([[1, 4, 9, 16]], np.float32)
    np.testing.assert_allclose(
        run_onnx(tmp_path / "m.onnx", {"x": x / 4})["y"], np.exp(x / 4) + np.sqrt(x / 4), rtol=2e-3
    )


def test_a_weight_read_by_both_sides_is_kept_in_both_types() -> None:
    nodes = [node("Mul", ["x", "w"], "a"), node("Add", ["a", "w"], "y")]
    graph = small(nodes, {"w": np.ones(4, np.float32)})
    to_fp16(graph, {"excluded": ["a"]}, fp16_io=False)
    types = {name: value.dtype for name, value in graph.graph.initializers.items()}
    assert types == {"w": ir.DataType.FLOAT, "w.fp16": ir.DataType.FLOAT16}


def test_an_output_that_others_read_keeps_its_name_and_type(tmp_path: Path) -> None:
    nodes = [node("Neg", ["x"], "first"), node("Neg", ["first"], "y")]
    graph = small(nodes, outputs=("first", "y"))
    to_fp16(graph, {}, fp16_io=False)
    write_checked(graph, tmp_path / "m.onnx")
    got = run_onnx(tmp_path / "m.onnx", {"x": np.ones((1, 4), np.float32)})
    assert {name: array.dtype for name, array in got.items()} == {
        "first": np.float32,
        "y": np.float32,
    }
    assert got["first"].tolist() == [[-1.0] * 4]


def test_users_exclusions_stay_fp32(exported: Callable[..., Exported]) -> None:
    graph = read_graph(exported("mqa").path)
    keep = keep_list(graph, nodes=[r"layers\.0\..*softmax"], op_types=["Tanh"])
    assert keep["excluded"] == ["layers.0.attention.softmax", "tanh"]
    assert to_fp16(graph, keep, fp16_io=False) == 2 + 2 + 2
    softmax = next(n for n in graph.graph if n.name == "layers.0.attention.softmax")
    assert softmax.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("nodes", "op_types", "words"),
    [
        (["no.such.node"], [], "nothing in the graph matches no.such.node"),
        ([], ["Conv"], "nothing in the graph matches Conv"),
        (["("], [], "is no regular expression"),
    ],
)
def test_an_exclusion_that_excludes_nothing_is_an_error(
    exported: Callable[..., Exported], nodes: list[str], op_types: list[str], words: str
) -> None:
    graph = read_graph(exported("mqa").path)
    with pytest.raises(UsageError, match=words):
        keep_list(graph, nodes=nodes, op_types=op_types)


def test_excluding_everything_is_an_error(exported: Callable[..., Exported]) -> None:
    graph = read_graph(exported("mqa").path)
    with pytest.raises(BuildFailed, match="nothing is left"):
        to_fp16(graph, keep_list(graph, nodes=[".*"]), fp16_io=False)


def test_a_norm_in_parts_stays_fp32_and_so_survives_large_rows(tmp_path: Path) -> None:
    """The square of 3000 is beyond FP16; its root mean square is not."""
    weights = {"two": np.array(2, np.float32), "eps": np.array(1e-6, np.float32)}
    nodes = [
        node("Pow", ["x", "two"], "norm_statistics"),
        node("ReduceMean", ["norm_statistics"], "norm_statistics_2", axes=[-1]),
        node("Add", ["norm_statistics_2", "eps"], "norm_statistics_3"),
        node("Sqrt", ["norm_statistics_3"], "norm_statistics_4"),
        node("Div", ["x", "norm_statistics_4"], "norm_statistics_5"),
        node("Neg", ["norm_statistics_5"], "y"),
    ]
    graph = small(nodes, weights)
    keep = keep_list(graph)
    assert len(keep["norm_statistics"]) == 5
    assert to_fp16(graph, keep, fp16_io=False) == 2
    write_checked(graph, tmp_path / "m.onnx")
    x = np.array([[3000, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(run_onnx(tmp_path / "m.onnx", {"x": x})["y"], [[-2, 0, 0, 0]])


def test_weights_beyond_the_range_pin_their_node_and_are_reported() -> None:
    nodes = [node("Mul", ["x", "w"], "a", name="huge"), node("Add", ["a", "b"], "y")]
    graph = small(
        nodes,
        {"w": np.array([1, 1, 1, 7e4], np.float32), "b": np.array([1, 1e-5, 1e-9, 0], np.float32)},
    )
    keep = keep_list(graph)
    assert keep == {"weight_range": ["huge"]}
    report = rounding_report(graph, keep)
    assert report == [
        "huge stays FP32: a weight is beyond FP16's range",
        "of 4 weights 1 become zero in FP16 and 1 subnormal (50.000%); most in b (50.000%)",
    ]


def test_harmless_weights_are_not_reported() -> None:
    graph = small([node("Mul", ["x", "w"], "y")], {"w": np.array([1, -2, 0, 65504], np.float32)})
    assert keep_list(graph) == {}
    assert rounding_report(graph, {}) == []


def test_a_pair_is_typed_with_what_stands_beside_it(tmp_path: Path) -> None:
    """Q as what it reads, DQ as what reads it; a weight's Q as its DQ."""
    weights: dict[str, np.ndarray] = {
        "scale": np.array(0.5, np.float32),
        "zero": np.array(0, np.int8),
        "w": np.eye(4, dtype=np.float32),
    }
    nodes = [
        node("Neg", ["x"], "a"),
        node("QuantizeLinear", ["a", "scale", "zero"], "q"),
        node("DequantizeLinear", ["q", "scale", "zero"], "dq"),
        node("QuantizeLinear", ["w", "scale", "zero"], "weight_q"),
        node("DequantizeLinear", ["weight_q", "scale", "zero"], "weight_dq"),
        node("MatMul", ["dq", "weight_dq"], "product"),
        node("Neg", ["product"], "y"),
    ]
    graph = small(nodes, weights)
    graph.opset_imports[""] = 19
    # x, the product's result and the output; no Cast parts DQ from the product.
    assert to_fp16(graph, {"excluded": ["product"]}, fp16_io=False) == 3
    types = {item.name: item.outputs[0].dtype for item in graph.graph}
    assert types["a"] == ir.DataType.FLOAT16
    assert types["dq"] == types["weight_dq"] == ir.DataType.FLOAT
    stored = {name: value.dtype for name, value in graph.graph.initializers.items()}
    assert stored["w"] == ir.DataType.FLOAT
    write_graph(graph, tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    x = np.array([[1, 2, 3, 4]], np.float32)
    assert run_onnx(tmp_path / "m.onnx", {"x": x})["y"].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("guard", "bound", "kept"),
    [
        ("Max", 1e-9, ["bounded", "y"]),
        ("Add", 1e-8, ["bounded", "y"]),
        ("Max", 1e-3, []),
        ("Add", 0.0, []),
    ],
)
def test_a_bound_that_fp16_does_not_have_stays_fp32_with_its_division(
    tmp_path: Path, guard: str, bound: float, kept: list[str]
) -> None:
    """x / max(|x|, 1e-9) is 0 / 0 in FP16 where x is 0."""
    nodes = [
        node("Abs", ["x"], "size"),
        node(guard, ["size", "bound"], "bounded"),
        node("Div", ["x", "bounded"], "y"),
    ]
    graph = small(nodes, {"bound": np.array([bound], np.float32)})
    assert keep_list(graph).get("guard", []) == kept
    if kept:
        to_fp16(graph, keep_list(graph), fp16_io=False)
        x = np.array([[0, 1, -2, 3]], np.float32)
        write_graph(graph, tmp_path / "g.onnx")
        assert run_onnx(tmp_path / "g.onnx", {"x": x})["y"].tolist() == [[0, 1, -1, 1]]
