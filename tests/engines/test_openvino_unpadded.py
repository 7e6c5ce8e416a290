"""Batches without padding skip the mask, and give the same answers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from attn_export.bundle import Bundle
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.openvino_library import read_graph
from attn_export.engines.openvino_session import OpenVinoSession
from attn_export.engines.openvino_unpadded import is_unpadded, without_mask
from attn_export.spec import TensorSpec

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
MASK = TensorSpec(name="mask", dtype="float32", shape=("batch", "sequence"), role="mask")
VALUES = TensorSpec(name="x", dtype="float32", shape=("batch", "sequence", 4))


def floats(name: str, *shape: str | int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def scores_graph(folder: Path, *, bias_of_ones: float, name: str = "attention.mask_add") -> Path:
    """softmax(x x^T + (mask - 1) * 1e4 + bias_of_ones), [batch, sequence, sequence]."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "xt"], ["scores"], name="attention.scores"),
        helper.make_node("Sub", ["mask", "one"], ["less"]),
        helper.make_node("Mul", ["less", "large"], ["far"]),
        helper.make_node("Add", ["far", "always"], ["bias2"]),
        helper.make_node("Unsqueeze", ["bias2", "axis"], ["bias"]),
        helper.make_node("Add", ["scores", "bias"], [name], name=name),
        helper.make_node("Softmax", [name], ["out"], name="attention.softmax"),
    ]
    constants = {"one": 1.0, "large": 1e4, "always": bias_of_ones}
    weights = [helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in constants.items()]
    weights.append(helper.make_tensor("axis", TensorProto.INT64, [1], [1]))
    graph = helper.make_graph(
        nodes,
        "scores",
        [floats("mask", "batch", "sequence"), floats("x", "batch", "sequence", 4)],
        [floats("out", "batch", "sequence", "sequence")],
        weights,
    )
    path = folder / "scores.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def additions(model: Any) -> int:
    return sum(node.get_type_name() == "Add" for node in model.get_ordered_ops())


def test_the_addition_of_a_mask_is_left_out_and_the_graph_stays(tmp_path: Path) -> None:
    model = read_graph(scores_graph(tmp_path, bias_of_ones=0.0))
    found = without_mask(model, [MASK, VALUES])
    assert found is not None
    names = [node.get_friendly_name() for node in found.get_ordered_ops()]
    assert "attention.scores" in names
    assert additions(found) == 0
    assert additions(model) > 0, "the graph for padded batches is another one"


@pytest.mark.parametrize("bias", [-1e4, 0.5])
def test_a_bias_that_is_not_zero_without_padding_stays(tmp_path: Path, bias: float) -> None:
    model = read_graph(scores_graph(tmp_path, bias_of_ones=bias))
    assert without_mask(model, [MASK, VALUES]) is None


def test_an_addition_with_another_role_stays(tmp_path: Path) -> None:
    model = read_graph(scores_graph(tmp_path, bias_of_ones=0.0, name="layers.0.residual"))
    assert without_mask(model, [MASK, VALUES]) is None


@pytest.mark.parametrize(("mask", "unpadded"), [([1, 1], True), ([1, 0], False), ([0, 0], False)])
def test_a_batch_is_unpadded_where_every_token_is_real(mask: list[int], unpadded: bool) -> None:
    feeds = {"mask": np.array([[1, 1], mask], np.int32)}
    assert is_unpadded(feeds, ["mask"]) is unpadded


def test_a_session_that_skips_masks_answers_as_one_that_does_not(
    bundle: Bundle, twin: Callable[[Any, Any], dict[str, Any]]
) -> None:
    session = OpenVinoSession(
        bundle.directory / "model.onnx",
        inputs=bundle.manifest.inputs,
        outputs=bundle.manifest.outputs,
        buckets=bundle.manifest.buckets["edges"],
        threads=2,
        computes="f32",
        skip_masks=True,
    )
    whole = seeded_feeds(bundle.manifest.inputs, 3, 7)
    padded = {name: array.copy() for name, array in whole.items()}
    padded["attention_mask"][1, 3:] = 0
    for outputs, feeds in zip(
        [*session.run_all([whole, padded, whole]), session.run(padded), session.run(whole)],
        [whole, padded, whole, padded, whole],
        strict=True,
    ):
        expected = twin(feeds["input_ids"], feeds["attention_mask"])
        for name, array in outputs.items():
            np.testing.assert_allclose(array, expected[name], atol=1e-5, rtol=1e-5)
    assert session.unpadded_tokens is not None
    session.close()
