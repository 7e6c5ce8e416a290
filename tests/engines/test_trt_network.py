"""ONNX graphs as TensorRT networks of every version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from attn_export.engines.trt_api import is_strongly_typed, make_log
from attn_export.engines.trt_network import (
    NEVER_PINNED,
    check_inputs,
    make_io_fp16,
    make_network,
    node_names,
    parse_graph,
    pin_fp32,
)
from attn_export.errors import BuildFailed

VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
MakeDouble = Callable[[str], Any]
INPUTS = ["input_ids", "attention_mask"]


class Opened:
    """A graph in a network, with what must live as long."""

    def __init__(self, trt: Any, path: Path) -> None:
        self.trt = trt
        self.log = make_log(trt)
        self.builder = trt.Builder(self.log)
        self.network, self.typing = make_network(trt, self.builder)
        self.parser = parse_graph(trt, self.network, self.log, path)

    def layer(self, name: str) -> Any:
        network = self.network
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        # 8.6 gives a LayerNormalization no name.
        return next(each for each in layers if name in (each.name, each.get_output(0).name))


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, tensorrt_double: MakeDouble) -> Any:
    return tensorrt_double(request.param)


@pytest.fixture
def weak(tensorrt_double: MakeDouble) -> Any:
    """The one TensorRT that flags and layers give a precision."""
    return tensorrt_double("8.6.1")


@pytest.fixture
def path(tmp_path: Path, model_bytes: bytes) -> Path:
    """The tiny encoder, each node named as its output."""
    model = onnx.load_model_from_string(model_bytes)
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_the_network_is_typed_by_the_graph_where_it_can_be(trt: Any, path: Path) -> None:
    opened = Opened(trt, path)
    assert opened.typing == ("STRONGLY_TYPED" if is_strongly_typed(trt) else "EXPLICIT_BATCH")
    assert opened.network.num_inputs == 2
    if is_strongly_typed(trt):
        assert opened.network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_the_nodes_behind_the_layers_are_listed_in_order(trt: Any, path: Path) -> None:
    nodes = [node.name for node in onnx.load(path).graph.node]
    assert node_names(Opened(trt, path).network) == tuple(nodes)


def test_external_data_is_found_beside_the_graph(trt: Any, path: Path) -> None:
    model = onnx.load(path)
    where = path.parent / "large" / "model.onnx"
    where.parent.mkdir()
    onnx.save(model, where, save_as_external_data=True, location="model.data", size_threshold=0)
    assert Opened(trt, where).network.num_outputs == 2


def test_a_node_that_tensorrt_does_not_take_is_named_as_far_as_known(trt: Any, path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[6].op_type = "Unsupported"
    onnx.save(model, path)
    with pytest.raises(BuildFailed) as caught:
        Opened(trt, path)
    text = str(caught.value)
    place = "node 'products' (Unsupported): " if is_strongly_typed(trt) else "node 6: "
    assert f"\n  {place}No importer registered for op: Unsupported." in text
    assert "cannot read model.onnx" in text
    assert "change these operations in the model" in text


def test_a_file_that_is_no_graph_gives_tensorrts_reason(trt: Any, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="Failed to parse ONNX model from file"):
        Opened(trt, tmp_path / "missing.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(BuildFailed, match=r"found nothing in empty\.onnx; copy the bundle again"):
        Opened(trt, tmp_path / "empty.onnx")


def test_other_inputs_than_the_bundles_are_refused(trt: Any, path: Path) -> None:
    network = Opened(trt, path).network
    check_inputs(network, reversed(INPUTS))
    with pytest.raises(
        BuildFailed, match="takes attention_mask, input_ids and the bundle says input_ids, mask;"
    ):
        check_inputs(network, ["input_ids", "mask"])


def test_layers_of_kept_nodes_compute_and_return_fp32(weak: Any, path: Path) -> None:
    opened = Opened(weak, path)
    pinned, unmet = pin_fp32(weak, opened.network, {"norm": ["hidden"], "mask": ["row_bias"]})
    assert (pinned, unmet) == (2, {})
    for name in ("hidden", "row_bias"):
        layer = opened.layer(name)
        assert layer.precision_is_set
        assert layer.precision == weak.DataType.FLOAT
        assert layer.output_type_is_set(0)
        assert layer.get_output_type(0) == weak.DataType.FLOAT
        assert not layer.output_type_is_set(1)  # it has one output
    assert not opened.layer("scores").precision_is_set


def test_casts_and_integers_are_never_given_a_precision(weak: Any, tmp_path: Path) -> None:
    """Shape -> Gather is integers, Greater a truth, a Cast its own type; only the sum is floats."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], name="sizes"),
        helper.make_node("Gather", ["sizes", "first"], ["size"], name="size"),
        helper.make_node("Cast", ["size"], ["scale"], name="scale", to=TensorProto.FLOAT),
        helper.make_node("Greater", ["x", "scale"], ["above"], name="above"),
        helper.make_node("Add", ["x", "scale"], ["y"], name="y"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "sizes",
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [
            value("y", TensorProto.FLOAT, ["batch", 2]),
            value("above", TensorProto.BOOL, ["batch", 2]),
        ],
        [helper.make_tensor("first", TensorProto.INT64, [], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    opened = Opened(weak, tmp_path / "model.onnx")
    names = ["sizes", "size", "scale", "above", "y"]
    assert pin_fp32(weak, opened.network, {"all": names}) == (1, {})
    assert [opened.layer(name).precision_is_set for name in names] == [False] * 4 + [True]


def test_layers_that_are_never_given_a_precision_have_tensorrts_names(weak: Any) -> None:
    assert set(NEVER_PINNED) <= set(weak.LayerType.__members__)


def test_weights_and_what_int8_is_made_of_are_never_given_a_precision(
    weak: Any, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["quantized"], name="quantized"),
        helper.make_node("DequantizeLinear", ["quantized", "scale"], ["again"], name="again"),
        helper.make_node("Mul", ["again", "scale"], ["y"], name="y"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "quantized",
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [value("y", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    opened = Opened(weak, tmp_path / "model.onnx")
    names = ["scale", "quantized", "again", "y"]
    assert pin_fp32(weak, opened.network, {"all": names}) == (1, {})
    assert opened.layer("y").precision_is_set


def test_without_metadata_a_numbered_layer_is_its_nodes(weak: Any, path: Path) -> None:
    opened = Opened(weak, path)
    numbered, other = opened.layer("scores"), opened.layer("products")
    for layer, renamed in ((numbered, "pooled_12"), (other, "pooled_of")):
        layer.name, layer.metadata = renamed, ""
    assert pin_fp32(weak, opened.network, {"pool": ["pooled"]}) == (2, {})
    assert numbered.precision_is_set
    assert not other.precision_is_set


def test_nodes_that_no_layer_came_from_are_told_by_role(weak: Any, path: Path) -> None:
    keep = {"norm": ["hidden", "gone"], "mask": ["row_bias"], "head": ["folded"]}
    assert pin_fp32(weak, Opened(weak, path).network, keep) == (
        2,
        {"norm": ["gone"], "head": ["folded"]},
    )


def test_inputs_and_outputs_need_not_be_as_many(weak: Any, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("IsNaN", ["x"], ["y"], name="y")],
        "nan",
        [value("unused", TensorProto.INT32, [2]), value("x", TensorProto.FLOAT, ["batch"])],
        [value("y", TensorProto.BOOL, ["batch"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    network = Opened(weak, tmp_path / "model.onnx").network
    check_inputs(network, ["x", "unused"])
    make_io_fp16(weak, network)
    assert [network.get_input(index).dtype.name for index in range(2)] == ["INT32", "HALF"]
    assert network.get_output(0).dtype.name == "BOOL"


def test_a_kept_layer_computes_fp32_though_its_output_is_bound_as_fp16(
    weak: Any, path: Path
) -> None:
    opened = Opened(weak, path)
    make_io_fp16(weak, opened.network)
    assert pin_fp32(weak, opened.network, {"head": ["logits"]}) == (1, {})
    assert opened.layer("logits").precision == weak.DataType.FLOAT


def test_float_inputs_and_outputs_become_fp16_and_integers_stay(weak: Any, path: Path) -> None:
    network = Opened(weak, path).network
    make_io_fp16(weak, network)
    assert {network.get_input(index).dtype.name for index in range(2)} == {"INT32"}
    assert {network.get_output(index).dtype.name for index in range(2)} == {"HALF"}
