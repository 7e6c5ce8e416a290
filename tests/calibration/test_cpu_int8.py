"""The CPU's INT8 graph: its numbers by hand and against NumPy, its form, its accuracy."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from attn_export.calibration.cpu_int8 import Kind, Refine, write_cpu_int8
from attn_export.calibration.graph_structure import graph_digest
from attn_export.calibration.placement import PlacementOptions, place
from attn_export.calibration.qdq import write_qdq
from attn_export.calibration.ranges import Ranges, TensorRange
from attn_export.errors import BuildFailed, BundleError, UsageError
from attn_export.exporter.attention import Lowering
from attn_export.roles import CONTEXT, SCORES, role_of
from tests.calibration.tiny_graphs import (
    Array,
    encoder_feeds,
    encoder_ranges,
    export_encoder,
    node,
    run_graph,
    save_graph,
    sqnr,
)

KINDS: tuple[Kind, ...] = ("dynamic", "static")
REFINEMENTS: tuple[Refine, ...] = ("none", "weights", "both")
SHAPE = ("batch", "sequence", 2)
# Steps of 0.01 and 0.02; what they leave of the second column is 0 and 0.004.
WEIGHT = np.array([[1.27, -2.54], [-0.5, 0.024]], np.float32)
BIAS = np.array([10, 20], np.float32)
# From -1 to 1.55: steps of 0.01 from the zero point 100.
RANGE = TensorRange(-1.0, 1.55)
X = np.array([[[-1.0, 1.55], [0.123, -0.5]]], np.float32)
X_ROUNDED = np.array([[[-1.0, 1.55], [0.12, -0.5]]], np.float32)
WEIGHT_ROUNDED = np.array([[1.27, -2.54], [-0.5, 0.02]], np.float32)


def product(folder: Path, **weights: Array) -> Path:
    """``y = x @ w + b``."""
    nodes = [node("MatMul", "x,w", "a"), node("Add", "a,b", "y")]
    return save_graph(folder / "model.onnx", nodes, {"w": WEIGHT, "b": BIAS, **weights})


def ranges_of_x(graph: Path, found: TensorRange = RANGE) -> Ranges:
    return Ranges(
        graph_sha256=graph_digest(graph), method="minmax", samples=1, tokens=1, tensors={"x": found}
    )


def write(graph: Path, kind: Kind, found: TensorRange = RANGE, **options: Any) -> Path:
    out = graph.parent / f"{kind}.onnx"
    given = ranges_of_x(graph, found) if kind == "static" else None
    write_cpu_int8(graph, out, kind=kind, ranges=given, **options)
    return out


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("refine", "x", "weight"),
    [
        pytest.param("none", X_ROUNDED, WEIGHT_ROUNDED, id="none"),
        pytest.param("weights", X_ROUNDED, WEIGHT, id="weights"),
    ],
)
def test_a_product_has_the_numbers_worked_out_by_hand(
    tmp_path: Path, kind: Kind, refine: Refine, x: Array, weight: Array
) -> None:
    written = write(product(tmp_path), kind, refine=refine)
    np.testing.assert_allclose(run_graph(written, {"x": X}), x @ weight + BIAS, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_refining_both_leaves_only_the_product_of_the_remainders(
    tmp_path: Path, kind: Kind
) -> None:
    got = run_graph(write(product(tmp_path), kind, refine="both"), {"x": X})
    without = (X - X_ROUNDED) @ (WEIGHT - WEIGHT_ROUNDED)
    # Half a step of the activation's remainder, 0.01 / 255 / 2, meets weights of up to 2.54.
    np.testing.assert_allclose(got, X @ WEIGHT - without + BIAS, atol=6e-5)
    assert np.abs(got - X @ WEIGHT - BIAS).max() < 1e-4 < np.abs((X - X_ROUNDED) @ WEIGHT).max()


def dynamic_in_numpy(x: Array, weight: Array, bias: Array) -> Array:
    """DynamicQuantizeLinear-11 and MatMulInteger-10 as ONNX defines them, in whole numbers."""
    low, high = min(np.float32(0), x.min()), max(np.float32(0), x.max())
    step = np.float32((high - low) / np.float32(255))
    zero = int(np.clip(np.rint(-low / step), 0, 255))
    x_int = np.clip(np.rint(x / step) + zero, 0, 255).astype(np.int64) - zero
    steps = (np.abs(weight).max(axis=0) / np.float32(127)).astype(np.float32)
    total = x_int @ np.rint(weight / steps).astype(np.int64)
    result: Array = total.astype(np.float32) * (step * steps) + bias
    return result


@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["both-signs", "positive"])
def test_dynamic_equals_a_numpy_model_of_the_standard(tmp_path: Path, shift: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 7, 40)).astype(np.float32) + np.float32(shift)
    weight = rng.standard_normal((40, 24)).astype(np.float32)
    bias = rng.standard_normal(24).astype(np.float32)
    nodes = [node("MatMul", "x,w", "a"), node("Add", "a,b", "y")]
    graph = save_graph(
        tmp_path / "model.onnx", nodes, {"w": weight, "b": bias}, shape=("batch", "sequence", 40)
    )
    got = run_graph(write(graph, "dynamic"), {"x": x})
    np.testing.assert_allclose(got, dynamic_in_numpy(x, weight, bias), rtol=1e-5, atol=1e-4)
    assert 30 < sqnr(x @ weight + bias, got) < 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_keeps_its_bias_and_its_orientation(
    tmp_path: Path, kind: Kind, transposed: int
) -> None:
    weight = np.ascontiguousarray(WEIGHT.T) if transposed else WEIGHT
    graph = save_graph(
        tmp_path / "model.onnx",
        [node("Gemm", "x,w,b", "y", transB=transposed)],
        {"w": weight, "b": BIAS},
        shape=("batch", 2),
    )
    got = run_graph(write(graph, kind), {"x": X[0]})
    np.testing.assert_allclose(got, X_ROUNDED[0] @ WEIGHT_ROUNDED + BIAS, atol=2e-5)
    assert "Gemm" not in operators(tmp_path / f"{kind}.onnx")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_weight_is_stored_once_for_each_orientation(tmp_path: Path, kind: Kind) -> None:
    nodes = [
        node("MatMul", "x,w", "a"),
        node("MatMul", "x,w", "b"),
        node("Gemm", "x,w", "c", transB=1),
        node("Sum", "a,b,c", "y"),
    ]
    graph = save_graph(tmp_path / "model.onnx", nodes, {"w": WEIGHT}, shape=("batch", 2))
    written = write(graph, kind)
    weights = onnx.load(written).graph.initializer
    stored = {tensor.name for tensor in weights if tensor.data_type == onnx.TensorProto.INT8}
    assert stored == {"w.int8", "w.transposed.int8"}
    expected = 2 * X[0] @ WEIGHT + X[0] @ WEIGHT.T
    np.testing.assert_allclose(run_graph(written, {"x": X[0]}), expected, atol=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(tmp_path: Path, kind: Kind) -> None:
    graph = product(tmp_path, w=np.zeros((2, 2), np.float32))
    written = write(graph, kind, TensorRange(0.0, 0.0))
    zeros = np.zeros((1, 3, 2), np.float32)
    np.testing.assert_array_equal(run_graph(written, {"x": zeros}), zeros + BIAS)


def test_a_static_activation_beyond_its_range_is_clipped(tmp_path: Path) -> None:
    written = write(product(tmp_path, w=np.eye(2, dtype=np.float32)), "static")
    got = run_graph(written, {"x": np.array([[[-9, 9]]], np.float32)})
    np.testing.assert_allclose(got, [[[10 - 1.0, 20 + 1.55]]], atol=1e-5)


@pytest.fixture(scope="module", params=["mha", "mqa"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder in the lowering that its kind is exported with."""
    lowering: Lowering = "expand" if request.param == "mha" else "fold"
    return export_encoder(tmp_path_factory.mktemp(request.param), request.param, lowering)


Write = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def written(encoder: Path, tmp_path: Path) -> Write:
    """Write the encoder's INT8 graph."""
    placement = place(ir.load(encoder), PlacementOptions())

    def make(kind: Kind, refine: Refine = "none", **options: Any) -> tuple[Path, dict[str, Any]]:
        out = tmp_path / f"{kind}-{refine}.onnx"
        found = encoder_ranges(encoder, placement) if kind == "static" else None
        return out, write_cpu_int8(encoder, out, kind=kind, ranges=found, refine=refine, **options)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_query_key_and_value_share_one_quantization(written: Write, kind: Kind) -> None:
    path, summary = written(kind)
    name = "DynamicQuantizeLinear" if kind == "dynamic" else "QuantizeLinear"
    # Two layers, two inputs each; but the last layer's output projection sees one row.
    assert operators(path)[name] == summary["activations"] == 3
    assert len(summary["gemms"]) == 4 + 2
    assert {name.rpartition(".")[0] for name in summary["left"]} == {
        "layers.1.attention.query",
        "layers.1.attention.output",
        "pooler",
        "classifier",
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refine", REFINEMENTS)
def test_the_attention_itself_and_the_norms_are_untouched(
    encoder: Path, written: Write, kind: Kind, refine: Refine
) -> None:
    before = {node.name: node for node in onnx.load(encoder).graph.node}
    after = {node.name: node for node in onnx.load(written(kind, refine)[0]).graph.node}
    kept = [n for n in before if role_of(n) in (SCORES, CONTEXT, "softmax", "mask_add", "norm")]
    assert len(kept) == 2 * 5
    for name in kept:
        assert after[name] == before[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refine", REFINEMENTS)
def test_a_value_that_keeps_its_name_keeps_its_meaning(
    encoder: Path, written: Write, kind: Kind, refine: Refine
) -> None:
    path, _ = written(kind, refine)
    shared = {v for n in onnx.load(path).graph.node for v in n.output} & {
        v for n in onnx.load(encoder).graph.node for v in n.output if "norm" in v or "bias" in v
    }
    assert len([name for name in shared if "bias_add" in name]) == 8
    feeds = encoder_feeds(9)
    values = []
    for source in (encoder, path):
        model = onnx.load(source)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(shared))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        values.append(session.run(sorted(shared), feeds))
    for name, expected, got in zip(sorted(shared), *values, strict=True):
        assert sqnr(expected, got) > 25, name


def test_a_dynamic_graph_has_standard_operators_alone(written: Write) -> None:
    path, summary = written("dynamic", "both")
    assert summary["contrib_operators"] == []
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    assert [opset.version for opset in onnx.load(path).opset_import] == [17]


def test_a_static_graph_names_the_operator_that_is_not_standard(written: Write) -> None:
    path, summary = written("static")
    assert summary["contrib_operators"] == ["com.microsoft.MatMulIntegerToFloat"]
    assert operators(path)["MatMulIntegerToFloat"] == len(summary["gemms"])
    assert summary["bytes"] == path.stat().st_size


@pytest.mark.parametrize("refine", REFINEMENTS)
def test_onnx_runtime_fuses_each_dynamic_product_with_its_bias(
    written: Write, tmp_path: Path, refine: Refine
) -> None:
    path, summary = written("dynamic", refine)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    found = Counter(node.op_type for node in optimized.graph.node)
    products = [
        node
        for node in optimized.graph.node
        if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")
    ]
    extra = {"none": 0, "weights": 1, "both": 2}[refine]
    assert len(products) == len(summary["gemms"]) + extra * len(summary["refined"])
    assert found["MatMulInteger"] == 0
    constants = {tensor.name for tensor in optimized.graph.initializer}
    biased = [node for node in products if node.input[-1] in constants and "bias" in node.input[-1]]
    assert len(biased) == len(summary["gemms"])


def test_what_only_reaches_the_softmax_is_not_refined(written: Write) -> None:
    _, summary = written("dynamic", "weights")
    kinds = {name.split(".")[3] for name in summary["refined"]}
    assert kinds == {"value", "output"}
    assert {name.split(".")[3] for name in summary["gemms"]} == {"query", "key", *kinds}
    assert written("dynamic", "none")[1]["refined"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_refinement_lowers_the_error(encoder: Path, written: Write, kind: Kind) -> None:
    feeds = [encoder_feeds(n, batch=16, padded=n == 9) for n in (3, 9, 16)]
    expected = np.concatenate([run_graph(encoder, batch) for batch in feeds])
    found = []
    for refine in REFINEMENTS:
        path, _ = written(kind, refine)
        found.append(sqnr(expected, np.concatenate([run_graph(path, batch) for batch in feeds])))
    none, weights, both = found
    assert none > 32
    assert weights > none + 0.5
    assert both > weights + 3


@pytest.mark.parametrize("kind", KINDS)
def test_labels_agree_on_a_seeded_encoder(encoder: Path, written: Write, kind: Kind) -> None:
    feeds = encoder_feeds(16, batch=400)
    expected = run_graph(encoder, feeds).argmax(axis=1)
    assert np.bincount(expected).max() < 380
    got = run_graph(written(kind, "both")[0], feeds).argmax(axis=1)
    assert (got == expected).mean() >= 0.99


def test_the_same_call_writes_the_same_bytes(written: Write) -> None:
    first = written("static", "both")[0].read_bytes()
    assert written("static", "both")[0].read_bytes() == first


def test_excluded_products_stay_fp32(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    excluded = r"layers\.0\..*\.gemm"
    summary = write_cpu_int8(encoder, out, kind="dynamic", exclude=[excluded])
    assert [name.split(".")[1] for name in summary["gemms"]] == ["1", "1"]
    assert operators(out)["MatMulInteger"] == 2
    assert "layers.0.attention.query.gemm" in summary["left"]


def test_a_scaled_gemm_stays_fp32(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x,w,b", "g", alpha=2.0), node("MatMul", "g,w", "y")]
    graph = save_graph(tmp_path / "model.onnx", nodes, {"w": WEIGHT, "b": BIAS}, shape=("batch", 2))
    summary = write_cpu_int8(graph, tmp_path / "out.onnx", kind="dynamic")
    assert (summary["gemms"], summary["left"]) == (["y"], ["g"])
    with pytest.raises(BuildFailed, match="alpha"):
        write_cpu_int8(graph, tmp_path / "none.onnx", kind="dynamic", exclude=["y"])
    assert not (tmp_path / "none.onnx").exists()


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        pytest.param(UsageError, "needs ranges", {"kind": "static"}, id="no-ranges"),
        pytest.param(UsageError, "give none", {"ranges": True}, id="needless-ranges"),
        pytest.param(UsageError, "'fast'; the kinds are", {"kind": "fast"}, id="kind"),
        pytest.param(UsageError, "'all'; choose", {"refine": "all"}, id="refine"),
        pytest.param(UsageError, "matches nosuch", {"exclude": ["nosuch"]}, id="exclude"),
        pytest.param(BuildFailed, "nothing is left", {"exclude": [".*"]}, id="all-excluded"),
    ],
)
def test_a_wrong_call_is_refused_and_nothing_is_written(
    tmp_path: Path, error: type[Exception], message: str, change: dict[str, Any]
) -> None:
    graph = product(tmp_path)
    options = {"kind": "dynamic", **change}
    if "ranges" in change:
        options["ranges"] = ranges_of_x(graph)
    with pytest.raises(error, match=message):
        write_cpu_int8(graph, tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()


def test_ranges_of_another_graph_or_without_a_tensor_are_refused(tmp_path: Path) -> None:
    graph = product(tmp_path)
    wrong = replace(ranges_of_x(graph), graph_sha256="0" * 64)
    with pytest.raises(BundleError, match="another graph"):
        write_cpu_int8(graph, tmp_path / "out.onnx", kind="static", ranges=wrong)
    empty = replace(ranges_of_x(graph), tensors={})
    with pytest.raises(BundleError, match="tensor x has no range"):
        write_cpu_int8(graph, tmp_path / "out.onnx", kind="static", ranges=empty)


def test_a_quantized_graph_is_refused(tmp_path: Path) -> None:
    graph = product(tmp_path)
    (tmp_path / "qdq").mkdir()
    qdq = tmp_path / "qdq" / "model.onnx"
    write_qdq(graph, ranges_of_x(graph), place(ir.load(graph), PlacementOptions()), qdq)
    for source in (qdq, write(graph, "dynamic"), write(graph, "static")):
        with pytest.raises(BuildFailed, match=r"quantized already|nothing is left to quantize"):
            write_cpu_int8(source, tmp_path / "out.onnx", kind="dynamic")


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    broken = WEIGHT.copy()
    broken[0, 0] = np.nan
    with pytest.raises(BuildFailed, match="weight w is not finite"):
        write_cpu_int8(product(tmp_path, w=broken), tmp_path / "out.onnx", kind="dynamic")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mha", "mqa"])
def test_labels_agree_on_real_tweets(tmp_path: Path, model: str) -> None:
    folder = os.environ.get("ATTN_EXPORT_DATA")
    if not folder:
        pytest.skip("ATTN_EXPORT_DATA is not set")
    sizes = {"hidden_size": 768, "num_heads": 12, "num_layers": 12, "vocab_size": 30522}
    graph = export_encoder(tmp_path, model, "fold", **sizes, max_length=128)
    write_cpu_int8(graph, tmp_path / "int8.onnx", kind="dynamic", refine="both")
    lines = (Path(folder) / "tweet_eval_sentiment_val_ids.jsonl").read_text().splitlines()
    labels: dict[str, list[int]] = {}
    for path in (graph, tmp_path / "int8.onnx"):
        session = onnxruntime.InferenceSession(path)
        for line in lines[::4]:
            ids = np.array([json.loads(line)["input_ids"]], np.int32)
            logits = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            labels.setdefault(path.name, []).append(int(logits[0].argmax()))
    expected, got = labels.values()
    assert np.mean(np.array(expected) == got) >= 0.99
