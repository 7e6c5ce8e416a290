"""One file or two, the bytes are protobuf's own, and every weight stands where it is said to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from attn_export.exporter.graph_file import in_places, read_graph, write_graph

WEIGHTS: dict[str, np.ndarray] = {
    "big": np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32),
    "half": np.random.default_rng(1).normal(size=(40, 40)).astype(np.float16),
    "small": np.arange(3, dtype=np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def model() -> ir.Model:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "big"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 300])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 40])],
        [onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def tensors(proto: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    return {
        item.name: onnx.numpy_helper.to_array(item, str(folder)) for item in proto.graph.initializer
    }


@pytest.mark.parametrize(
    ("limit", "files"), [(1 << 30, ["m.onnx"]), (0, ["m.onnx", "m.onnx.data"])]
)
def test_every_weight_is_read_back_and_stands_in_its_place(
    model: ir.Model, tmp_path: Path, limit: int, files: list[str]
) -> None:
    places = write_graph(model, tmp_path / "m.onnx", limit=limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    proto = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    for name, array in tensors(proto, tmp_path).items():
        np.testing.assert_array_equal(array, WEIGHTS[name])
    assert {"big", "half"} <= places.keys()
    for name, place in places.items():
        content = (tmp_path / place.file).read_bytes()
        assert content[place.offset : place.offset + place.length] == WEIGHTS[name].tobytes()


def test_protobuf_would_have_written_the_same_message(model: ir.Model, tmp_path: Path) -> None:
    write_graph(model, tmp_path / "m.onnx")
    ours = onnx.load(tmp_path / "m.onnx")
    theirs = ir.to_proto(model)
    for proto in (ours, theirs):
        items = sorted(proto.graph.initializer, key=lambda item: item.name)
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(items)
        del proto.graph.value_info[:]  # repeats the types of the weights
    assert ours == theirs


def test_a_copy_of_itself_can_be_written_from_a_file(model: ir.Model, tmp_path: Path) -> None:
    write_graph(model, tmp_path / "a.onnx", limit=0)
    write_graph(read_graph(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    (tmp_path / "a.onnx.data").unlink()
    read = tensors(onnx.load(tmp_path / "b.onnx"), tmp_path)
    np.testing.assert_array_equal(read["big"], WEIGHTS["big"])


def test_a_second_graph_reads_the_weights_of_the_first(model: ir.Model, tmp_path: Path) -> None:
    places = write_graph(model, tmp_path / "m.onnx")
    proto = in_places(model, places)
    (tmp_path / "other.onnx").write_bytes(proto.SerializeToString())
    assert (tmp_path / "other.onnx").stat().st_size < 1000
    read = tensors(onnx.load(tmp_path / "other.onnx", load_external_data=False), tmp_path)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(read[name], array)
