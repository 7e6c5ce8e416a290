"""A graph's structure, read without its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from attn_export.bundle import sha256
from attn_export.calibration.graph_structure import graph_digest, read_structure
from attn_export.errors import BundleError


def product(size: int = 512) -> onnx.ModelProto:
    """``y = x @ weight + bias``, a large and a small weight."""
    weight = np.arange(size * size, dtype=np.float32).reshape(size, size)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "weight"], ["product"], name="product"),
            onnx.helper.make_node("Add", ["product", "bias"], ["y"], name="y"),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", size])],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.ones(1, np.float32), "bias"),
        ],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(product(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_large_weights_stay_in_the_file_and_small_ones_come_along(path: Path) -> None:
    structure = read_structure(path)
    assert path.stat().st_size > 1 << 20
    assert len(structure.SerializeToString()) < 1000
    external = {t.name: bool(t.external_data) for t in structure.graph.initializer}
    assert external == {"weight": True, "bias": False}


def test_with_its_weights_read_from_their_places_it_is_the_graph(path: Path) -> None:
    structure = read_structure(path)
    onnx.load_external_data_for_model(structure, str(path.parent))
    whole = onnx.load(path)
    read = {t.name: onnx.numpy_helper.to_array(t) for t in structure.graph.initializer}
    for tensor in whole.graph.initializer:
        np.testing.assert_array_equal(read[tensor.name], onnx.numpy_helper.to_array(tensor))
    for proto in (structure, whole):
        del proto.graph.initializer[:]
    assert structure == whole


def test_large_weights_that_are_no_raw_bytes_are_kept(tmp_path: Path) -> None:
    proto = product(16)
    listed = onnx.helper.make_tensor("weight", onnx.TensorProto.FLOAT, [16, 16], [0.5] * 256)
    proto.graph.initializer[0].CopyFrom(listed)
    onnx.save(proto, tmp_path / "listed.onnx")
    assert listed in read_structure(tmp_path / "listed.onnx").graph.initializer


def test_external_data_stays_where_it_is(tmp_path: Path) -> None:
    onnx.save(product(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    structure = read_structure(tmp_path / "m.onnx")
    onnx.load_external_data_for_model(structure, str(tmp_path))
    weight = next(t for t in structure.graph.initializer if t.name == "weight")
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(weight).ravel(), np.arange(512 * 512, dtype=np.float32)
    )


def test_the_digest_of_one_file_is_that_files(path: Path) -> None:
    assert graph_digest(path) == sha256(path)


def test_the_digest_follows_weights_outside_the_file(tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "m.data"
    onnx.save(product(), model, save_as_external_data=True, location=data.name)
    structure, before = sha256(model), graph_digest(model)
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\0")
    assert sha256(model) == structure
    assert graph_digest(model) != before
    data.unlink()
    with pytest.raises(BundleError, match=r"m\.data is missing"):
        graph_digest(model)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x3a\x05ab", b"\x0e\x01", b"\x08\x08"])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as an ONNX graph"):
        read_structure(tmp_path / "broken.onnx")


@pytest.mark.parametrize("kept", [10, 1000, 500_000, -1])
def test_a_graph_that_is_cut_off_is_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BundleError, match="cannot be read as an ONNX graph"):
        read_structure(path)


def test_a_graph_whose_last_weight_is_cut_off_is_refused(path: Path) -> None:
    """Serialised messages that follow each other are one message: the weight comes last here."""
    rest = product()
    weights = onnx.ModelProto()
    weights.graph.initializer.add().CopyFrom(rest.graph.initializer[0])
    del rest.graph.initializer[0]
    content = rest.SerializeToString() + weights.SerializeToString()
    path.write_bytes(content)
    assert [t.name for t in read_structure(path).graph.initializer] == ["bias", "weight"]
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match="cut off"):
        read_structure(path)


def test_a_missing_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.onnx"):
        read_structure(tmp_path / "none.onnx")
