"""Reading one layer of the inspector's JSON. Texts are those that TensorRT writes: dtypes and the
separators as in NVIDIA/TensorRT's trt-engine-explorer, kernels as in its published examples."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attn_export.engines.inspector import Layer, read_layers
from attn_export.errors import BuildFailed

UNKNOWN = "N/A due to dynamic shapes"
QUERY = "layers.0.attention.query.gemm"
SCORES = "layers.0.attention.scores"


def tensor(dtype: str, dims: list[int] | None = None) -> dict[str, Any]:
    return {"Name": "x", "Dimensions": dims or [-1, 8], "Format/Datatype": dtype}


def read(nodes: tuple[str, ...] = (), **fields: Any) -> Layer:
    entry = {"Name": "some_layer", "LayerType": "kgen", "Inputs": [], "Outputs": [], **fields}
    layers = read_layers(json.dumps({"Layers": [entry]}), nodes)
    assert layers is not None
    return layers[0]


def metadata(*nodes: str) -> str:
    return "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Half", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("Row major Int8 format", "int8"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("FP8", "fp8"),
        ("Int32", "integer"),
        ("Row major linear INT32 format", "integer"),
        ("Bool", "integer"),
        (UNKNOWN, None),
    ],
)
def test_a_layers_precision_is_its_outputs(text: str, precision: str | None) -> None:
    assert read(Outputs=[tensor(text)]).precision == precision


def test_version_11_splits_format_and_datatype() -> None:
    output = {"Name": "x", "Dimensions": [4], "Format": "Row major linear FP32", "Datatype": "Half"}
    assert read(Outputs=[output]).precision == "fp16"


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64_stage6", "fp16"),
        ("turing_h1688gemm_128x128_ldg8_nn_v0", "fp16"),
        ("volta_fp16_s884gemm_fp16_128x64_ldg8_f2f_nn", "fp16"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64", "fp32"),
        ("volta_sgemm_128x64_nt", "fp32"),
        ("sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize64x64x64", "int8"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bf16"),
        ("__myl_Add_0xf16f16bf32f32", None),
    ],
)
def test_the_tactic_tells_where_dynamic_shapes_hide_the_types(
    tactic: str, precision: str | None
) -> None:
    layer = read(TacticName=tactic, Inputs=[tensor(UNKNOWN)], Outputs=[tensor(UNKNOWN)])
    assert layer.precision == precision


def test_the_weights_tell_before_the_tactic() -> None:
    weights = {"Type": "Half", "Count": 9408}
    layer = read(Weights=weights, TacticName="volta_sgemm", Outputs=[tensor(UNKNOWN)])
    assert layer.precision == "fp16"


def test_a_gemm_is_judged_by_its_first_operand_and_not_by_alpha_or_what_it_writes() -> None:
    alpha = tensor("Float", [1])
    half = read(LayerType="gemm", Inputs=[alpha, tensor("Half")], Outputs=[tensor("Float")])
    eight = read(LayerType="gemm", Inputs=[tensor("Int8"), alpha], Outputs=[tensor("Half")])
    full = read(LayerType="gemm", Inputs=[tensor("Float"), alpha], Outputs=[tensor("Half")])
    assert [half.precision, eight.precision, full.precision] == ["fp16", "int8", "fp32"]


def test_of_two_outputs_the_wider_one_counts() -> None:
    layer = read(Inputs=[tensor("Half")], Outputs=[tensor("Half"), tensor("Float")])
    assert layer.precision == "fp32"


@pytest.mark.parametrize(
    ("fields", "is_gemm"),
    [
        ({"LayerType": "gemm"}, True),
        ({"LayerType": "MatrixMultiply"}, True),
        ({"Name": "_gemm_mha_v2_myl0_7"}, True),
        ({"Name": "_gemv_mha_v1_myl0_7"}, True),
        ({"Name": "__myl_FcAdd_myl0_1", "Metadata": metadata(QUERY)}, True),
        ({"Name": "__myl_MulSum_myl0_1", "Metadata": metadata(QUERY)}, True),
        ({"Name": "__myl_MulSum_myl0_1", "Metadata": metadata("pool")}, False),
        ({"Name": "__myl_Tran_myl0_1", "Metadata": metadata(SCORES)}, False),
        ({"LayerType": "CaskConvolution", "Metadata": metadata(QUERY)}, True),
        ({"LayerType": "ElementWise", "Metadata": metadata(QUERY)}, False),
        ({"LayerType": "fusion", "TacticName": "sm80_xmma_gemm_i8f16_i8i32_f32"}, True),
        ({"LayerType": "Reformat", "Name": f"Reformatting CopyNode to {QUERY}"}, False),
        ({"LayerType": "Reformat", "Metadata": metadata(QUERY)}, False),
        ({"LayerType": "Myelin", "Metadata": metadata(QUERY)}, False),
        ({"Name": "__myl_AddMul_myl0_1", "Metadata": metadata("layers.0.residual")}, False),
    ],
)
def test_which_layers_multiply_matrices(fields: dict[str, Any], is_gemm: bool) -> None:
    layer = read(Inputs=[tensor("Half")], Outputs=[tensor("Half")], **fields)
    assert layer.is_gemm is is_gemm


@pytest.mark.parametrize(
    ("fields", "converts"),
    [
        ({"LayerType": "Reformat"}, True),
        ({"Metadata": metadata("logits.cast")}, True),
        ({"Metadata": metadata("logits.cast", QUERY)}, False),
        ({"Name": "__myl_ReshCast_myl0_2"}, True),
        ({"Name": "__myl_MoveReshTran_myl0_2"}, False),
        ({"Name": "__myl_AddCastMean_myl0_2"}, False),
    ],
)
def test_which_layers_only_convert(fields: dict[str, Any], converts: bool) -> None:
    assert read(**fields).converts is converts


@pytest.mark.parametrize("separator", ["\x1e", "\x1f", ""])
def test_metadata_names_the_nodes_whatever_stands_between_them(separator: str) -> None:
    text = f"[ONNX Layer: {QUERY}]{separator}[ONNX Layer: {SCORES} | outer (Function)]"
    assert read(Metadata=text).nodes == (QUERY, SCORES)


def test_separators_may_stand_raw_in_the_json() -> None:
    text = '{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: b]\x1f[ONNX Layer: c]"}]}'
    layers = read_layers(text)
    assert layers is not None
    assert layers[0].nodes == ("b", "c")


@pytest.mark.parametrize(
    "name",
    [
        f"{QUERY} + (Unnamed Layer* 12) [Shuffle] + {SCORES}",
        "layers_0_attention_query_gemm+layers_0_attention_scores_myl3_2",
        f"PWN({QUERY}, PWN({SCORES}))",
    ],
)
def test_without_metadata_the_nodes_are_found_in_the_name(name: str) -> None:
    assert read((QUERY, SCORES), Name=name).nodes == (QUERY, SCORES)


def test_without_metadata_or_the_graph_names_with_a_role_are_nodes() -> None:
    assert read(Name=f"{QUERY} + (Unnamed Layer* 12) [Shuffle]").nodes == (QUERY,)


def test_a_reformat_holds_none_of_the_nodes_it_is_named_after() -> None:
    name = f"Reformatting CopyNode for Input Tensor 0 to {QUERY}"
    assert read((QUERY,), Name=name, LayerType="Reformat").nodes == ()


def test_the_profile_is_read_from_the_name_and_cut_off() -> None:
    first, later = read(Name="a_myl0_1"), read(Name="a_myl0_1 [profile 12]")
    assert (first.name, first.profile) == ("a_myl0_1", 0)
    assert (later.name, later.profile) == ("a_myl0_1", 12)


@pytest.mark.parametrize(
    ("fields", "hides"),
    [
        ({}, True),
        ({"Metadata": metadata("mask", SCORES)}, True),
        ({"Metadata": metadata("mask", "mask_2")}, False),
        ({"LayerType": "Reformat"}, False),
    ],
)
def test_a_myelin_subgraph_hides_its_products(fields: dict[str, Any], hides: bool) -> None:
    layer = read(**{"Name": "{ForeignNode[a...b]}", "LayerType": "Myelin", **fields})
    assert layer.hides_gemms is hides


@pytest.mark.parametrize("kind", ["Constant", "NoOp", "signal", "wait"])
def test_layers_without_work_say_so(kind: str) -> None:
    assert not read(LayerType=kind, Outputs=[tensor("Float")]).works


def test_below_detailed_verbosity_there_are_no_layers_to_read() -> None:
    assert read_layers('{"Layers": ["conv1 + relu1", "fc"], "Bindings": ["x"]}') is None


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": []}'])
def test_an_inspector_that_lists_nothing_gives_no_layers(text: str) -> None:
    assert read_layers(text) == []


@pytest.mark.parametrize("text", ["Layer(0): Constant", "[1]", '{"Layers": [{}]}'])
def test_other_text_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(BuildFailed, match="something else than layers") as caught:
        read_layers(text)
    assert text in str(caught.value)
