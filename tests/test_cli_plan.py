"""``attn-export plan`` as a stranger calls it."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attn_export.cli_plan import plan
from attn_export.options import Group

from .benchmarks import report_results as made

FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was measured on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(Group(commands={"plan": plan}), ["plan", *arguments])


def as_json(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_example_of_the_help_is_an_estimate_for_a_t4() -> None:
    result = run("--rate", "50000/min", "--latency-p99", "25ms", "--gpu", "t4", "--price", "0.35/h")
    assert result.exit_code == 0
    assert result.stdout.startswith("[ESTIMATE] ")
    assert "T4 GPU" in result.stdout
    assert "costs 0.35 an hour" in result.stdout


def test_json_has_the_wish_in_seconds_and_all_that_was_considered() -> None:
    data = as_json("--rate", "600000/min", "--latency-p99", "25ms", "--price", "0.35/h")
    assert data["wish"] == {"rate": 10000.0, "latency_s": 0.025, "head_room": 0.3, "price": 0.35}
    assert data["basis"] == "estimated"
    assert data["hardware"] == "T4"
    assert data["size"]["p99_s"] <= 0.025
    assert data["size"]["load"] <= 0.7
    names = {item["option"] for item in data["alternatives"]} | {data["option"]["name"]}
    assert len(names) == 18  # three models, three precisions, buckets and padded
    each = data["cost_per_hour"] / (10000 * 3600) * 1e6
    assert math.isclose(data["cost_per_million"], each)


def test_longer_requests_take_more_machines() -> None:
    short, long = (
        as_json("--rate", "50000/s", "--model", "mqa", "--length-mean", mean)
        for mean in ("30", "120")
    )
    assert long["size"]["machines"] > 2 * short["size"]["machines"]


def test_lengths_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"input_ids": [1, 2, 3, 4]}\n' * 5)
    given = as_json("--rate", "1000/s", "--model", "mqa", "--data", str(path))
    assert given["option"]["edges"][0] == 4


def test_dimensions_are_those_of_estimate() -> None:
    small = as_json("--rate", "1000/s", "--model", "gqa", "--hidden-size", "64", "--heads", "4")
    assert small["option"]["model"] == "gqa"


def test_sixteen_heads_need_no_key_value_heads() -> None:
    assert as_json("--rate", "100/s", "--hidden-size", "1024", "--heads", "16")["size"]


def test_a_bundle_is_called_by_its_folders_name_wherever_one_stands(
    exported_with_bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = exported_with_bench.rename(exported_with_bench.with_name("my model"))
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["model"]["spec"] = {"num_kv_heads": 1}
    made.put(directory, "manifest.json", manifest)
    monkeypatch.chdir(directory)
    assert as_json("--rate", "100/s", "--model", ".")["option"]["model"] == "my model"
    monkeypatch.chdir(directory / "reports")
    assert as_json("--rate", "100/s", "--model", "..")["option"]["model"] == "my model"
    (directory / "reports" / "mqa").symlink_to(directory)
    assert as_json("--rate", "100/s", "--model", "mqa")["option"]["model"] == "mqa"


def test_a_bundle_gets_the_plan_in_its_reports(exported_with_bench: Path) -> None:
    data = as_json(str(exported_with_bench), "--rate", "100/s", "--latency-p99", "100ms")
    assert data["basis"] == "measured"
    kept = json.loads((exported_with_bench / "reports" / "plan.json").read_text())
    assert kept == data


def test_a_wish_that_cannot_be_met_exits_1_and_says_what_can(tmp_path: Path) -> None:
    result = run("--rate", "800", "--latency-p99", "100us")
    assert result.exit_code == 1
    assert "cannot be met" in result.stderr
    possible = result.stderr.split("--latency-p99 ")[1].split(",")[0]
    assert run("--rate", "800", "--latency-p99", possible).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--rate", "5x"], "N/min", id="rate"),
        pytest.param(["--rate", "-5"], "N/min", id="negative"),
        pytest.param(["--rate", "5", "--latency-p99", "25"], "25ms or 0.025s", id="no-unit"),
        pytest.param(["--rate", "5", "--price", "3 EUR"], "0.35/h", id="price"),
        pytest.param(["--rate", "5", "--head-room", "0%"], "2% to 95%", id="head-room"),
        pytest.param(["--rate", "5", "--gpu", "v100"], "'h100'", id="gpu"),
        pytest.param(["--rate", "5", "--gpu", "t4", "--here"], "exclude each other", id="both"),
        pytest.param(["--rate", "5", "--here"], "estimate --gpu here", id="not-measured"),
        pytest.param(["--rate", "5", "--length-mean", "nan"], "1 to 100,000", id="nan"),
        pytest.param(["--rate", "5", "--model", "bert"], "unknown model 'bert'", id="model"),
        pytest.param(["--rate", "5", "--heads", "5"], "do not divide", id="heads"),
        pytest.param(["--rate", "5", "--positions", "20"], "1 to 20", id="positions"),
        pytest.param(["nothing.json", "--rate", "5"], "cannot be read", id="missing"),
        pytest.param(["x.json", "--rate", "5", "--layers", "2"], "leave out num_layers", id="dims"),
        pytest.param([], "Missing option '--rate'", id="no-rate"),
    ],
)
def test_bad_input_is_a_usage_error(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_two_ways_to_give_lengths_are_one_too_many(tmp_path: Path) -> None:
    result = run("--rate", "5", "--length-mean", "30", "--data", str(tmp_path / "x.jsonl"))
    assert result.exit_code == 2
    assert "give one" in result.output


def test_an_empty_file_of_requests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    result = run("--rate", "5", "--data", str(tmp_path / "empty.jsonl"))
    assert result.exit_code == 2


def test_nothing_but_numpy_is_imported(fresh_python: FreshPython) -> None:
    code = (
        "import sys; from attn_export.cli_plan import plan;"
        "plan(['--rate', '5', '--model', 'mqa'], standalone_mode=False);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'matplotlib'} & set(sys.modules);"
        "print('heavy:', sorted(heavy))"
    )
    assert fresh_python("-c", code).stdout.endswith("heavy: []\n")


@pytest.fixture
def exported_with_bench(tmp_path: Path) -> Path:
    """A bundle's manifest and bench.json: a plan reads nothing else of it."""
    directory = tmp_path / "bundle"
    graph = {"precision": "fp32", "files": [{"file": "model.onnx", "sha256": "0", "bytes": 1}]}
    engine = {"backend": "onnxruntime", "precision": "fp32", "graph": "fp32"}
    manifest = {
        "schema_version": 1,
        "model": {"name": "mqa"},
        "inputs": [],
        "outputs": [],
        "buckets": {"edges": [8, 16]},
        "graphs": {"fp32": graph | {"twin": None}},
        "engines": {
            "onnxruntime-fp32": engine | {"parity": {"passed": True, "sha256": "0"}},
        },
        "reference": None,
        "tool": {},
        "command": "",
    }
    made.put(directory, "manifest.json", manifest)
    made.put(directory, "reports/bench.json", made.bench())
    return directory
