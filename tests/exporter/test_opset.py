"""Opset 18 to 17: what changed is rewritten, what cannot be is refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from attn_export.errors import BuildFailed
from attn_export.exporter.opset import to_opset_17

FLOAT = TensorProto.FLOAT
X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 10


def model_of(
    *nodes: onnx.NodeProto,
    constants: dict[str, list[int]] | None = None,
    outputs: int = 1,
    rank: int = 2,
) -> ir.Model:
    initializers = [
        onnx.numpy_helper.from_array(np.array(numbers, np.int64), name)
        for name, numbers in (constants or {}).items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [2, 3, 4])],
        [
            helper.make_tensor_value_info(f"y{i}", FLOAT, [f"d{i}{axis}" for axis in range(rank)])
            for i in range(outputs)
        ],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def run(model: ir.Model) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    return onnx.reference.ReferenceEvaluator(proto).run(None, {"x": X})  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("op", "expected"),
    [("ReduceMean", X.mean(1)), ("ReduceMax", X.max(1)), ("ReduceL2", np.sqrt((X * X).sum(1)))],
)
def test_axes_become_an_attribute(op: str, expected: np.ndarray) -> None:
    node = helper.make_node(op, ["x", "axes"], ["y0"], keepdims=0)
    model = model_of(node, constants={"axes": [1]})
    to_opset_17(model)
    assert model.opset_imports[""] == 17
    assert len(model.graph[0].inputs) == 1
    np.testing.assert_allclose(run(model)[0], expected, rtol=1e-6)


def test_reduce_sum_keeps_its_input_because_it_had_it_before() -> None:
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y0"], keepdims=0)
    model = model_of(node, constants={"axes": [2]})
    to_opset_17(model)
    np.testing.assert_allclose(run(model)[0], X.sum(2), rtol=1e-6)


@pytest.mark.parametrize(("parts", "axis", "sizes"), [(2, 2, [2, 2]), (2, 1, [2, 1])])
def test_a_split_into_parts_becomes_one_by_sizes(parts: int, axis: int, sizes: list[int]) -> None:
    names = [f"y{i}" for i in range(parts)]
    node = helper.make_node("Split", ["x"], names, axis=axis, num_outputs=parts)
    model = model_of(node, outputs=parts, rank=3)
    to_opset_17(model)
    assert [piece.shape[axis] for piece in run(model)] == sizes


@pytest.mark.parametrize(
    ("node", "constants", "words"),
    [
        (helper.make_node("Mish", ["x"], ["y0"], name="m"), {}, "'m'.*Mish.* has no form"),
        (
            helper.make_node("Pad", ["x", "pads", "", "axes"], ["y0"], name="p"),
            {"pads": [1, 1], "axes": [2]},
            "'p'.* pads chosen axes",
        ),
        (
            helper.make_node("Gelu", ["x"], ["y0"], name="g", domain="com.microsoft"),
            {},
            "outside the standard operators",
        ),
    ],
)
def test_what_has_no_form_is_refused(
    node: onnx.NodeProto, constants: dict[str, list[int]], words: str
) -> None:
    with pytest.raises(BuildFailed, match=words):
        to_opset_17(model_of(node, constants=constants))


def test_axes_computed_at_run_time_are_refused() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ReduceMax", ["x", "s"], ["y0"], name="r"),
    ]
    with pytest.raises(BuildFailed, match=r"'r'.* computed at run time"):
        to_opset_17(model_of(*nodes))


def test_another_opset_is_refused() -> None:
    model = model_of(helper.make_node("Neg", ["x"], ["y0"]))
    model.opset_imports[""] = 20
    with pytest.raises(BuildFailed, match="opset 20"):
        to_opset_17(model)
