"""Who takes part in the matrix, and why others do not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.matrix_cell import MODELS
from attn_export.benchmarks.matrix_lineup import Contestant, contestants, require_same_size
from attn_export.bundle import Bundle
from attn_export.errors import UsageError

from .matrix_samples import passed, tiny_bundles


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("matrix")
    tiny_bundles(directory)
    return directory


@pytest.fixture
def bundles(kept: Path, tmp_path: Path) -> dict[str, Bundle]:
    """Copies that a test may change."""
    shutil.copytree(kept, tmp_path / "matrix")
    return {name: Bundle.open(tmp_path / "matrix" / name) for name in MODELS}


def of(model: str, bundles: dict[str, Bundle]) -> dict[str, Contestant]:
    return {entry.variant: entry for entry in contestants(bundles) if entry.model == model}


def add(bundle: Bundle, name: str, ms: float, **changed: Any) -> None:
    """One more engine, of which parity passed."""
    record = replace(bundle.manifest.engines["onnxruntime-fp32"], **changed)
    record.buckets = [{**bucket, "ms": ms} for bucket in record.buckets]
    bundle.manifest.engines[name] = record
    passed(bundle)


def test_fp16_on_a_cpu_says_why_it_is_not_run(bundles: dict[str, Bundle]) -> None:
    found = of("mqa", bundles)
    assert list(found) == [
        *("eager-fp32", "eager-autocast", "engine-fp32", "engine-fp16", "engine-int8")
    ]
    assert found["engine-fp32"].engine == "onnxruntime-fp32"
    assert found["engine-fp32"].absent is None
    assert "a CPU computes FP16 graphs in FP32" in (found["engine-fp16"].absent or "")
    assert found["engine-int8"].absent == "the bundle has no INT8 engine"


def test_the_fastest_engine_that_passed_is_taken(bundles: dict[str, Bundle]) -> None:
    add(bundles["mha"], "quicker", 1e-6)
    assert of("mha", bundles)["engine-fp32"].engine == "quicker"
    bundles["mha"].manifest.engines["quicker"].parity = {"passed": False}
    assert of("mha", bundles)["engine-fp32"].engine == "onnxruntime-fp32"


def test_bf16_is_in_it_once_a_bundle_has_such_an_engine(bundles: dict[str, Bundle]) -> None:
    add(bundles["gqa"], "onnxruntime-bf16", 1.0, precision="bf16")
    assert of("gqa", bundles)["engine-bf16"].engine == "onnxruntime-bf16"
    assert of("mha", bundles)["engine-bf16"].absent == "the bundle has no BF16 engine"


def test_an_engine_that_failed_or_whose_backend_is_gone_says_so(bundles: dict[str, Bundle]) -> None:
    add(bundles["mqa"], "far-int8", 1.0, precision="int8", backend="far")
    bundles["mqa"].manifest.engines["onnxruntime-fp32"].parity = None
    found = of("mqa", bundles)
    assert found["engine-int8"].absent == "far-int8: the backend far is not installed"
    assert found["engine-fp32"].absent == (
        "onnxruntime-fp32: it did not pass parity, or is not near enough to FP32"
    )


def test_a_model_that_is_missing_or_another_one_is_refused(bundles: dict[str, Bundle]) -> None:
    require_same_size(bundles)
    with pytest.raises(UsageError, match="needs the bundles mha, gqa, mqa; got mha"):
        require_same_size({"mha": bundles["mha"]})
    with pytest.raises(UsageError, match=r"holds the model 'mha'; .* build mqa there"):
        require_same_size({**bundles, "mqa": bundles["mha"]})


def test_models_of_different_size_are_refused(bundles: dict[str, Bundle]) -> None:
    bundles["gqa"].manifest.model["source"]["options"]["num_layers"] = 3
    with pytest.raises(UsageError, match=r"hold models of different size .*num_layers=3"):
        require_same_size(bundles)
