"""The rules of TensorRT's importers: what each version refuses, misreads or does not fuse."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from attn_export.errors import BundleError, UsageError
from attn_export.exporter.attention import LOWERINGS, Lowering
from attn_export.exporter.export import export_graph
from attn_export.exporter.finding import Finding, report, sentences
from attn_export.exporter.fp16 import to_fp16
from attn_export.exporter.graph_file import read_graph
from attn_export.exporter.keep import keep_list
from attn_export.exporter.lint import lint, lint_file, unreadable_by
from attn_export.exporter.source import ModelSource, load_model
from attn_export.exporter.tensorrt_importers import IMPORTERS, VERSIONS

from .conftest import Exported, tiny_source

OLD, TEN, ELEVEN = VERSIONS
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Array = np.ndarray[Any, Any]


def model_of(
    *nodes: onnx.NodeProto,
    opset: int = 17,
    inputs: dict[str, tuple[int, list[int | str]]] | None = None,
    constants: dict[str, Array] | None = None,
    shapes: dict[str, list[int | str]] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> ir.Model:
    """A graph from nodes; the input is x [2, 3, 4] and the output is the last node's."""
    inputs = inputs or {"x": (FLOAT, [2, 3, 4])}
    last = nodes[-1].output[0]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(last, FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
        value_info=[
            helper.make_tensor_value_info(name, FLOAT, shape)
            for name, shape in (shapes or {}).items()
        ],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    return ir.from_proto(made)


def node(op: str, inputs: str, output: str = "y", name: str = "n", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(","), output.split(","), name=name, **attributes)


def found(model: ir.Model, version: str, severity: str) -> list[str]:
    return [item.text for item in lint(model, version) if item.severity == severity]


def has(texts: list[str], pattern: str) -> bool:
    return any(re.search(pattern, text) for text in texts)


# Every rule of the importers, with a graph that breaks it, the versions that say so and how.
INT8: Array = np.zeros((), np.int8)
ONE: Array = np.array(1, np.float32)
AXES = np.array([1])
BROKEN: dict[str, tuple[ir.Model, dict[str, str], dict[str, str]]] = {
    "operators of a later opset": (
        model_of(node("Gelu", "x"), opset=20),
        {OLD: "opset 20.*up to 17.*misreads"},
        {},
    ),
    "an opset that only some releases of 10 read": (
        model_of(node("Relu", "x"), opset=21),
        {OLD: "up to 17", TEN: "at opset 21; every release of TensorRT 10 reads up to 20"},
        {},
    ),
    "an operator that none imports": (
        model_of(node("Unique", "x")),
        dict.fromkeys(VERSIONS, "does not import Unique"),
        {},
    ),
    "an operator that some releases of 10 import": (
        model_of(node("RMSNormalization", "x,s"), constants={"s": np.ones(4, np.float32)}),
        {OLD: "does not import RMSNormalization"},
        {TEN: "only TensorRT 10.15 and newer"},
    ),
    "an operator outside the standard": (
        model_of(node("Fast", "x", domain="mine")),
        dict.fromkeys(VERSIONS, "mine.Fast is not of the ONNX standard"),
        {},
    ),
    "a local function": (
        model_of(
            node("Twice", "x", domain="mine"),
            functions=[
                helper.make_function(
                    "mine",
                    "Twice",
                    ["a"],
                    ["b"],
                    [helper.make_node("Add", ["a", "a"], ["b"])],
                    [helper.make_opsetid("", 17)],
                )
            ],
        ),
        {OLD: "reads no local functions"},
        {},
    ),
    "a node in a branch": (
        model_of(
            node(
                "If",
                "c",
                then_branch=helper.make_graph(
                    [node("Unique", "x", "t")],
                    "then",
                    [],
                    [helper.make_tensor_value_info("t", FLOAT, None)],
                ),
                else_branch=helper.make_graph(
                    [node("Neg", "x", "e")],
                    "else",
                    [],
                    [helper.make_tensor_value_info("e", FLOAT, None)],
                ),
            ),
            inputs={"x": (FLOAT, [2]), "c": (TensorProto.BOOL, [])},
        ),
        dict.fromkeys(VERSIONS, "does not import Unique"),
        {},
    ),
    "a reduction over an input's axes": (
        model_of(node("ReduceMean", "x,axes"), opset=18, constants={"axes": AXES}),
        {OLD: "axes are an input.*would reduce all axes and say nothing"},
        {},
    ),
    "axes of a reduction that are computed": (
        model_of(node("ReduceSum", "x,a"), inputs={"x": (FLOAT, [2, 3]), "a": (INT64, [1])}),
        dict.fromkeys(VERSIONS, "its axes 'a' are computed"),
        {},
    ),
    "axes of a slice that are computed": (
        model_of(
            node("Slice", "x,s,s,a"),
            inputs={"x": (FLOAT, [2, 3]), "a": (INT64, [1])},
            constants={"s": AXES},
        ),
        {OLD: "its axes 'a' are computed"},
        {TEN: "only TensorRT 10.3 and newer"},
    ),
    "parts of a split by number": (
        model_of(node("Split", "x", "y,z", axis=1, num_outputs=2), opset=18),
        {OLD: "num_outputs.*uneven parts"},
        {},
    ),
    "a part of a shape": (
        model_of(node("Shape", "x", start=1, end=2), inputs={"x": (FLOAT, [2, 3])}),
        {OLD: "gives the whole shape.*Gather"},
        {},
    ),
    "padding of chosen axes": (
        model_of(
            node("Pad", "x,p,,a"), opset=18, constants={"p": np.array([0, 1]), "a": np.array([2])}
        ),
        {OLD: "its axes are an input.*pad all axes"},
        {},
    ),
    "double": (
        model_of(node("Neg", "x"), inputs={"x": (TensorProto.DOUBLE, [2])}),
        {},
        dict.fromkeys(VERSIONS, "1 tensors are DOUBLE, the first 'x'"),
    ),
    "bfloat16": (
        model_of(node("Neg", "x"), inputs={"x": (TensorProto.BFLOAT16, [2])}),
        {OLD: "BFLOAT16.*TensorRT 8.6 has BOOL, FLOAT, FLOAT16, INT32"},
        {},
    ),
    "int16": (
        model_of(node("Cast", "x", to=FLOAT), inputs={"x": (TensorProto.INT16, [2])}),
        dict.fromkeys(VERSIONS, "1 tensors are INT16"),
        {},
    ),
    "int64 inputs": (
        model_of(node("Cast", "x", to=FLOAT), inputs={"x": (INT64, [2])}),
        {},
        dict.fromkeys(VERSIONS, "input 'x' is int64"),
    ),
    "no zero point": (
        model_of(
            node("QuantizeLinear", "x,s", "q"),
            node("DequantizeLinear", "q,s"),
            constants={"s": ONE},
        ),
        {OLD: "no zero point.*add one of zeros", TEN: "UINT8", ELEVEN: "UINT8"},
        {},
    ),
    "a zero point that is not zero": (
        model_of(node("QuantizeLinear", "x,s,z"), constants={"s": ONE, "z": np.array(3, np.int8)}),
        dict.fromkeys(VERSIONS, "zero point is not zero"),
        {},
    ),
    "a zero point that is computed": (
        model_of(
            node("QuantizeLinear", "x,s,z"),
            inputs={"x": (FLOAT, [2]), "z": (TensorProto.INT8, [])},
            constants={"s": ONE},
        ),
        dict.fromkeys(VERSIONS, "zero point is computed"),
        {},
    ),
    "unsigned quantization": (
        model_of(node("QuantizeLinear", "x,s,z"), constants={"s": ONE, "z": np.array(0, np.uint8)}),
        dict.fromkeys(VERSIONS, "quantizes to UINT8.*takes others for INT8"),
        {},
    ),
    "a quantized bias": (
        model_of(
            node("DequantizeLinear", "b,s"), constants={"s": ONE, "b": np.arange(4, dtype=np.int32)}
        ),
        dict.fromkeys(VERSIONS, "quantizes to INT32"),
        {OLD: "stored quantized"},
    ),
    "a scale of zero": (
        model_of(node("QuantizeLinear", "x,s,z"), constants={"s": ONE * 0, "z": INT8}),
        dict.fromkeys(VERSIONS, "not a positive number"),
        {},
    ),
    "a scale that is computed": (
        model_of(
            node("QuantizeLinear", "x,s,z"),
            inputs={"x": (FLOAT, [2]), "s": (FLOAT, [])},
            constants={"z": INT8},
        ),
        dict.fromkeys(VERSIONS, "scale is computed"),
        {},
    ),
    "an FP16 scale before opset 19": (
        model_of(
            node("QuantizeLinear", "x,s,z"),
            inputs={"x": (TensorProto.FLOAT16, [2])},
            constants={"s": ONE.astype(np.float16), "z": INT8},
        ),
        {OLD: "reads the bytes as FP32", TEN: "from opset 19 on", ELEVEN: "from opset 19 on"},
        {},
    ),
    "scales for other channels": (
        model_of(
            node("QuantizeLinear", "x,s,z", axis=2),
            constants={"s": np.ones(3, np.float32), "z": np.zeros(3, np.int8)},
        ),
        dict.fromkeys(VERSIONS, "3 scales for 4 channels of axis 2"),
        {},
    ),
    "channels of an axis that is not said": (
        model_of(
            node("QuantizeLinear", "x,s,z"),
            constants={"s": np.ones(3, np.float32), "z": np.zeros(3, np.int8)},
        ),
        {OLD: "ONNX means axis 1, TensorRT 8.6 takes axis 0"},
        {},
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_is_kept_by_the_versions_that_have_it(rule: str, version: str) -> None:
    model, errors, cautions = BROKEN[rule]
    for severity, expected in (("error", errors), ("warning", cautions)):
        texts = found(model, version, severity)
        if version in expected:
            assert has(texts, expected[version]), texts
        else:
            texts = [text for text in texts if "is int64" not in text]
            assert texts == [], f"{version} has no such {severity}"


FINE = {
    "constants as nodes": model_of(
        node("Constant", "", "a", value=onnx.numpy_helper.from_array(AXES)),
        node("Unsqueeze", "x,a"),
    ),
    "constants as lists": model_of(
        node("Constant", "", "a", value_ints=[1]), node("ReduceSum", "x,a")
    ),
    "axes as an attribute": model_of(node("ReduceMean", "x", axes=[1])),
    "sizes and ends that are computed": model_of(
        node("Shape", "x", "h"),
        node("Slice", "x,s,h,s", "z"),
        node("Reshape", "z,h"),
        constants={"s": np.array([0])},
    ),
    "a quantized weight": model_of(
        node("QuantizeLinear", "w,s,z", "q", axis=1),
        node("DequantizeLinear", "q,s,z", "d", axis=1),
        node("MatMul", "x,d"),
        constants={
            "w": np.ones((4, 5), np.float32),
            "s": np.full(5, 0.1, np.float32),
            "z": np.zeros(5, np.int8),
        },
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", FINE)
def test_what_the_importers_take_is_not_reported(case: str, version: str) -> None:
    assert lint(FINE[case], version) == []


@pytest.mark.parametrize("version", [TEN, ELEVEN])
def test_fp16_scales_are_fine_from_opset_19_on(version: str) -> None:
    quantize = node("QuantizeLinear", "x,s,z")
    inputs: dict[str, tuple[int, list[int | str]]] = {"x": (TensorProto.FLOAT16, [2])}
    constants: dict[str, Array] = {"s": ONE.astype(np.float16), "z": INT8}
    assert lint(model_of(quantize, opset=19, inputs=inputs, constants=constants), version) == []


def attention(
    *,
    head: int = 64,
    heads: list[int | str] | None = None,
    scale: str | None = None,
    mask: float = -1e4,
    repair: bool = False,
    cast: bool = False,
) -> ir.Model:
    """Q K^T, mask, softmax, V; the options spoil it one by one."""
    lead: list[int | str] = ["b", 12] if heads is None else heads
    parts = [node("MatMul", "q,k", "scores", "scores")]
    last = "scores"
    if scale:
        parts.append(node(scale, f"{last},factor", "scaled", "scaled"))
        last = "scaled"
    if cast:
        parts.append(node("Cast", last, "wide", "wide", to=FLOAT))
        last = "wide"
    parts += [
        node("Mul", "m,large", "bias", "bias"),
        node("Add", f"{last},bias", "masked", "masked"),
        node("Softmax", "masked", "p", "softmax"),
    ]
    last = "p"
    if repair:
        parts += [node("IsNaN", "p", "n", "isnan"), node("Where", "n,zero,p", "w", "where")]
        last = "w"
    parts.append(node("MatMul", f"{last},v", "y", "context"))
    return model_of(
        *parts,
        inputs={
            "q": (FLOAT, [*lead, "s", head]),
            "k": (FLOAT, [*lead, head, "s"]),
            "v": (FLOAT, [*lead, "s", head]),
            "m": (FLOAT, ["b", 1, 1, "s"]),
        },
        constants={
            "large": np.array(mask, np.float32),
            "factor": np.array(0.125, np.float32),
            "zero": np.array(0, np.float32),
        },
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (attention(), {}),
        (attention(head=16), {}),
        (attention(head=256), {}),
        (attention(head=264), {"scores": "head size is 264"}),
        (attention(head=60), {"scores": "head size is 60"}),
        (attention(head=8), {"scores": "head size is 8"}),
        (attention(scale="Mul"), {"scaled": "scaled after the product"}),
        (attention(scale="Div"), {"scaled": "scaled after the product"}),
        (attention(cast=True), {"wide": "type changes inside the attention"}),
        (
            attention(repair=True),
            {"isnan": "between softmax and the next", "where": "between softmax and the next"},
        ),
        (attention(mask=-65504), {}),
        (attention(mask=-1e9), {"bias": "1e\\+09, infinite in FP16"}),
        (attention(mask=float("-inf")), {"bias": "inf, infinite in FP16"}),
        (attention(mask=float("nan")), {"bias": "nan, infinite in FP16"}),
        (
            attention(heads=["b", 4, 3]),
            {"scores": "rank 5.*will not be fused", "context": "rank 5.*will not be fused"},
        ),
    ],
)
def test_what_spoils_the_fused_attention_is_a_warning(
    model: ir.Model, expected: dict[str, str], version: str
) -> None:
    findings = lint(model, version)
    assert {item.severity for item in findings} <= {"warning"}
    assert {item.node for item in findings} == set(expected)
    for item in findings:
        assert re.search(expected[item.node], item.text)


def test_infinity_that_fills_a_mask_is_seen() -> None:
    fill = onnx.numpy_helper.from_array(np.array([-np.inf], np.float32))
    parts = [
        node("MatMul", "q,q", "scores", "scores"),
        node("Shape", "scores", "size", "size"),
        node("ConstantOfShape", "size", "low", "low", value=fill),
        node("Where", "m,scores,low", "masked", "masked"),
        node("Softmax", "masked", "p", "softmax"),
        node("MatMul", "p,q", "y", "context"),
    ]
    square: list[int | str] = ["b", 2, 64, 64]
    model = model_of(*parts, inputs={"q": (FLOAT, square), "m": (TensorProto.BOOL, square)})
    assert [item.node for item in lint(model, OLD)] == ["low"]


class TorchAttention(nn.Module):
    """torch's own attention under a boolean mask."""

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        mask = keep.bool()[:, None, None, :]
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def test_torchs_own_attention_is_repaired_after_the_softmax(tmp_path: Path) -> None:
    feeds = (torch.zeros(2, 3, 5, 16), torch.ones(2, 5, dtype=torch.int32))
    path = tmp_path / "raw.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            TorchAttention().eval(), feeds, str(path), dynamo=True, opset_version=18, verbose=False
        )
    operators = {item.op for item in lint_file(path, TEN) if "softmax and the next" in item.text}
    assert operators == {"Where", "IsNaN"}


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("half", [False, True])
def test_our_own_graphs_fit_every_version(
    exported: Callable[..., Exported], model: str, lowering: Lowering, half: bool
) -> None:
    graph = read_graph(exported(model, lowering).path)
    if half:
        to_fp16(graph, keep_list(graph), fp16_io=False)
    assert unreadable_by(graph) == {}
    for version in VERSIONS:
        texts = {item.text.partition(",")[0] for item in lint(graph, version)}
        assert texts == {"the head size is 8"}  # which is true of these tiny models


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_at_real_head_sizes_there_is_nothing_to_say(tmp_path: Path, lowering: Lowering) -> None:
    model = load_model(tiny_source("gqa", hidden_size=64, num_layers=1))
    export_graph(model, tmp_path / "m.onnx", lowering=lowering, metadata={})
    assert [lint_file(tmp_path / "m.onnx", version) for version in VERSIONS] == [[], [], []]


def test_the_example_fits_every_version(tmp_path: Path, root: Path) -> None:
    model = load_model(ModelSource(model=f"{root / 'examples' / 'tagger.py'}:make"))
    export_graph(model, tmp_path / "m.onnx", lowering="fold", metadata={})
    graph = read_graph(tmp_path / "m.onnx")
    assert [lint(graph, version) for version in VERSIONS] == [[], [], []]
    to_fp16(graph, keep_list(graph), fp16_io=False)
    assert [lint(graph, version) for version in VERSIONS] == [[], [], []]


def test_a_softmax_kept_fp32_is_reported(exported: Callable[..., Exported]) -> None:
    graph = read_graph(exported("mha").path)
    to_fp16(graph, keep_list(graph, op_types=["Softmax"]), fp16_io=False)
    assert has(found(graph, TEN, "warning"), "type changes inside the attention")


def test_weights_are_not_read(exported: Callable[..., Exported]) -> None:
    def refuse() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    graph = read_graph(exported("mha").path)
    weights = [v for v in graph.graph.initializers.values() if v.name and "weight" in v.name]
    assert len(weights) > 5
    for value in weights:
        tensor = value.const_value
        assert tensor is not None
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.LazyTensor(refuse, dtype=tensor.dtype, shape=shape)
    assert unreadable_by(graph) == {}


def test_versions_that_cannot_read_a_graph_are_named_with_the_reasons() -> None:
    model = model_of(node("Gelu", "x", name="act"), opset=20)
    assert unreadable_by(model) == {
        OLD: [
            "the graph is at opset 20; every release of TensorRT 8.6 reads up to 17, does not "
            "check it and misreads newer forms; export it at opset 17 or lower",
            "Gelu 'act': TensorRT 8.6 does not import Gelu; write it with operators that it "
            "imports, or target a newer TensorRT",
        ]
    }


def test_like_findings_are_one_sentence_and_errors_come_first() -> None:
    findings = [
        Finding("warning", "a", "Mul", "slow"),
        Finding("warning", "b", "Mul", "slow"),
        Finding("warning", "c", "Mul", "slow"),
        Finding("error", "", "", "bad"),
    ]
    assert sentences(findings[:1]) == ["Mul 'a': slow"]
    assert report(findings) == ["error: bad", "warning: Mul 'a' and 2 more: slow"]


def test_the_tables_agree() -> None:
    assert list(IMPORTERS) == ["tensorrt-8.6", "tensorrt-10", "tensorrt-11"]
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    historic = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}
    for importer in IMPORTERS.values():
        assert importer.operators - known <= historic
        assert set(importer.later) <= importer.operators
        assert set(importer.constant_inputs) <= importer.operators
        assert importer.dtypes <= {dtype.name for dtype in ir.DataType}


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(UsageError, match="'tensorrt-7'; choose one of tensorrt-8"):
        lint(model_of(node("Neg", "x")), "tensorrt-7")


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(BundleError, match="cannot be read as an ONNX graph"):
        lint_file(tmp_path / "text.onnx", OLD)
