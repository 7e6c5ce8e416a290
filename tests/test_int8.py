"""INT8 from real requests to a gated engine, and each way it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import attn_export
from attn_export import build as builder
from attn_export import gates
from attn_export.bundle import Bundle, write_manifest
from attn_export.cli import main
from attn_export.engines.session import CompileOptions
from attn_export.errors import GateFailed, Inconclusive
from attn_export.exporter.lint import lint_file
from attn_export.manifest import EngineRecord, Manifest

SIZES = {"hidden-size": 64, "heads": 4, "layers": 2, "vocab-size": 60, "positions": 16}
SMALL = [part for name, size in SIZES.items() for part in (f"--{name}", str(size))]
SMALL += ["--buckets", "2", "--no-speed-gate"]
ONE = ["--backend", "onnxruntime"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 requests of 2 to 16 tokens."""
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("data") / "requests.jsonl"
    rows = [rng.integers(0, 60, int(rng.integers(2, 17))).tolist() for _ in range(300)]
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    directory = tmp_path_factory.mktemp("int8") / "bundle"
    asked = ["--min-agreement", "0.8", "--calibration-samples", "64"]
    result = call(
        "build", "--fp16", "--int8", "gqa", *SMALL, *ONE, *asked, "--data", data, "-o", directory
    )
    assert result.exit_code == 0, result.output
    return directory


def test_an_engine_is_held_to_fp32_on_the_requests_itself(made: Path) -> None:
    engine = Bundle.open(made).manifest.engines["onnxruntime-int8"]
    assert engine.accuracy is not None
    assert engine.accuracy["accepted"]
    graph = Bundle.open(made).manifest.graphs["int8-cpu"].quantization["accuracy"]
    assert engine.accuracy["results"][0]["requests"] == graph[0]["requests"] == 300
    assert engine.accuracy["results"][0]["labels"] == pytest.approx(graph[0]["labels"], abs=0.02)


def test_a_build_has_three_int8_graphs_from_one_calibration(made: Path) -> None:
    bundle = Bundle.open(made)
    graphs = bundle.manifest.graphs
    assert {"int8", "int8-fp16", "int8-cpu"} <= set(graphs)
    for record in bundle.manifest.files:
        bundle.verify(record)
    facts = [graphs[key].quantization for key in ("int8", "int8-fp16", "int8-cpu")]
    assert {fact["requests"] for fact in facts} == {64}
    assert {fact["seen"] for fact in facts} == {300}
    assert len({fact["sha256"] for fact in facts}) == 1
    assert all(fact["accepted"] for fact in facts)
    methods = graphs["int8"].quantization["methods"]
    nearest = max(methods, key=lambda method: methods[method][0]["sqnr_db"])
    assert {fact["method"] for fact in facts} == {nearest}
    assert (graphs["int8"].summary["opset"], graphs["int8-fp16"].summary["opset"]) == (17, 19)
    assert (made / "calibration.json").exists()


@pytest.mark.parametrize(
    ("graph", "version"),
    [
        ("model.int8.onnx", "tensorrt-8.6"),
        ("model.int8.onnx", "tensorrt-10"),
        ("model.int8-fp16.onnx", "tensorrt-10"),
        ("model.int8-fp16.onnx", "tensorrt-11"),
    ],
)
def test_the_q_dq_graphs_keep_tensorrts_rules(made: Path, graph: str, version: str) -> None:
    assert [f.text for f in lint_file(made / graph, version) if f.severity == "error"] == []


def test_the_engine_is_proven_raced_and_served(made: Path) -> None:
    engine = Bundle.open(made).manifest.engines["onnxruntime-int8"]
    assert engine.graph == "int8-cpu"
    assert engine.parity is not None
    assert engine.parity["passed"]
    assert engine.race is not None
    assert engine.race["rival"] == "onnxruntime-fp32"
    with attn_export.load(made, precision="int8") as loaded:
        assert loaded.run_many([[1, 2, 3], [4, 5]])["logits"][0].shape == (3,)


def test_inspect_shows_ranges_accuracy_and_speed(made: Path) -> None:
    shown = call("inspect", made).stdout
    for words in (
        "64 of 300 requests of",
        "ranges by ",
        "equal labels, mean cosine",
        "times as fast as onnxruntime-fp32",
    ):
        assert words in shown


def test_random_ids_calibrate_nothing_unless_asked_for(tmp_path: Path) -> None:
    refused = call("build", "--int8", "mqa", *SMALL, "-o", tmp_path / "b")
    assert refused.exit_code == 2
    assert "random ids calibrate nothing" in refused.stderr
    assert not (tmp_path / "b").exists()
    asked = ["--allow-synthetic", "--min-agreement", "0", "--calibration-samples", "16"]
    assert call("build", "--int8", "mqa", *SMALL, *ONE, *asked, "-o", tmp_path / "b").exit_code == 0
    graphs = Bundle.open(tmp_path / "b").manifest.graphs
    assert graphs["int8"].quantization["data"] == "synthetic: uniform ids"


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_calibrate_makes_a_bundles_int8_anew(made: Path, data: Path, method: str) -> None:
    result = call(
        "calibrate", made, "--data", data, "--calibration-method", method, "--json",
        "--min-agreement", "0.5", "--calibration-samples", "32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["int8"]["method"] == method
    bundle = Bundle.open(made)
    assert "onnxruntime-int8" not in bundle.manifest.engines
    assert "onnxruntime-fp32" in bundle.manifest.engines
    for record in bundle.manifest.files:
        bundle.verify(record)
    again = call("compile", made, "--backend", "onnxruntime", "--no-speed-gate")
    assert again.exit_code == 0, again.output
    assert "onnxruntime-int8" in Bundle.open(made).manifest.engines


def test_excluded_nodes_and_files_of_them_stay_fp32(made: Path, data: Path, tmp_path: Path) -> None:
    names = tmp_path / "keep.txt"
    names.write_text("layers.0.attention.query.gemm\n\n")
    given = ["--int8-exclude", f"@{names}", "--int8-exclude", r"layers\.1\..*"]
    result = call(
        "calibrate", made, "--data", data, *given, "--min-agreement", "0",
        "--calibration-samples", "32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    graph = onnx.load(made / "model.int8.onnx").graph
    producers = {name: node.op_type for node in graph.node for name in node.output}
    quantized = {
        node.name
        for node in graph.node
        if node.op_type == "MatMul"
        and any(producers.get(name) == "DequantizeLinear" for name in node.input)
    }
    assert "layers.0.attention.key.gemm" in quantized
    assert "layers.0.attention.query.gemm" not in quantized
    assert not [name for name in quantized if name.startswith("layers.1.")]
    assert call("calibrate", made, "--data", data, "--int8-exclude", "@none").exit_code == 2


def test_what_is_not_near_enough_fails_and_is_not_served(tmp_path: Path, data: Path) -> None:
    asked = ["--min-cosine", "1", "--calibration-samples", "32"]
    made = [*SMALL, *ONE, *asked, "--data", str(data), "-o", str(tmp_path / "b")]
    result = call("build", "--int8", "mqa", *made)
    assert result.exit_code == 1
    assert "onnxruntime-int8 is not near enough to FP32" in result.stderr
    with attn_export.load(tmp_path / "b") as engine:
        assert engine.precision == "fp32"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no"),
        ('{"input_ids": [1, 2]}\n{"input_ids": [1, 60]}\n', "line 2"),
        ('{"text": "hello"}\n', "tokenizer"),
        ('{"input_ids": [1]}\nnot json\n', "line 2"),
    ],
)
def test_bad_data_is_named_and_changes_nothing(
    made: Path, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    before = (made / "manifest.json").read_bytes()
    result = call("calibrate", made, "--data", tmp_path / "bad.jsonl")
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert (made / "manifest.json").read_bytes() == before


def test_broken_rows_may_be_left_out(made: Path, tmp_path: Path, data: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(f"not json\n{data.read_text()}")
    asked = ["--skip-bad-rows", "--min-agreement", "0", "--calibration-samples", "32"]
    result = call("calibrate", made, "--data", tmp_path / "bad.jsonl", *asked)
    assert result.exit_code == 0, result.output
    assert "1 broken rows were left out" in result.stderr


def test_tensorrt_takes_the_graph_of_its_kind(
    made: Path,
    tmp_path: Path,
    tensorrt_double: Callable[[str], Any],
    cuda_double: Any,
    tensorrt_version: str,
) -> None:
    trt = tensorrt_double(tensorrt_version)
    directory = shutil.copytree(made, tmp_path / "bundle")
    report = builder.compile_bundle(
        directory,
        backend="tensorrt",
        options=CompileOptions(least_fp16_share=0.0),
        tolerances=None,
        say=lambda text: None,
    )
    gates.require_parity(report)
    engines = Bundle.open(directory).manifest.engines
    engine = next(e for e in engines.values() if e.backend == "tensorrt" and e.precision == "int8")
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        assert engine.graph == "int8-fp16"
        assert engine.environment["flags"] == ["STRONGLY_TYPED"]
    else:
        assert engine.graph == "int8"
        assert {"INT8", "FP16"} <= set(engine.environment["flags"])
    assert engine.race is not None
    assert engine.race["rival"].startswith("tensorrt-fp16")


@pytest.mark.parametrize(
    ("race", "error"),
    [
        ({"rival": "x", "median": 2.0, "low": 1.5, "high": 3.0}, None),
        ({"rival": "x", "median": 0.5, "low": 0.4, "high": 0.6}, GateFailed),
        ({"rival": "x", "median": 1.1, "low": 0.9, "high": 1.3}, Inconclusive),
    ],
)
def test_an_int8_engine_has_to_be_faster(
    made: Path, tmp_path: Path, race: dict[str, Any], error: type[Exception] | None
) -> None:
    manifest = Bundle.open(made).manifest
    engine = int8_engine(manifest)
    engine.race = race
    write_manifest(tmp_path, manifest)
    report = report_of(engine.name)
    gates.require_worth(tmp_path, report, speed_gate=False)
    if error is None:
        gates.require_worth(tmp_path, report)
        return
    with pytest.raises(error):
        gates.require_worth(tmp_path, report)


def test_of_several_backends_one_int8_engine_has_to_be_worth_it(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = Bundle.open(made).manifest
    engine = int8_engine(manifest)
    other = replace(engine, backend="other", accuracy={"accepted": False, "results": []})
    manifest.engines[other.name] = other
    write_manifest(tmp_path, manifest)
    assert not manifest.passed(other)
    gates.require_worth(tmp_path, report_of(engine.name, other.name), speed_gate=False)
    assert "other-int8 is not near enough to FP32" in caplog.text
    with pytest.raises(GateFailed, match="other-int8 is not near enough"):
        gates.require_worth(tmp_path, report_of(other.name), speed_gate=False)


def int8_engine(manifest: Manifest) -> EngineRecord:
    """An INT8 engine in a manifest, without a race."""
    manifest.graphs["int8-cpu"].quantization["accepted"] = True
    found = replace(manifest.engines["onnxruntime-fp32"], precision="int8", graph="int8-cpu")
    manifest.engines[found.name] = found
    return found


def report_of(*engines: str) -> Any:
    """A parity report as far as the gate reads it."""
    return SimpleNamespace(engines=[SimpleNamespace(engine=name) for name in engines])


def test_sensitivity_writes_a_list_that_calibrate_takes(made: Path, data: Path) -> None:
    asked = ["--data", str(data), "--calibration-samples", "64"]
    result = call("calibrate", made, *asked, "--sensitivity", "--min-agreement", "1", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"layer", "role"} <= {row["kind"] for row in report["rows"]}
    excludes = made / "reports" / "int8-exclude.txt"
    assert excludes.read_text().split() == report["excludes"]
    given = ["--int8-exclude", f"@{excludes}"] if report["excludes"] else []
    again = call("calibrate", made, *asked, *given, "--min-agreement", "0")
    assert again.exit_code == 0, again.output
