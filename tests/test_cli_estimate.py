"""``attn-export estimate`` as a stranger calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attn_export.cli_estimate import estimate
from attn_export.options import Group

from .benchmarks.test_sensitivity_plot import Absent

FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was measured on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(Group(commands={"estimate": estimate}), ["estimate", *arguments])


def as_json(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_example_of_the_help_prints_the_memory_analysis() -> None:
    result = run("mha", "--batch", "32", "--seq", "128")
    assert result.exit_code == 0
    assert "Q, K, V of a layer, MiB             36.0       20.0       14.0" in result.stdout


def test_json_has_the_model_with_its_dimensions() -> None:
    data = as_json("gqa", "--heads", "8", "--kv-heads", "2", "--hidden-size", "64", "--seq", "300")
    assert data["model"]["attention"] == "GQA-2"
    assert data["model"]["spec"]["max_length"] == 300
    assert data["machine"] == "t4"


def test_a_gpus_name_may_be_in_capitals() -> None:
    assert as_json("mqa", "--gpu", "L4", "--dtype", "int8")["machine"] == "l4"


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert run("mqa", "--plot", str(tmp_path / "roofline.png")).exit_code == 0
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_tables_are_printed_before_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    result = run("mha", "--plot", str(tmp_path / "roofline.png"))
    assert result.exit_code == 3
    assert "Q, K, V of a layer, MiB" in result.stdout
    assert "pip install 'attn-export[plot]'" in result.stderr


def test_sixteen_heads_need_no_key_value_heads() -> None:
    assert as_json("gqa", "--heads", "16")["model"]["attention"] == "GQA-4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--gpu", "v100"], "'t4', 'l4', 'a10', 'a100', 'h100', 'here'", id="gpu"),
        pytest.param(["--gpu", "here"], "add --measure", id="not-measured"),
        pytest.param(["--dtype", "fp8"], "'int8-all'", id="dtype"),
        pytest.param(["--batch", "0"], "x>=1", id="batch"),
        pytest.param(["--rate", "0"], "x>0", id="rate"),
        pytest.param(["--sparse", "local"], "allowed are local:N", id="sparse"),
        pytest.param(["--heads", "5"], "5 heads do not divide", id="heads"),
        pytest.param(["--positions", "64"], "beyond the model's 64 positions", id="positions"),
        pytest.param(["--dtype", "bf16"], "no datasheet bf16 speed is known of t4", id="bf16"),
        pytest.param(["--weights", "x.pt"], "No such option", id="weights-change-nothing"),
    ],
)
def test_bad_input_is_a_usage_error(arguments: list[str], message: str) -> None:
    result = run("mqa", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_unknown_model_says_what_is_allowed() -> None:
    result = run("bert-base")
    assert result.exit_code == 2
    assert "allowed: mha, gqa, mqa with dimensions, or the directory of a bundle" in result.output


def test_nothing_but_numpy_is_imported(fresh_python: FreshPython) -> None:
    code = (
        "import sys; from attn_export.cli_estimate import estimate;"
        "estimate(['mqa', '--sparse', 'local:8'], standalone_mode=False);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'matplotlib'} & set(sys.modules);"
        "print('heavy:', sorted(heavy))"
    )
    assert fresh_python("-c", code).stdout.endswith("heavy: []\n")
