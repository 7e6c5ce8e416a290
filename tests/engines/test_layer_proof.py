"""The proof of precision on small engines, counted by hand.

inspector/*.json is about the nodes of a built two-layer MQA classifier. Their shapes follow:

* trt86_foreign_node.json: the 8.6 logs that show a whole subgraph as one Myelin layer with types
  "N/A due to dynamic shapes", and the "[profile N]" suffix that trt-engine-explorer's parser.py
  (NVIDIA/TensorRT) filters by;
* trt86_layers.json: trtexec --exportLayerInfo as pasted in NVIDIA/TensorRT#4020 and
  pytorch/pytorch#66683 (MatrixMultiply, PointWiseV2, Weights);
* trt10_mixed.json: the BERT dump of NVIDIA/TensorRT#4397 (gemm, kgen, _gemm_mha_v2, dots of node
  names as underscores) and the alpha and beta operands of #3665;
* trt11_two_profiles.json: "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x" in
  NVIDIA's documentation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attn_export.engines.layer_proof import LayerProof, lines, read_proof, require_share
from attn_export.errors import BuildFailed

FOLDER = Path(__file__).parent / "inspector"
ATTENTION = [
    "query.gemm",
    "key.gemm",
    "value.gemm",
    "scores",
    "mask_add",
    "softmax",
    "context",
    "output.gemm",
]
NODES = [
    *("mask", "mask_2", "mask_3", "mask_4", "mask_5", "mask_5.fp16"),
    *(f"layers.{n}.attention.{role}" for n in (0, 1) for role in ATTENTION),
    *("layers.0.norm.norm", "layers.1.norm.norm", "pooler.gemm", "classifier.gemm", "logits.cast"),
]
KEEP = {"mask": ["mask", "mask_2", "mask_3", "mask_4", "mask_5"]}
BLOCKS = ("layers.0.attention", "layers.1.attention")


def prove(
    text: str,
    *,
    precision: str = "fp16",
    keep: dict[str, list[str]] | None = None,
    nodes: list[str] | None = None,
) -> LayerProof:
    return read_proof(
        text,
        precision=precision,
        keep_fp32=KEEP if keep is None else keep,
        nodes=NODES if nodes is None else nodes,
    )


def stored(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def layer(name: str, dtype: str, *nodes: str, kind: str = "gemm") -> dict[str, Any]:
    tensor = {"Name": "x", "Dimensions": [-1, 8], "Format/Datatype": dtype}
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    fields = {"Inputs": [tensor], "Outputs": [tensor], "TacticName": "", "Metadata": metadata}
    return {"Name": name, "LayerType": kind, **fields}


def engine(*layers: dict[str, Any]) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["input_ids", "logits"]})


def core(block: str) -> list[str]:
    return [f"{block}.{role}" for role in ("scores", "mask_add", "softmax", "context")]


@pytest.mark.parametrize("nodes", [NODES, []], ids=["graph known", "graph unknown"])
def test_a_version_10_engine_is_counted_layer_by_layer(nodes: list[str]) -> None:
    proof = prove(stored("trt10_mixed.json"), nodes=nodes)
    assert proof.layers == {"fp16": 12, "fp32": 4, "integer": 1}
    assert (proof.gemm_layers, proof.gemm_low, proof.gemm_kept, proof.gemm_unknown) == (9, 8, 0, 0)
    assert proof.gemm_share == 8 / 9
    assert proof.attention == {BLOCKS[0]: "fused", BLOCKS[1]: "separate"}
    assert proof.hidden is None


def test_every_fallback_has_its_nodes_roles_and_reason() -> None:
    proof = prove(stored("trt10_mixed.json"))
    found = [(item.nodes, item.roles, item.reason, item.gemm) for item in proof.fallbacks]
    mask = ["mask", "mask_2", "mask_3", "mask_4"]
    norm = ["layers.0.residual", "layers.0.norm.norm"]
    assert found == [
        (mask, ["mask"], "kept FP32: mask", False),
        (norm, ["norm", "residual"], "a norm's statistics", False),
        (["layers.1.attention.scores"], ["scores"], "TensorRT's choice", True),
        (["logits.cast"], ["cast"], "a conversion of type or layout", False),
    ]
    assert proof.fallbacks[2].layer == "layers_1_attention_scores_myl0_9"


def test_a_product_on_the_keep_list_does_not_count_against_the_share() -> None:
    keep = {"excluded": ["layers.1.attention.scores"]}
    proof = prove(stored("trt10_mixed.json"), keep=keep)
    assert (proof.gemm_layers, proof.gemm_low, proof.gemm_kept) == (9, 8, 1)
    assert proof.gemm_share == 1.0
    assert proof.fallbacks[2].reason == "kept FP32: excluded"
    assert proof.fallbacks[0].reason == "TensorRT's choice"  # the mask is on no list now
    require_share(proof, 1.0)


QUERY, KEY = "layers.0.attention.query.gemm", "layers.0.attention.key.gemm"


@pytest.mark.parametrize(
    ("nodes", "keep", "kept"),
    [
        ([QUERY, "layers.0.attention.query.bias_add"], [QUERY], 1),
        ([QUERY, KEY], [QUERY, KEY], 1),
        ([QUERY, KEY], [QUERY], 0),
        ([QUERY, "mask_5"], ["mask_5"], 0),
    ],
)
def test_a_kernel_is_kept_only_if_all_its_products_are(
    nodes: list[str], keep: list[str], kept: int
) -> None:
    proof = prove(engine(layer("a_myl0_0", "Float", *nodes)), keep={"excluded": keep})
    assert proof.gemm_kept == kept
    assert proof.fallbacks[0].reason == ("kept FP32: excluded" if kept else "TensorRT's choice")


def test_a_product_on_the_keep_list_that_runs_in_fp16_all_the_same_is_counted_as_low() -> None:
    proof = prove(engine(layer("a_myl0_0", "Half", QUERY)), keep={"excluded": [QUERY]})
    assert (proof.gemm_low, proof.gemm_kept, proof.gemm_share) == (1, 0, 1.0)


def test_of_several_profiles_the_weakest_speaks_and_layers_are_not_summed() -> None:
    proof = prove(stored("trt11_two_profiles.json"))
    assert (proof.profiles, proof.profile) == (2, 1)
    assert proof.layers == {"fp16": 5, "fp32": 3}
    assert (proof.gemm_layers, proof.gemm_low) == (6, 5)
    assert proof.attention == dict.fromkeys(BLOCKS, "fused")
    assert [item.nodes[0] for item in proof.fallbacks if item.gemm] == [
        "layers.1.attention.output.gemm"
    ]


def test_between_equal_shares_the_profile_with_fewer_fused_blocks_is_weakest() -> None:
    block = BLOCKS[0]
    apart = [layer(f"{node} [profile 1]", "Half", node) for node in core(block)[::3]]
    proof = prove(engine(layer("_gemm_mha_v2_myl0_0", "Half", *core(block), kind="kgen"), *apart))
    assert (proof.profile, proof.gemm_share) == (1, 1.0)
    assert proof.attention[block] == "separate"


def test_a_myelin_layer_of_version_86_hides_everything() -> None:
    proof = prove(stored("trt86_foreign_node.json"))
    assert proof.profiles == 2
    assert proof.layers == {"unknown": 1}  # the reformat of the output
    assert (proof.gemm_layers, proof.gemm_share) == (0, None)
    assert proof.attention == dict.fromkeys(BLOCKS, "not visible")
    assert proof.hidden is not None
    assert "{ForeignNode[tokens.weight...logits]}" in proof.hidden
    require_share(proof, 1.0)


def test_one_hidden_subgraph_makes_the_share_unknown_though_other_products_are_seen() -> None:
    hidden = layer("{ForeignNode[a...b]}", "Half", kind="Myelin")
    proof = prove(engine(hidden, layer("classifier.gemm", "Float", "classifier.gemm")))
    assert (proof.gemm_layers, proof.gemm_share) == (1, None)
    assert [item.nodes for item in proof.fallbacks] == [["classifier.gemm"]]


def test_with_dynamic_shapes_version_86_tells_by_tactics_and_weights() -> None:
    proof = prove(stored("trt86_layers.json"))
    assert proof.layers == {"fp16": 3, "fp32": 1, "unknown": 4}
    assert (proof.gemm_layers, proof.gemm_low, proof.gemm_unknown) == (5, 3, 1)
    assert proof.gemm_share == 3 / 4
    assert proof.attention == {BLOCKS[0]: "separate", BLOCKS[1]: "not visible"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"Layers": ["{ForeignNode[a...b]}", "fc"], "Bindings": ["x"]}', "beyond their names"),
        ('{"Layers": [], "Bindings": ["x"]}', "any layer"),
        ("", "any layer"),
    ],
)
def test_below_detailed_verbosity_nothing_is_visible_and_the_proof_says_so(
    text: str, why: str
) -> None:
    proof = prove(text)
    assert (proof.layers, proof.gemm_layers, proof.gemm_share) == ({}, 0, None)
    assert proof.attention == dict.fromkeys(BLOCKS, "not visible")
    assert proof.hidden is not None
    assert why in proof.hidden
    assert "detailed profiling verbosity" in proof.hidden


def test_products_whose_precision_is_not_shown_give_no_share() -> None:
    proof = prove(engine(layer("classifier.gemm", "N/A due to dynamic shapes", "classifier.gemm")))
    assert (proof.gemm_layers, proof.gemm_unknown, proof.gemm_share) == (1, 1, None)


def test_one_kernel_with_scores_and_context_is_fused_whatever_its_name() -> None:
    proof = prove(engine(layer("__myl_Flash_myl0_0", "Half", *core(BLOCKS[1]), kind="kgen")))
    assert proof.attention == {BLOCKS[0]: "not visible", BLOCKS[1]: "fused"}
    assert proof.gemm_low == 1


@pytest.mark.parametrize(("kernels", "state"), [(1, "not visible"), (2, "fused")])
def test_fused_kernels_without_nodes_count_only_if_there_is_one_for_each_block(
    kernels: int, state: str
) -> None:
    names = [f"_gemm_mha_v2_myl0_{n}" for n in range(kernels)]
    proof = prove(engine(*(layer(name, "Half", kind="kgen") for name in names)))
    assert proof.attention == dict.fromkeys(BLOCKS, state)


def test_the_transposes_beside_a_fused_kernel_do_not_make_it_separate() -> None:
    block = BLOCKS[0]
    transposes = layer("__myl_Tran_myl0_0", "Half", f"{block}.scores", kind="kgen")
    fused = layer("_gemm_mha_v2_myl0_1", "Half", *core(block), kind="kgen")
    proof = prove(engine(transposes, fused))
    assert proof.attention[block] == "fused"
    assert proof.gemm_layers == 1


@pytest.mark.parametrize("fused_first", [True, False])
def test_a_block_is_fused_only_where_all_its_products_are(fused_first: bool) -> None:
    block = BLOCKS[0]
    fused = layer("_gemm_mha_v2_myl0_0", "Half", *core(block), kind="kgen")
    apart = layer("layers_0_attention_scores_myl1_0", "Half", f"{block}.scores")
    proof = prove(engine(*((fused, apart) if fused_first else (apart, fused))))
    assert proof.attention[block] == "separate"


def test_two_attentions_in_one_scope_are_two_blocks() -> None:
    nodes = ["scores", "softmax", "context", "scores_2", "softmax_2", "context_2", "softmax_3"]
    proof = prove(engine(layer("_gemm_mha_v2_myl0_0", "Half", *nodes[:3])), nodes=nodes)
    assert proof.attention == {"attention": "fused", "attention_2": "not visible"}


def test_the_gate_names_what_fell_back_and_what_to_do() -> None:
    proof = prove(stored("trt10_mixed.json"))
    with pytest.raises(BuildFailed) as caught:
        require_share(proof, 0.9)
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert "88.9% of the GEMM layers of this fp16 engine" in text
    assert "90.0% is the least" in text
    assert "in FP32 run layers.1.attention.scores." in text
    assert "higher optimization level or more workspace" in text
    require_share(proof, 8 / 9)
    with pytest.raises(BuildFailed, match=r"in FP32 run layers\.1\.attention\.output\.gemm\. "):
        require_share(prove(stored("trt11_two_profiles.json")), 0.9)


def test_an_fp32_engine_has_no_fallbacks_and_no_gate() -> None:
    proof = prove(stored("trt10_mixed.json"), precision="fp32")
    assert proof.fallbacks == []
    require_share(proof, 1.0)
    assert not any("GEMM" in line for line in lines(proof.to_json()))


def test_an_int8_engine_counts_int8_and_fp16_products_as_low() -> None:
    text = engine(
        layer("a_myl0_0", "Int8", "layers.0.attention.query.gemm"),
        layer("b_myl0_1", "Half", "layers.0.attention.scores"),
        layer("c_myl0_2", "Float", "layers.0.attention.context"),
    )
    proof = prove(text, precision="int8-fp16")
    assert proof.layers == {"fp16": 1, "fp32": 1, "int8": 1}
    assert proof.gemm_share == 2 / 3


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.json")))
def test_the_manifests_dict_is_plain_json(name: str) -> None:
    facts = prove(stored(name)).to_json()
    assert json.loads(json.dumps(facts)) == facts


def test_lines_of_a_mixed_engine() -> None:
    assert list(lines(prove(stored("trt10_mixed.json")).to_json())) == [
        "layers: 12 fp16, 4 fp32, 1 integer",
        "GEMM layers below FP32: 8 of 9 (88.9%)",
        "attention: 1 of 2 blocks are one fused kernel; separate: layers.1.attention",
        "in FP32 (kept FP32: mask): mask, mask_2, mask_3, mask_4",
        "in FP32 (a norm's statistics): layers.0.residual, layers.0.norm.norm",
        "in FP32 (TensorRT's choice): layers.1.attention.scores",
        "in FP32 (a conversion of type or layout): logits.cast",
    ]


def test_lines_name_the_weakest_profile_and_what_is_kept_or_unknown() -> None:
    two = list(lines(prove(stored("trt11_two_profiles.json")).to_json()))
    assert two[0] == "layers of profile 1, the weakest of 2: 5 fp16, 3 fp32"
    assert "attention: 2 of 2 blocks are one fused kernel" in two
    keep = {"excluded": ["layers.0.attention.scores"]}
    old = list(lines(prove(stored("trt86_layers.json"), keep=keep).to_json()))
    assert "GEMM layers below FP32: 3 of 3 (100.0%); 1 kept FP32 on purpose, 1 unknown" in old


def test_where_every_product_is_kept_the_lines_do_not_call_them_hidden() -> None:
    proof = prove(engine(layer("a_myl0_0", "Float", QUERY)), keep={"excluded": [QUERY]})
    assert proof.gemm_share is None
    assert "GEMM layers below FP32: none, all are kept FP32 on purpose" in lines(proof.to_json())


def test_where_nothing_is_visible_the_measured_time_stands_in() -> None:
    facts = {**prove(stored("trt86_foreign_node.json")).to_json(), "time_ratio": 0.4321}
    assert list(lines(facts)) == [
        "layers of profile 0, the weakest of 2: 1 unknown",
        "not visible: the kernels inside {ForeignNode[tokens.weight...logits]}, which the "
        "inspector shows as one layer",
        "GEMM layers below FP32: not visible",
        "time: 0.43 of the FP32 engine's",
        "attention: not visible in 2 blocks",
    ]


def test_long_lists_are_shortened() -> None:
    text = engine(*(layer(f"layers.{n}.query.gemm", "Float") for n in range(6)))
    shown = list(lines(prove(text, nodes=[]).to_json()))[-1]
    assert shown == (
        "in FP32 (TensorRT's choice): layers.0.query.gemm, layers.1.query.gemm, "
        "layers.2.query.gemm, layers.3.query.gemm and 2 more"
    )
