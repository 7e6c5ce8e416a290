"""Which engine of several backends is the fastest, and that a server is given that one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import attn_export
from attn_export.build import BuildPlan, build, compile_bundle
from attn_export.bundle import Bundle, write_manifest
from attn_export.contest import choose_fastest, race_int8
from attn_export.engines.session import CompileOptions
from attn_export.errors import HostError, UsageError
from attn_export.exporter.source import ModelSource

pytest.importorskip("openvino", reason="openvino is not installed")
TINY = {
    "num_kv_heads": 1,
    "vocab_size": 60,
    "hidden_size": 32,
    "num_heads": 4,
    "num_layers": 2,
    "max_length": 16,
}


def say(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("contest") / "tiny"
    build(BuildPlan(source=ModelSource(model="mqa", options=TINY)), directory, say=say)
    return directory


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "b")
    return tmp_path / "b"


def test_auto_measures_every_backend_and_says_why_it_chose(made: Path) -> None:
    manifest = Bundle.open(made).manifest
    assert set(manifest.engines) == {"onnxruntime-fp32", "openvino-fp32"}
    assert manifest.choice is not None
    rates = {n: e.speed["samples_per_s"]["median"] for n, e in manifest.engines.items() if e.speed}
    assert set(rates) == set(manifest.engines)
    assert manifest.choice["engine"] == max(rates, key=lambda name: rates[name])
    assert manifest.choice["goal"] == "throughput"
    for name in rates:
        assert name in manifest.choice["reason"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_load_takes_the_chosen_engine(directory: Path, backend: str) -> None:
    bundle = Bundle.open(directory)
    bundle.manifest.choice = {"engine": f"{backend}-fp32", "goal": "throughput", "reason": ""}
    write_manifest(directory, bundle.manifest)
    with attn_export.load(directory) as engine:
        assert engine.backend == backend
    with attn_export.load(directory, backend="onnxruntime") as engine:
        assert engine.backend == "onnxruntime"


def test_a_slow_engine_is_not_chosen(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(engines: Any, requests: Any, goal: str) -> list[list[float]]:
        assert goal == "latency"
        return [[100.0] * 9 if e.backend == "onnxruntime" else [250.0] * 9 for e in engines]

    monkeypatch.setattr("attn_export.contest.interleaved_rates", rates)
    bundle = Bundle.open(directory)
    choose_fastest(bundle, "latency", say)
    assert bundle.manifest.choice == {
        "engine": "openvino-fp32",
        "goal": "latency",
        "reason": "openvino-fp32: 250 single requests/s here, 2.50 [2.50, 2.50] times "
        "onnxruntime-fp32, the next best",
    }


def test_an_engine_that_failed_parity_takes_no_part(directory: Path) -> None:
    bundle = Bundle.open(directory)
    bundle.manifest.choice = None
    bundle.manifest.engines["openvino-fp32"].parity = {"passed": False}
    choose_fastest(bundle, "throughput", say)
    assert bundle.manifest.choice is None, "one backend is left: nothing to choose"


def test_one_backend_by_name_is_measured_against_those_that_are_there(directory: Path) -> None:
    options = CompileOptions(goal="latency")
    compile_bundle(directory, backend="openvino", options=options, tolerances=None, say=say)
    choice = Bundle.open(directory).manifest.choice
    assert choice is not None
    assert choice["goal"] == "latency"


def test_bf16_is_for_openvino(directory: Path) -> None:
    options = CompileOptions(bf16=True)
    with pytest.raises((UsageError, HostError), match="--bf16 is for OpenVINO"):
        compile_bundle(directory, backend="onnxruntime", options=options, tolerances=None, say=say)


def test_only_int8_is_raced(directory: Path) -> None:
    bundle = Bundle.open(directory)
    race_int8(bundle, "openvino-fp32", say)
    assert bundle.manifest.engines["openvino-fp32"].race is None
