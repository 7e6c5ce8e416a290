"""The whole check on a tiny bundle with real workers, for moments only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper

from attn_export.benchmarks import duel
from attn_export.benchmarks.check_decision import LOOKS
from attn_export.bundle import Bundle, file_record, write_manifest
from attn_export.check import CheckOptions, check_bundle
from attn_export.cli_check import check
from attn_export.errors import BundleError, InputError, UsageError
from attn_export.options import Group

from .benchmarks.recorded_bench import recorded_bench

FP32, FP16 = "onnxruntime-fp32", "onnxruntime-fp16"
TINY = ["--vocab-size", "50", "--hidden-size", "32", "--heads", "4", "--layers", "2"]
TINY += ["--positions", "16"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an FP32 and an FP16 engine."""
    from attn_export.cli import main

    directory = tmp_path_factory.mktemp("check") / "bundle"
    arguments = ["build", "mqa", *TINY, "--fp16", "--backend", "onnxruntime", "-o", str(directory)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return directory


@pytest.fixture
def directory(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def _moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})  # one thread
    monkeypatch.setattr(duel, "TURN_S", 0.01)
    monkeypatch.setattr(duel, "WARM_UP_S", 0.0)
    monkeypatch.setattr(duel, "SETTLE_S", 0.0)


def run(*arguments: str | Path) -> Result:
    group = Group(name="attn-export", commands={"check": check})
    return CliRunner().invoke(group, ["check", *map(str, arguments)])


def verdicts(directory: Path) -> dict[str, str]:
    kept = json.loads((directory / "reports" / "check.json").read_text())
    return {f"{r['gate']}:{r['engine']}": r["verdict"] for r in kept["results"]}


def slow_down(directory: Path, times: int) -> None:
    """Make the FP32 graph compute each product several times and take the mean."""
    bundle = Bundle.open(directory)
    path = directory / "model.onnx"
    model = onnx.load(path)
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type != "MatMul":
            nodes.append(node)
            continue
        out = node.output[0]
        names = [f"{out}.{number}" for number in range(times)]
        first, *others = node.input[0], *(f"{out}.in.{n}" for n in range(1, times))
        for number, name in enumerate(others, 1):  # an input of its own: equal nodes are merged
            scale = f"{out}.one.{number}"
            value = 1.0 + 1e-7 * number
            model.graph.initializer.append(helper.make_tensor(scale, 1, [], [value]))
            nodes.append(helper.make_node("Mul", [first, scale], [name]))
        for source, name in zip([first, *others], names, strict=True):
            nodes.append(helper.make_node("MatMul", [source, node.input[1]], [name]))
        nodes.append(helper.make_node("Mean", names, [out]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    bundle.manifest.graphs["fp32"].files[0] = file_record(path, root=directory)
    write_manifest(directory, bundle.manifest)


def test_parity_alone_needs_no_measurement(directory: Path) -> None:
    result = run(directory)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("PASS: 2 pass\n")
    assert verdicts(directory) == {f"parity:{FP32}": "pass", f"parity:{FP16}": "pass"}


def test_a_slow_build_fails_against_its_baseline_and_every_form_says_so(
    built: Path, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(directory, 40)
    summary, junit = tmp_path / "summary.md", tmp_path / "out" / "check.xml"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = run(directory, "--baseline", built, "--engine", FP32, "--junit", junit, "--json")
    assert result.exit_code == 1, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((directory / "reports" / "check.json").read_text())
    assert (printed["verdict"], printed["exit_code"]) == ("FAIL", 1)
    parity, regression = printed["results"]
    assert (parity["verdict"], regression["verdict"]) == ("pass", "fail")
    assert regression["ratio"]["high"] < regression["limit"] == 0.95
    assert regression["rounds"] in LOOKS
    assert f"regression:{FP32}" in result.stderr.splitlines()[-1]
    assert "FAIL: 1 pass, 1 fail" in summary.read_text()
    assert len(ET.parse(junit).findall(".//failure")) == 1


def test_one_duel_with_eager_answers_for_the_speed_up_and_for_a_record(
    directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bench.json"
    slower = recorded_bench(Bundle.open(directory), engine=[2.0] * 9, eager=[1000.0] * 9)
    path.write_text(json.dumps(slower.to_json()))
    result = run(directory, "--baseline", path, "--min-speedup", "1e9")
    assert result.exit_code == 1, result.output
    assert "times eager-padded, to exceed 1e+09; " in result.stderr.splitlines()[-1]
    assert verdicts(directory) == {
        f"parity:{FP32}": "pass",
        f"parity:{FP16}": "pass",
        f"speedup:{FP16}": "skipped",
        f"regression:{FP16}": "skipped",
        f"speedup:{FP32}": "fail",
        f"regression:{FP32}": "pass",
    }
    kept = json.loads((directory / "reports" / "check.json").read_text())
    speedup, regression = kept["results"][-2:]
    assert speedup["ratios"] == regression["ratios"]


def test_an_engine_that_breaks_has_its_row_and_the_others_theirs(
    built: Path, directory: Path
) -> None:
    (directory / "model.fp16.onnx").write_bytes(b"no graph")
    result = run(directory, "--baseline", built)
    assert result.exit_code == 4, result.output
    found = verdicts(directory)
    assert found[f"parity:{FP16}"] == "error"
    assert found[f"parity:{FP32}"] == "pass"
    assert f"regression:{FP32}" in found


def test_a_contestant_that_hangs_has_its_row(
    built: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attn_export.benchmarks.process.LIMIT_S", 0.01)
    result = run(directory, "--baseline", built)
    assert result.exit_code == 3, result.output
    assert verdicts(directory)[f"regression:{FP32}"] == "error"
    assert "its process was ended" in result.stdout


def test_a_parity_that_hangs_has_its_rows(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attn_export.check_parity.LIMIT_S", 0.01)
    result = run(directory)
    assert result.exit_code == 3, result.output
    assert verdicts(directory) == {f"parity:{FP32}": "error", f"parity:{FP16}": "error"}
    assert f"parity of {FP32}: no answer to" in result.stdout


def test_an_engine_that_fails_on_a_request_is_broken_and_not_skipped(directory: Path) -> None:
    path = directory / "model.onnx"
    model = onnx.load(path)
    out = model.graph.output[0].name
    last = next(node for node in model.graph.node if out in node.output)
    last.output[list(last.output).index(out)] = "free"
    model.graph.initializer.append(helper.make_tensor("two", onnx.TensorProto.INT64, [2], [2, 3]))
    model.graph.node.append(helper.make_node("Reshape", ["free", "two"], [out]))
    onnx.save(model, path)
    bundle = Bundle.open(directory)
    bundle.manifest.graphs["fp32"].files[0] = file_record(path, root=directory)
    write_manifest(directory, bundle.manifest)
    result = run(directory)
    assert result.exit_code == 4, result.output
    assert verdicts(directory) == {f"parity:{FP32}": "error", f"parity:{FP16}": "pass"}
    assert f"{FP32} failed on the case " in result.stderr


def test_a_junit_file_that_cannot_be_written_hides_no_verdict(
    directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    junit = tmp_path / "file" / "check.xml"
    assert run(directory, "--junit", junit).exit_code == 3
    result = run(directory, "--junit", junit, "--min-speedup", "1e9", "--engine", FP32)
    assert result.exit_code == 1, result.output
    assert "no JUnit file: " in result.stderr


def test_an_engine_that_is_not_equal_fails(
    directory: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = directory / "model.onnx"
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if t.name.endswith("classifier.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(model, path)
    bundle = Bundle.open(directory)
    bundle.manifest.graphs["fp32"].files[0] = file_record(path, root=directory)
    write_manifest(directory, bundle.manifest)
    result = run(directory)
    assert result.exit_code == 1, result.output
    assert f"[FAIL] parity:{FP32}: max abs 1.0e+00 on logits" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-regression", "5%"], "--max-regression needs --baseline"),
        (["--baseline", "{here}", "--max-regression", "5"], "regression '5' is not understood"),
        (["--baseline", "{here}", "--max-regression", "-1%"], "give a share from 0% to 99%"),
        (["--baseline", "{here}", "--max-regression", "five"], "give a share from 0% to 99%"),
        (["--baseline", "{here}", "--max-regression", "nan"], "give a share from 0% to 99%"),
        (["--min-speedup", "0"], "--min-speedup"),
        (["--min-speedup", "inf"], "inf is not a finite number"),
        (["--min-speedup", "nan"], "nan is not a finite number"),
        (["--baseline", "{here}/reports"], "is a directory, but no bundle"),
        (["--engine", "trt"], "unknown engine 'trt'"),
        (["--junit", "{here}"], "is a directory; give a file"),
        (["--baseline", "{here}/none.json"], "cannot be read: No such file"),
    ],
)
def test_calls_that_cannot_be(built: Path, arguments: list[str], message: str) -> None:
    result = run(built, *(text.format(here=built) for text in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("0", 0.0)])
def test_a_share_has_two_spellings(text: str, share: float) -> None:
    context = check.make_context("check", ["x", "--baseline", "y", "--max-regression", text])
    assert context.params["max_regression"] == pytest.approx(share)


def test_a_record_of_another_machine_is_refused_before_anything_runs(
    directory: Path, tmp_path: Path
) -> None:
    data = recorded_bench(Bundle.open(directory)).to_json()
    data["environment"]["cpu"]["model"] = "Another CPU"
    data["settings"]["batch_size"] = 1
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(data))
    said: list[str] = []
    with pytest.raises(UsageError, match="batch size: 1 there, 64 here; CPU: 'Another CPU' there"):
        check_bundle(directory, CheckOptions(baseline=path), say=said.append)
    assert said == []


def test_requests_that_do_not_fit_are_refused(directory: Path, tmp_path: Path) -> None:
    data = tmp_path / "requests.jsonl"
    for ids, message in (([1, 50], r"holds the id 50 .* \[0, 50\)"), ([1] * 17, "17 tokens")):
        data.write_text(json.dumps({"input_ids": ids}) + "\n")
        with pytest.raises(InputError, match=message):
            check_bundle(directory, CheckOptions(data=data), say=lambda text: None)


def test_a_bundle_without_engines_says_how_to_make_one(directory: Path) -> None:
    bundle = Bundle.open(directory)
    bundle.manifest.engines.clear()
    write_manifest(directory, bundle.manifest)
    with pytest.raises(BundleError, match="attn-export compile"):
        check_bundle(directory, CheckOptions(), say=lambda text: None)


@pytest.mark.slow
def test_a_bundle_is_not_slower_than_itself_twenty_times_in_a_row(
    built: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    options = CheckOptions(baseline=built, engine=FP32)
    for _ in range(20):
        report = check_bundle(directory, options, say=lambda text: None)
        assert report.verdict in ("PASS", "INCONCLUSIVE"), report.results
