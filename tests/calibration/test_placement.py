"""Where INT8 goes: by default, with every option, and where it must not go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from attn_export.calibration.placement import Placement, PlacementOptions, place
from attn_export.errors import BuildFailed, UsageError
from attn_export.exporter.attention import Lowering
from attn_export.roles import role_of
from tests.calibration.tiny_graphs import Array, export_encoder, node, save_graph

Encoder = Callable[..., ir.Model]
SQUARE: Array = np.ones((2, 2), np.float32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Read a tiny encoder; it is exported once."""
    made: dict[tuple[str, str], Path] = {}

    def read(model: str = "mha", lowering: Lowering = "fold") -> ir.Model:
        if (model, lowering) not in made:
            folder = tmp_path_factory.mktemp("encoder")
            made[model, lowering] = export_encoder(folder, model, lowering)
        return ir.load(made[model, lowering])

    return read


def options(**given: object) -> PlacementOptions:
    return PlacementOptions(**given)  # type: ignore[arg-type]


def in_layer(placement: Placement, layer: int) -> set[tuple[str, int]]:
    """The edges inside one layer, without its name."""
    prefix = f"layers.{layer}."
    return {(n.removeprefix(prefix), i) for n, i in placement.edges if n.startswith(prefix)}


GEMMS = {
    (f"attention.{part}.gemm", index) for part in ("query", "key", "value") for index in (0, 1)
} | {("attention.output.gemm", 0), ("attention.output.gemm", 1)}


def test_by_default_the_products_with_weights_and_one_tensor_for_all_who_read_it(
    encoder: Encoder,
) -> None:
    placement = place(encoder("gqa"), options())
    assert in_layer(placement, 0) == GEMMS
    # Query, key and value read the same tensor. In the last layer only key and value see more
    # than one row of a sequence.
    assert placement.activations == (
        "embedding_2",
        "layers.0.attention.reshape_6",
        "layers.0.norm.norm",
    )
    assert in_layer(placement, 1) == {
        (f"attention.{part}.gemm", index) for part in ("key", "value") for index in (0, 1)
    }
    assert placement.weights == (
        *((f"layers.0.attention.{n}.weight", 1) for n in ("query", "key", "value", "output")),
        *((f"layers.1.attention.{n}.weight", 1) for n in ("key", "value")),
    )
    assert {name.partition(".")[0] for name, _ in placement.edges} == {"layers"}  # no embedding


def test_where_all_products_see_one_row_all_are_placed(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x,w", "a"), node("Tanh", "a", "b"), node("MatMul", "b,w", "y")]
    path = save_graph(tmp_path / "m.onnx", nodes, {"w": SQUARE}, shape=("batch", 2))
    placement = place(ir.load(path), options())
    assert placement.edges == (("a", 0), ("a", 1), ("y", 0), ("y", 1))
    assert placement.weights == (("w", 1),)


@pytest.mark.parametrize(
    ("op", "attributes", "axis"),
    [("MatMul", {}, 1), ("Gemm", {}, 1), ("Gemm", {"transB": 1}, 0)],
    ids=["matmul", "gemm", "gemm-transposed"],
)
def test_a_weights_axis_is_that_of_its_output_channels(
    tmp_path: Path, op: str, attributes: dict[str, int], axis: int
) -> None:
    nodes = [node(op, "x,w", "y", **attributes)]
    path = save_graph(tmp_path / "m.onnx", nodes, {"w": SQUARE}, shape=("batch", 2))
    assert place(ir.load(path), options()).weights == (("w", axis),)


def test_a_tied_weight_is_quantized_for_the_product_and_not_for_the_lookup(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x,w", "a"),
        node("Gather", "w,i", "row"),
        node("Add", "a,row", "b"),
        node("Gemm", "b,w", "y", transB=1),
    ]
    weights = {"w": SQUARE, "i": np.array(0)}
    path = save_graph(tmp_path / "m.onnx", nodes, weights, shape=("batch", 2))
    placement = place(ir.load(path), options())
    assert placement.weights == (("w", 1), ("w", 0))
    assert ("row", 0) not in placement.edges


@pytest.mark.parametrize(
    "nodes",
    [
        [node("MatMul", "w,x", "y")],
        [node("MatMul", "x,x", "y")],
        [node("MatMul", "x,stack", "y")],
    ],
    ids=["weight-first", "no-weight", "rank-3"],
)
def test_other_products_are_not_placed(tmp_path: Path, nodes: list[object]) -> None:
    weights = {"w": SQUARE, "stack": np.ones((1, 2, 2), np.float32)}
    path = save_graph(tmp_path / "m.onnx", nodes, weights, shape=("batch", 2, 2))  # type: ignore[arg-type]
    with pytest.raises(BuildFailed, match="nothing is left to quantize"):
        place(ir.load(path), options())


# Options


def test_residuals_adds_the_results_and_both_operands_of_residual_adds(encoder: Encoder) -> None:
    placement = place(encoder("mha"), options(residuals=True))
    assert in_layer(placement, 0) == GEMMS | {
        ("attention.reshape", 0),  # the query, its bias added
        ("attention.reshape_2", 0),
        ("attention.reshape_3", 0),
        ("residual", 0),
        ("residual", 1),
    }
    # The tensor that the residual reads is the one that the products read.
    assert placement.activations.count("embedding_2") == 1


def test_attention_adds_what_the_fused_kernel_asks_for_and_nothing_twice(encoder: Encoder) -> None:
    placement = place(encoder("mha"), options(attention=True, max_length=512))
    assert in_layer(placement, 0) == (GEMMS - {("attention.output.gemm", 0)}) | {
        ("attention.scores", 0),
        ("attention.scores", 1),
        ("attention.context", 0),  # the softmax's result
        ("attention.context", 1),
        ("attention.transpose_4", 0),  # after the second product; the output product reads it so
    }
    assert "layers.0.attention.softmax" in placement.activations
    assert "layers.0.attention.context" in placement.activations


def test_with_both_a_moved_result_is_not_rounded_again(encoder: Encoder) -> None:
    placement = place(encoder("mha"), options(attention=True, residuals=True, max_length=16))
    edges = in_layer(placement, 0)
    assert ("attention.reshape", 0) in edges
    assert ("attention.scores", 0) not in edges
    assert ("attention.context", 1) not in edges
    assert ("attention.context", 0) in edges


def test_an_excluded_node_reads_nothing_quantized_and_its_result_stays(encoder: Encoder) -> None:
    excluded = (r"layers\.0\.attention\.query\.gemm", "layers.0.residual")
    placement = place(encoder("mha"), options(residuals=True, exclude=excluded))
    assert in_layer(placement, 0) == {
        edge for edge in GEMMS if edge[0] != "attention.query.gemm"
    } | {("attention.reshape_2", 0), ("attention.reshape_3", 0)}
    assert "layers.0.attention.query.weight" not in dict(placement.weights)


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("attention", [False, True])
def test_bias_mask_softmax_and_norm_never_read_int8(
    encoder: Encoder, model: str, attention: bool
) -> None:
    graph = encoder(model, "expand")
    placement = place(graph, options(residuals=True, attention=attention, max_length=16))
    nodes = {item.name: item for item in graph.graph}
    readers = [nodes[name] for name, _ in placement.edges]
    never = {"bias_add", "mask", "mask_add", "softmax", "norm", "embedding"}
    assert {role_of(item.name or "") for item in readers} & never == set()
    assert all(index < 2 for _, index in placement.edges)  # 2 is a Gemm's bias


def test_a_result_that_a_norm_or_softmax_reads_stays_as_it_is(tmp_path: Path) -> None:
    """By operator too: their names need not tell their role."""
    nodes = [
        node("MatMul", "x,w", "a"),
        node("Neg", "a", "b"),
        node("Softmax", "a", "c"),
        node("LayerNormalization", "a,g", "d"),
        node("Sum", "b,c,d", "y"),
    ]
    weights = {"w": SQUARE, "g": np.ones(2, np.float32)}
    path = save_graph(tmp_path / "m.onnx", nodes, weights)
    placement = place(ir.load(path), options(residuals=True))
    assert placement.edges == (("a", 0), ("a", 1), ("b", 0))


# Refusals


@pytest.mark.parametrize(
    ("given", "lowering", "words"),
    [
        ({"max_length": 513}, "expand", "up to 513 entries; TensorRT fuses INT8 attention up to"),
        ({"max_length": 129}, "fold", "up to 516 entries .*--lowering expand"),
        ({}, "expand", "how long its axis 'sequence' becomes is not known"),
    ],
    ids=["too-long", "folded", "unknown"],
)
def test_an_attention_beyond_the_limits_is_refused_with_the_reason(
    encoder: Encoder, given: dict[str, int], lowering: Lowering, words: str
) -> None:
    with pytest.raises(UsageError, match=f"layers.0.attention.scores: .*{words}"):
        place(encoder("mqa", lowering), options(attention=True, **given))


def test_a_head_size_without_a_kernel_is_refused(tmp_path: Path) -> None:
    path = export_encoder(tmp_path, "mha", "fold", num_heads=8, num_layers=1)
    with pytest.raises(UsageError, match=r"the head size is 8; TensorRT fuses .* 16, 32, 64"):
        place(ir.load(path), options(attention=True, max_length=16))


def test_a_graph_without_attention_has_none_to_quantize(tmp_path: Path) -> None:
    path = save_graph(tmp_path / "m.onnx", [node("MatMul", "x,w", "y")], {"w": SQUARE})
    with pytest.raises(UsageError, match="no attention was found"):
        place(ir.load(path), options(attention=True))


@pytest.mark.parametrize(
    ("exclude", "error", "words"),
    [
        (["no.such.node"], UsageError, "nothing in the graph matches no.such.node"),
        (["("], UsageError, "is no regular expression"),
        ([".*"], BuildFailed, "nothing is left to quantize"),
    ],
)
def test_a_useless_exclusion_is_an_error(
    encoder: Encoder, exclude: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        place(encoder(), options(exclude=tuple(exclude)))


def test_a_quantized_graph_is_refused_and_the_node_named(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", "x,s,z", "q"),
        node("DequantizeLinear", "q,s,z", "d"),
        node("MatMul", "d,w", "y"),
    ]
    weights = {"w": SQUARE, "s": np.array(1, np.float32), "z": np.array(0, np.int8)}
    path = save_graph(tmp_path / "m.onnx", nodes, weights)
    with pytest.raises(BuildFailed, match="quantized already: node 'q' is QuantizeLinear"):
        place(ir.load(path), options())
