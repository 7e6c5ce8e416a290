"""A part of a shape, read as the whole shape and a Gather: the same numbers on every runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from attn_export.exporter.shape_slices import pick_from_whole_shapes


def model_of(**bounds: Any) -> ir.Model:
    """x [b, s, 8] -> part of its shape, as output and through an addition."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["part"], **bounds),
            helper.make_node("Add", ["part", "part"], ["twice"]),
        ],
        "g",
        [value("x", TensorProto.FLOAT, ["b", "s", 8])],
        [value(name, TensorProto.INT64, [None]) for name in ("part", "twice")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"start": 1, "end": 2}, [5]),
        ({"end": 2}, [3, 5]),
        ({"start": 1}, [5, 8]),
        ({"start": -2}, [5, 8]),
        ({"start": 0, "end": -1}, [3, 5]),
        ({"start": 2, "end": 1}, []),
        ({"start": -7, "end": 9}, [3, 5, 8]),
    ],
)
def test_the_part_is_the_same(bounds: dict[str, int], expected: list[int]) -> None:
    model = model_of(**bounds)
    pick_from_whole_shapes(model.graph)
    shapes = [node for node in model.graph if node.op_type == "Shape"]
    assert [dict(node.attributes) for node in shapes] == [{}]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    part, twice = session.run(names, {"x": np.zeros((3, 5, 8), np.float32)})
    assert part.tolist() == expected
    assert twice.tolist() == [2 * size for size in expected]


def test_a_whole_shape_stays_as_it_is() -> None:
    model = model_of()
    pick_from_whole_shapes(model.graph)
    assert [node.op_type for node in model.graph] == ["Shape", "Add"]
