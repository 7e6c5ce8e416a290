"""The TensorRT backend from a bundle's graph to a served plan, on doubles of each version."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.bundle import Bundle, write_manifest
from attn_export.engines import tensorrt
from attn_export.engines.engine import load
from attn_export.engines.layer_proof import read_proof
from attn_export.engines.profiles import given_profiles
from attn_export.engines.session import CompileOptions, LoadOptions
from attn_export.errors import BuildFailed, BundleError, HostError, UsageError
from attn_export.manifest import EngineRecord, GraphRecord
from tests.tensorrt_double.fixtures import show_gpu

Twin = Callable[[Any, Any], dict[str, Any]]
TensorrtDouble = Callable[[str], Any]
LENGTHS = [3, 16, 1, 8, 5, 16, 2, 11, 4, 4, 7, 1]


@pytest.fixture
def trt(tensorrt_double: TensorrtDouble, cuda_double: Any, tensorrt_version: str) -> Any:
    return tensorrt_double(tensorrt_version)


@pytest.fixture
def model(bundle: Bundle) -> Bundle:
    """The tiny encoder's bundle, as one whose longest sequence is known."""
    bundle.manifest.model["max_length"] = 16
    write_manifest(bundle.directory, bundle.manifest)
    return bundle


def compiled(bundle: Bundle, **options: Any) -> EngineRecord:
    record = tensorrt.compile(bundle, "fp32", CompileOptions(**options))
    record.parity = {"passed": True, "sha256": record.files[0].sha256}
    bundle.manifest.engines = {record.name: record}
    write_manifest(bundle.directory, bundle.manifest)
    return record


def requests_of(lengths: list[int]) -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 50, length) for length in lengths]


def test_a_bundle_is_compiled_loaded_and_served(trt: Any, model: Bundle, twin: Twin) -> None:
    record = compiled(model)
    release = ".".join(trt.__version__.split(".")[:3])
    assert record.name == f"tensorrt-fp32-sm75-{release}"
    assert [file.file for file in record.files] == [
        f"trt/sm75-{release}/model.plan",
        f"trt/sm75-{release}/model.inspector.json",
    ]
    assert [profile["sequence"] for profile in record.profiles] == [
        [1, 4, 4],
        [5, 8, 8],
        [9, 16, 16],
    ]
    assert [bucket["edge"] for bucket in record.buckets] == [4, 8, 16]
    assert record.environment["tensorrt"] == trt.__version__
    assert record.environment["gpu"] == "Tesla T4"
    with load(model.directory) as engine:
        assert engine.backend == "tensorrt"
        requests = requests_of(LENGTHS)
        logits = np.asarray(engine.run_many(requests)["logits"])
        for request, row in zip(requests, logits, strict=True):
            expected = twin(request[None], np.ones((1, len(request))))["logits"][0]
            np.testing.assert_allclose(row, expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_left_on_the_gpu(trt: Any, cuda_double: Any, model: Bundle) -> None:
    compiled(model)
    assert not cuda_double.live
    load(model.directory).close()
    assert not cuda_double.live


def test_the_inspectors_json_is_the_proof(trt: Any, model: Bundle) -> None:
    record = compiled(model)
    text = (model.directory / record.files[1].file).read_text()
    assert record.proof is not None
    names = read_proof(text, precision="fp32", keep_fp32={}, nodes=()).to_json()
    assert record.proof["layers"] == names["layers"]
    assert record.proof["gemm_share"] in (None, 0.0)


def test_given_profiles_are_built_and_their_least_shapes_are_filled_up(
    trt: Any, model: Bundle, twin: Twin
) -> None:
    record = compiled(model, profiles=given_profiles([(2, 2, 4)], [(6, 8, 12)]))
    assert record.profiles == [{"batch": [2, 2, 4], "sequence": [6, 8, 12]}]
    with load(model.directory) as engine:
        assert engine.buckets == (12,)
        ids = np.array([[4, 5, 6]])
        outputs = engine.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        expected = twin(ids, np.ones(ids.shape))
        np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5, rtol=1e-5)
        assert outputs["hidden"].shape == (1, 3, 8)
        assert len(engine.run_many(requests_of([1, 2, 12, 7, 3]))["logits"]) == 5


def test_a_profile_over_the_model_is_refused(trt: Any, model: Bundle) -> None:
    with pytest.raises(UsageError, match="longer than the model's 16 tokens"):
        compiled(model, profiles=given_profiles([(1, 1, 1)], [(1, 8, 17)]))


def test_a_second_compile_replaces_the_first(trt: Any, model: Bundle) -> None:
    first = compiled(model)
    assert compiled(model, profiles=given_profiles([(1, 1, 1)], [(1, 8, 16)])).name == first.name
    files = [path for path in (model.directory / "trt").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"model.plan", "model.inspector.json"}
    load(model.directory).close()


def test_another_gpu_is_refused_with_both_names(
    trt: Any, model: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = compiled(model)
    monkeypatch.undo()
    show_gpu(monkeypatch, "NVIDIA L4;8.9;22593")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    reason = tensorrt.unsuited(record)
    assert reason is not None
    assert "built on Tesla T4, compute capability 7.5" in reason
    assert "NVIDIA L4, compute capability 8.9" in reason
    with pytest.raises(HostError, match=r"attn-export compile .*bundle"):
        load(model.directory, backend="tensorrt", precision="fp32")
    with pytest.raises(BundleError, match="holds no proven engine for this host"):
        load(model.directory)


def test_another_tensorrt_is_refused_with_both_versions(trt: Any, model: Bundle) -> None:
    record = compiled(model)
    record.environment["tensorrt"] = "9.9.9.9"
    with pytest.raises(HostError, match=rf"by TensorRT 9\.9\.9\.9; TensorRT {trt.__version__}"):
        tensorrt.load(model, record, LoadOptions())


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64])
def test_a_damaged_plan_is_refused_before_tensorrt_reads_it(
    trt: Any, model: Bundle, damage: bytes
) -> None:
    record = compiled(model)
    (model.directory / record.files[0].file).write_bytes(damage)
    with pytest.raises(BundleError, match="copy the bundle again or rebuild it"):
        load(model.directory)


def test_a_plan_with_code_in_it_needs_to_be_allowed(trt: Any, model: Bundle) -> None:
    record = compiled(model, version_compatible="embedded")
    assert "VERSION_COMPATIBLE" in record.environment["flags"]
    with pytest.raises(UsageError, match="which is code that would run here"):
        load(model.directory)
    load(model.directory, allow_host_code=True).close()


@pytest.mark.parametrize(
    ("kind", "built_by", "reason"),
    [
        ("embedded", "8.0.0.1", None),
        ("embedded", "99.1", "was built by TensorRT 99.1 and runs on newer ones"),
        (None, "8.0.0.1", "was built by TensorRT 8.0.0.1; TensorRT"),
    ],
)
def test_only_a_plan_with_its_runtime_serves_other_tensorrts(
    trt: Any, model: Bundle, kind: Any, built_by: str, reason: str | None
) -> None:
    record = compiled(model, version_compatible=kind)
    record.environment["tensorrt"] = built_by
    found = tensorrt.unsuited(record)
    assert (found is None) is (reason is None)
    assert (reason or "") in (found or "")


def test_a_plan_for_the_lean_runtime_is_served_by_it(
    tensorrt_double: TensorrtDouble,
    cuda_double: Any,
    lean_double: Any,
    model: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensorrt_double("10.16.1.11")
    record = compiled(model, version_compatible="lean")
    assert {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} <= set(record.environment["flags"])
    assert record.proof is None
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with load(model.directory) as engine:
        assert len(engine.run_many(requests_of(LENGTHS))["logits"]) == len(LENGTHS)
    record.environment["tensorrt"] = "10.16.0.72"
    assert "TensorRT's lean runtime 10.16.1.11 is installed here" in str(tensorrt.unsuited(record))


def test_fp16_takes_the_graph_that_this_tensorrt_can_type(trt: Any, model: Bundle) -> None:
    shutil.copy(model.directory / "model.onnx", model.directory / "model.fp16.onnx")
    files = model.manifest.graphs["fp32"].files
    model.manifest.graphs["fp16"] = GraphRecord(
        precision="fp16", files=files, keep_fp32={"mask": ["masked"]}
    )
    record = tensorrt.compile(model, "fp16", CompileOptions(least_fp16_share=0.0))
    is_typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    assert ("FP16" in record.environment["flags"]) is not is_typed
    assert ("STRONGLY_TYPED" in record.environment["flags"]) is is_typed


def test_too_little_in_fp16_fails_the_build(
    tensorrt_double: TensorrtDouble, cuda_double: Any, model: Bundle
) -> None:
    tensorrt_double("10.16.1.11")
    # A "typed" graph that is FP32 in truth.
    model.manifest.graphs["fp16"] = GraphRecord(
        precision="fp16", files=model.manifest.graphs["fp32"].files
    )
    with pytest.raises(BuildFailed, match=r"0\.0% of the GEMM layers of this fp16 engine"):
        tensorrt.compile(model, "fp16", CompileOptions())


def test_what_8_6_would_misread_is_not_built_there(
    tensorrt_double: TensorrtDouble, cuda_double: Any, model: Bundle
) -> None:
    model.manifest.graphs["fp32"].lint = {"tensorrt-8.6": ["Shape 'x': start is ignored"]}
    tensorrt_double("8.6.1")
    with pytest.raises(BuildFailed, match=r"model\.onnx is not for TensorRT 8\.6: Shape 'x'"):
        compiled(model)
    tensorrt_double("10.16.1.11")
    compiled(model)


def test_the_time_over_the_fp32_engine_stands_beside_the_proof(trt: Any, model: Bundle) -> None:
    whole = compiled(model)
    model.manifest.graphs["fp16"] = GraphRecord(
        precision="fp16", files=model.manifest.graphs["fp32"].files
    )
    for bucket in whole.buckets:
        bucket["ms"] = 1e6
    half = tensorrt.compile(model, "fp16", CompileOptions(least_fp16_share=0.0))
    assert half.proof is not None
    assert 0 < half.proof["time_ratio"] < 0.1
    json.dumps(half.proof)


def test_without_a_gpu_nothing_of_tensorrt_is_touched(model: Bundle, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="this takes an NVIDIA GPU"):
        tensorrt.require_host(CompileOptions())
    with pytest.raises(HostError, match=r"compute capability 7\.5 \(T4\)"):
        tensorrt.compile(model, "fp32", CompileOptions(target="t4"))
    assert not (model.directory / "trt").exists()
