"""The precision doctor on models that FP16 breaks on purpose."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from attn_export.benchmarks.diagnosis import diagnose_fp16
from attn_export.benchmarks.diagnosis_error import Error, measure
from attn_export.benchmarks.diagnosis_faults import find_fault, prescribe
from attn_export.benchmarks.diagnosis_islands import islands
from attn_export.benchmarks.diagnosis_pair import Pair
from attn_export.benchmarks.diagnosis_prefixes import open_prefix
from attn_export.benchmarks.diagnosis_result import Diagnosis
from attn_export.errors import BuildFailed, BundleError, UsageError
from attn_export.exporter.eager import run_eager
from attn_export.exporter.export import export_graph, write_checked
from attn_export.exporter.fp16 import to_fp16
from attn_export.exporter.graph_file import read_graph
from attn_export.exporter.keep import KeepList, keep_list
from attn_export.exporter.source import ModelSource, load_model
from attn_export.exporter.twin import write_twin

MODELS = Path(__file__).with_name("overflowing.py")
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Broken:
    """A graph, inputs and the outputs that eager PyTorch makes of them."""

    path: Path
    cases: list[tuple[Arrays, Arrays]]
    allowed: dict[str, tuple[float, float]]

    @property
    def feeds(self) -> list[Arrays]:
        return [feeds for feeds, _ in self.cases]


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Broken]:
    """Export one of the models; the same call gives the same files."""
    made: dict[str, Broken] = {}

    def export(factory: str) -> Broken:
        if factory not in made:
            path = tmp_path_factory.mktemp(factory) / "model.onnx"
            model = load_model(ModelSource(model=f"{MODELS}:{factory}"))
            feeds = [feeds_of(1, 3), feeds_of(2, 9)]
            feeds = [{spec.name: one[spec.name] for spec in model.inputs} for one in feeds]
            cases = [(one, run_eager(model.module, one)) for one in feeds]
            outputs = export_graph(model, path, lowering="expand", metadata={})
            made[factory] = Broken(path, cases, {spec.name: (5e-3, 5e-3) for spec in outputs})
        return made[factory]

    return export


def feeds_of(batch: int, length: int) -> Arrays:
    rng = np.random.default_rng([batch, length])
    mask = np.ones((batch, length), np.int32)
    mask[-1, length // 2 :] = 0
    return {
        "input_ids": rng.integers(0, 40, (batch, length), dtype=np.int32),
        "attention_mask": mask,
    }


def diagnose(model: Broken, folder: Path, **options: Any) -> Diagnosis:
    return diagnose_fp16(model.path, folder, model.cases, allowed=model.allowed, **options)


def type_and_twin(full: Path, folder: Path, keep: KeepList | None = None) -> Path:
    """The rounding twin with the usual keep-list, or with this one."""
    graph = read_graph(full)
    to_fp16(graph, keep_list(graph) if keep is None else keep, fp16_io=False)
    write_twin(folder / "half.onnx", write_checked(graph, folder / "half.onnx"), folder / "t.onnx")
    return folder / "t.onnx"


def run_onnx(path: Path, feeds: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def save(
    nodes: list[onnx.NodeProto],
    weights: Arrays,
    path: Path,
    *,
    opset: int = 17,
    outputs: tuple[str, ...] = ("y",),
) -> Path:
    """A graph from x [2, 4] to y [2, 4] or others of that shape."""
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4])],
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 4]) for n in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def node(op: str, inputs: list[str], name: str, output: str = "") -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, [output or name], name=name)


# Models that overflow


@pytest.mark.parametrize(
    ("factory", "kind", "culprit", "role", "pins"),
    [
        (
            "large_scores",
            "overflow",
            "layers.1.scores",
            "scores",
            ["layers.1.scores", "layers.1.mask_add", "layers.1.softmax"],
        ),
        (
            "harsh_mask",
            "overflow",
            "layers.1.scores",
            "scores",
            ["layers.1.scores", "layers.1.mask_add", "layers.1.softmax"],
        ),
        (
            "all_large_scores",
            "overflow",
            "layers.0.scores",
            "scores",
            [f"layers.{i}.{op}" for i in (0, 1) for op in ("scores", "mask_add", "softmax")],
        ),
        (
            "coarse_scores",
            "rounding",
            "layers.1.scores",
            "scores",
            ["layers.1.scores", "layers.1.mask_add", "layers.1.softmax"],
        ),
        (
            "growing_residual",
            "overflow",
            "residual_2",
            "residual",
            [
                *("residual_2", "norms.3.norm", "residual_3", "norms.4.norm"),
                *("residual_4", "last.norm"),
            ],
        ),
        ("outlier_norm", "overflow", "norm.mul", "norm", ["norm.mul"]),
        (
            "cancellation",
            "rounding",
            "layers.1.add",  # where the values are larger
            "add",
            [f"layers.{i}.{op}" for i in (0, 1) for op in ("add", "transpose", "sub")],
        ),
    ],
)
def test_the_operator_is_named_pinned_and_parity_holds_after(
    broken: Callable[[str], Broken],
    tmp_path: Path,
    *,
    factory: str,
    kind: str,
    culprit: str,
    role: str,
    pins: list[str],
) -> None:
    model = broken(factory)
    found = diagnose(model, tmp_path)
    assert not found.before.passed
    assert [(s.fault.kind, s.fault.node, s.fault.role) for s in found.steps] == [
        (kind, culprit, role)
    ]
    assert (found.passed, found.after.passed) == (True, True)
    assert list(found.pins) == pins
    # As a build types it from then on:
    graph = read_graph(model.path)
    keep = keep_list(graph, nodes=found.patterns())
    assert keep == found.keep
    twin = type_and_twin(model.path, tmp_path, keep)
    for feeds, expected in model.cases:
        for name, array in run_onnx(twin, feeds).items():
            np.testing.assert_allclose(array, expected[name], atol=5e-3, rtol=5e-3)


def test_the_fault_tells_the_fp32_value_and_the_room_there_was(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    fault = diagnose(broken("outlier_norm"), tmp_path).steps[0].fault
    assert fault.culprit.fp32_max == 4 * (2**14 + 2**13)  # weight times outlier
    assert fault.culprit.headroom == 65504 / 98304
    assert fault.culprit.error_before < 1e-3
    assert fault.culprit.error_after == math.inf
    assert str(fault) == "norm.mul (a norm) overflows: 9.83e+04 in FP32, FP16 ends at 65504"


def test_the_statistics_of_a_norm_in_parts_are_found_where_nothing_kept_them(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    model = broken("outlier_statistics")
    typed = type_and_twin(model.path, tmp_path, keep={})
    fault = find_fault(model.path, typed, model.feeds, allowed=model.allowed)
    assert fault is not None
    assert (fault.kind, fault.node, fault.role) == (
        "overflow",
        "norm.norm_statistics",
        "norm_statistics",
    )
    assert fault.culprit.fp32_max == (2**14 + 2**13) ** 2
    statistics = keep_list(read_graph(model.path))["norm_statistics"]
    assert set(statistics) <= set(prescribe(fault))
    typed = type_and_twin(model.path, tmp_path, keep={"doctor": prescribe(fault)})
    assert find_fault(model.path, typed, model.feeds, allowed=model.allowed) is None


def test_what_becomes_zero_is_named_and_not_what_divides_by_it(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    found = diagnose(broken("divided"), tmp_path)
    assert found.passed
    kinds = {step.fault.node: step.fault.kind for step in found.steps}
    assert kinds["reciprocal"] == "overflow"  # 1e6 in FP32 too
    assert kinds["mul_2"] == "underflow"  # the square, 1e-10
    square = next(step for step in found.steps if step.fault.node == "mul_2")
    assert square.fault.culprit.flushed == 1.0
    assert "sqrt" in square.pins


def test_an_underflow_that_stays_finite_is_told_from_rounding(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    found = diagnose(broken("vanishing"), tmp_path)
    assert found.passed
    assert (found.steps[0].fault.kind, found.steps[0].fault.node) == ("underflow", "mul_2")
    assert found.steps[-1].fault.kind == "rounding"


def test_pins_that_are_not_needed_are_taken_back(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    found = diagnose(broken("jointly"), tmp_path)
    assert found.passed
    assert [(step.fault.node, step.kept) for step in found.steps] == [
        ("mul_2", False),
        ("exp", True),
    ]
    assert "mul_2" not in found.pins
    assert "(not needed in the end)" in "\n".join(found.lines())


def test_a_model_without_a_fault_is_left_alone(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    found = diagnose(broken("outlier_statistics"), tmp_path)
    assert (found.passed, found.steps, found.pins) == (True, (), ())
    assert found.lines() == [f"nothing is wrong: {found.after}"]


# What it leaves, and what it says


def test_the_graph_is_not_touched_and_nothing_is_left_behind(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    model = broken("large_scores")
    before = hashlib.sha256(model.path.read_bytes()).hexdigest()
    diagnose(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert hashlib.sha256(model.path.read_bytes()).hexdigest() == before
    assert [path.name for path in model.path.parent.iterdir()] == ["model.onnx"]


def test_it_says_what_each_island_costs(broken: Callable[[str], Broken], tmp_path: Path) -> None:
    found = diagnose(broken("large_scores"), tmp_path)
    (island,) = found.islands
    assert (island.nodes, island.splits_attention) == (found.pins, True)
    assert island.casts == 3  # query and key in, softmax out; the mask is FP32 already
    assert found.casts[1] - found.casts[0] == 3
    assert 0 < island.flops_share < 0.1
    text = "\n".join(found.lines())
    assert "layers.1.scores (QK^T) overflows: 1e+05 in FP32" in text
    assert "this attention is no longer fused" in text
    assert text.endswith("parity holds")


def test_it_becomes_json_without_infinities(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    data = json.loads(json.dumps(diagnose(broken("large_scores"), tmp_path).to_json()))
    json.dumps(data, allow_nan=False)
    assert data["passed"]
    assert data["before"]["excess"] is None
    assert data["steps"][0]["fault"]["culprit"]["role"] == "scores"


def test_each_fault_is_told_as_it_is_found(broken: Callable[[str], Broken], tmp_path: Path) -> None:
    said: list[str] = []
    found = diagnose(broken("vanishing"), tmp_path, say=said.append)
    assert said == [str(step.fault) for step in found.steps]


def test_what_was_kept_already_stays_and_is_not_counted(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    found = diagnose(broken("large_scores"), tmp_path, nodes=[r"layers\.1\.softmax"])
    assert found.pins == ("layers.1.scores", "layers.1.mask_add")
    assert "layers.1.softmax" in found.keep["excluded"]


# Where it cannot help


def test_an_error_of_the_fp32_graph_itself_is_not_treated(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    model = broken("large_scores")
    cases = [(feeds, {n: a + 1 for n, a in right.items()}) for feeds, right in model.cases]
    found = diagnose_fp16(model.path, tmp_path, cases, allowed=model.allowed)
    assert not found.passed
    assert found.steps == ()
    assert found.reason.startswith("the FP32 graph itself is off: max |difference| 1")
    assert found.lines()[-1].endswith(found.reason)


def test_a_tolerance_that_fp16_cannot_meet_ends_in_an_honest_failure(
    broken: Callable[[str], Broken], tmp_path: Path
) -> None:
    model = broken("outlier_statistics")
    with_fp32 = [(feeds, run_onnx(model.path, feeds)) for feeds in model.feeds]
    allowed = dict.fromkeys(model.allowed, (1e-9, 0.0))
    found = diagnose_fp16(model.path, tmp_path, with_fp32, allowed=allowed)
    assert not found.passed
    assert not found.after.passed
    assert found.steps
    assert found.reason


def test_an_fp16_input_beyond_its_range_is_told(tmp_path: Path) -> None:
    full = save(
        [node("Mul", ["x", "c"], "m"), node("Add", ["m", "c"], "a", "y")],
        {"c": np.full(1, 1e-2, np.float32)},
        tmp_path / "full.onnx",
    )
    feeds: Arrays = {"x": np.full((2, 4), 1e5, np.float32)}
    cases = [(feeds, run_onnx(full, feeds))]
    allowed = {"y": (5e-3, 5e-3)}
    found = diagnose_fp16(full, tmp_path, cases, allowed=allowed, fp16_io=True)
    assert found.reason == "the input 'x' is beyond FP16's range; take it in FP32"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"nodes": ["no.such.node"]}, UsageError, r"nothing in the graph matches no\.such\.node"),
        ({"nodes": [".*"]}, BuildFailed, "covers every node"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    broken: Callable[[str], Broken],
    tmp_path: Path,
    options: dict[str, list[str]],
    error: type[Exception],
    match: str,
) -> None:
    with pytest.raises(error, match=match):
        diagnose(broken("divided"), tmp_path, **options)


# Q/DQ graphs


def quantized(full: Path, path: Path, spoiled: str) -> Path:
    """Q/DQ before every product with a weight; one activation's scale is 60 times too large."""
    model = read_graph(full)
    graph = model.graph
    for product in [n for n in graph if n.op_type == "MatMul"]:
        value, weight = product.inputs
        if value is None or weight is None or weight.const_value is None:
            continue
        largest = {value: 4.0 * (60 if product.name == spoiled else 1)}
        largest[weight] = float(np.abs(weight.const_value.numpy()).max())
        for index, tensor in enumerate((value, weight)):
            name = f"{product.name}.{index}"
            scale = ir.tensor(np.float32(largest[tensor] / 127), name=f"{name}.scale")
            zero = ir.tensor(np.int8(0), name=f"{name}.zero")
            constants = [ir.Value(name=t.name, const_value=t) for t in (scale, zero)]
            for constant in constants:
                graph.initializers[constant.name or ""] = constant
            q = ir.node("QuantizeLinear", [tensor, *constants], name=f"{name}.q")
            dq = ir.node("DequantizeLinear", [q.outputs[0], *constants], name=f"{name}.dq")
            q.outputs[0].name, dq.outputs[0].name = q.name, dq.name
            graph.insert_before(product, [q, dq])
            product.replace_input_with(index, dq.outputs[0])
    ir.save(model, path)
    return path


@pytest.mark.parametrize("spoiled", ["layers.0.value.gemm", "layers.1.output.gemm"])
def test_a_spoiled_scale_is_found_in_a_quantized_graph(
    broken: Callable[[str], Broken], tmp_path: Path, spoiled: str
) -> None:
    model = broken("large_scores")
    typed = quantized(model.path, tmp_path / "int8.onnx", spoiled)
    fault = find_fault(model.path, typed, model.feeds, allowed={"output": (0.2, 0.2)})
    assert fault is not None
    assert (fault.kind, fault.node, fault.role) == ("quantization", spoiled, "gemm")
    assert prescribe(fault)[0] == spoiled
    assert "layers.0.query.gemm" not in prescribe(fault)


# Prefixes


@pytest.mark.parametrize("factory", ["large_scores", "outlier_norm", "cancellation"])
def test_all_typed_is_the_twin_and_none_typed_is_fp32(
    broken: Callable[[str], Broken], tmp_path: Path, factory: str
) -> None:
    model = broken(factory)
    twin = type_and_twin(model.path, tmp_path)
    pair = Pair(model.path, twin)
    for low, file in (([n.name or "" for n in pair.nodes], twin), ([], model.path)):
        mix = open_prefix(pair, pair.outputs, low=low)
        for feeds in model.feeds:
            for name, array in run_onnx(file, feeds).items():
                # Runtimes may add up in another order, which FP16 then rounds to a neighbour.
                np.testing.assert_allclose(mix.run(feeds)[name], array, atol=2e-3, rtol=2e-3)


def test_one_typed_node_rounds_its_own_result_alone(tmp_path: Path) -> None:
    """x + 2048.5 in steps of 2, and 1.5 x as it is, because the other node is FP32."""
    full = save(
        [
            node("Add", ["x", "big"], "sum"),
            node("Sub", ["sum", "big"], "back"),
            node("Mul", ["back", "factor"], "product", "y"),
        ],
        {"big": np.full(1, 2048, np.float32), "factor": np.full(1, 1.5, np.float32)},
        tmp_path / "full.onnx",
    )
    pair = Pair(full, type_and_twin(full, tmp_path, keep={}))
    assert pair.typed_nodes == ("sum", "back", "product")
    feeds: Arrays = {"x": np.full((2, 4), 2.75, np.float32)}
    values = {
        low: open_prefix(pair, ["y"], low=[low]).run(feeds)["y"][0, 0] for low in pair.typed_nodes
    }
    assert values == {"sum": 1.5 * 2, "back": 1.5 * 2.75, "product": 1.5 * 2.75}
    sums = open_prefix(pair, ["sum"], low=["sum"]).run(feeds)["sum"]
    assert sums.dtype == np.float32
    assert sums.tolist() == [[2050.0] * 4] * 2


@pytest.mark.parametrize("low", [[], ["double"], ["half"], ["double", "half"]])
def test_an_output_that_is_also_read_inside_may_be_typed_or_not(
    tmp_path: Path, low: list[str]
) -> None:
    """2 x 1025.25 is 2050.5; FP16 has steps of 2 there, and of 1 at the half of it."""
    full = save(
        [node("Mul", ["x", "two"], "double", "y"), node("Div", ["y", "two"], "half", "z")],
        {"two": np.full(1, 2, np.float32)},
        tmp_path / "full.onnx",
        outputs=("y", "z"),
    )
    pair = Pair(full, type_and_twin(full, tmp_path, keep={}))
    feeds: Arrays = {"x": np.full((2, 4), 1025.25, np.float32)}
    found = open_prefix(pair, ["y", "z"], low=low).run(feeds)
    y = 2050.0 if "double" in low else 2050.5
    z = 1025.0 if "half" in low else y / 2
    assert (found["y"][0, 0], found["z"][0, 0]) == (y, z)


def test_graphs_of_two_models_are_refused(broken: Callable[[str], Broken], tmp_path: Path) -> None:
    one, other = broken("cancellation"), broken("divided")
    with pytest.raises(BundleError, match="is no typing of"):
        Pair(one.path, type_and_twin(other.path, tmp_path))


def test_graphs_of_two_opsets_are_refused(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], "r", "y")]
    old, new = (save(nodes, {}, tmp_path / f"{opset}.onnx", opset=opset) for opset in (17, 19))
    with pytest.raises(BundleError, match="the opsets are 17 and 19"):
        Pair(old, new)


# Errors and islands


def test_errors_are_multiples_of_what_is_allowed() -> None:
    expected = {"a": np.array([1.0, 10.0]), "b": np.array([0.0])}
    got = {"a": np.array([1.5, 11.0]), "b": np.array([0.25])}
    allowed = {"a": (0.5, 0.5), "b": (0.125, 0.0)}
    # 0.5 of 0.5 + 0.5; 1 of 0.5 + 5; 0.25 of 0.125
    assert measure(got, expected, allowed) == Error(max_abs=1.0, excess=2.0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_value_with_no_expectation_need_only_be_finite(bad: float) -> None:
    expected = {"a": np.array([1.0, math.nan])}
    allowed = {"a": (0.5, 0.0)}
    assert measure({"a": np.array([1.25, 1e9])}, expected, allowed).excess == 0.5
    error = measure({"a": np.array([1.25, bad])}, expected, allowed)
    assert (error.passed, error.excess, error.nonfinite) == (False, math.inf, 1)


def test_without_tolerance_only_the_same_number_passes() -> None:
    expected = {"a": np.array([1.0])}
    assert measure({"a": np.array([1.0])}, expected, {"a": (0.0, 0.0)}).passed
    assert not measure({"a": np.array([1.0 + 1e-12])}, expected, {"a": (0.0, 0.0)}).passed


def test_islands_are_counted_by_hand(tmp_path: Path) -> None:
    """x - a - b - c - y with b read by d as well: {a, b} and {d} are two islands."""
    full = save(
        [
            node("Relu", ["x"], "a"),
            node("Tanh", ["a"], "b"),
            node("Exp", ["b"], "c"),
            node("Sqrt", ["c"], "d"),
            node("Add", ["b", "d"], "e", "y"),
        ],
        {},
        tmp_path / "full.onnx",
    )
    flops = {"a": 10, "b": 20, "c": 30, "d": 30, "e": 10}
    found = islands(read_graph(full), {"a", "b", "d"}, {"a", "b", "d"}, flops)
    assert [(island.nodes, island.casts, island.flops_share) for island in found] == [
        (("a", "b"), 1, 0.3),  # out: b; x is FP32
        (("d",), 2, 0.3),  # in: c; out: d
    ]
    assert not any(island.splits_attention for island in found)
    found = islands(read_graph(full), {"a", "b", "d"}, {"a", "b", "c", "d"}, flops)
    assert [island.casts for island in found] == [1, 1]  # c was FP32 already
