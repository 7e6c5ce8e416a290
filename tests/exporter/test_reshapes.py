"""Reshape targets as constants: hand-worked, and the same numbers as before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest
from onnx import TensorProto, helper

from attn_export.exporter.reshapes import simplify_reshapes, target_shape


@pytest.mark.parametrize(
    ("source", "result", "target"),
    [
        (["b", "s", 768], ["b", "s", 12, 64], [0, 0, 12, 64]),
        (["b", "s", 768], ["b", 1, "12*s", 64], [0, 1, -1, 64]),
        (["b", 12, "s", 64], ["b", "s", 768], [0, -1, 768]),
        (["b", "s"], ["b*s"], [-1]),
        (["b", "s"], ["s", "b"], None),  # two unknowns
        (["b", 0], ["b", 0], None),
        (None, ["b"], None),
        (["b"], None, None),
    ],
)
def test_targets_by_hand(
    source: Sequence[Any] | None, result: Sequence[Any] | None, target: list[int] | None
) -> None:
    assert target_shape(source, result) == target


def attention_like(order: list[int], middle: list[Any]) -> ir.Model:
    """[b, s, 8] -> Reshape by computed shape -> Transpose -> Reshape back."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], end=2),
        helper.make_node("Concat", ["shape", "heads"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["split"]),
        helper.make_node("Transpose", ["split"], ["moved"], perm=order),
        helper.make_node("Concat", ["shape", "joined"], ["back"], axis=0),
        helper.make_node("Reshape", ["moved", "back"], ["y"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(middle[2:], np.int64), "heads"),
        onnx.numpy_helper.from_array(np.array([8], np.int64), "joined"),
    ]
    moved = [middle[axis] for axis in order]
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("split", middle), ("moved", moved))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "s", 8])],
        constants,
        value_info=info,
    )
    opsets = [helper.make_opsetid("", 17)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.mark.parametrize(
    ("order", "middle", "left"),
    [
        ([0, 2, 1, 3], ["b", "s", 2, 4], ["Reshape", "Transpose", "Reshape"]),
        ([0, 2, 1, 3], ["b", "s", 1, 8], ["Reshape"]),  # only an axis of size 1 moves
    ],
)
def test_shape_arithmetic_goes_away_and_the_numbers_stay(
    order: list[int], middle: list[Any], left: list[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)

    def run(model: ir.Model) -> Any:
        results: list[Any] = list(
            onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
        )
        return results[0]

    model = attention_like(order, middle)
    expected = run(model)
    simplify_reshapes(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    assert [node.op_type for node in model.graph] == left
    np.testing.assert_array_equal(run(model), expected)
