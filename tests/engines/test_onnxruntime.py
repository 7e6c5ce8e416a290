"""Compiling and loading with ONNX Runtime: what is recorded, what is written, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from attn_export.bundle import Bundle, file_record
from attn_export.engines import onnxruntime, onnxruntime_session
from attn_export.engines.cuda_driver import Gpu
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.profiles import Profile
from attn_export.engines.session import CompileOptions, LoadOptions
from attn_export.errors import BuildFailed, BundleError, HostError, UsageError
from attn_export.manifest import EngineRecord, GraphRecord, Manifest

FOLDER = "trt/onnxruntime-fp32-tensorrt"
ON_CUDA = CompileOptions(provider="cuda")
ON_TENSORRT = CompileOptions(provider="tensorrt")


def test_compile_records_each_bucket_and_writes_nothing(bundle: Bundle) -> None:
    before = snapshot(bundle.directory)
    record = onnxruntime.compile(bundle, "fp32", CompileOptions())
    assert (record.backend, record.precision, record.graph) == ("onnxruntime", "fp32", "fp32")
    assert [(b["edge"], b["batch"]) for b in record.buckets] == [(4, 96), (8, 48), (16, 24)]
    assert all(bucket["ms"] > 0 for bucket in record.buckets)
    assert record.environment["onnxruntime"] == ort.__version__
    assert record.environment["provider"] == "CPUExecutionProvider"
    assert record.parity is None
    assert snapshot(bundle.directory) == before


def snapshot(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_compile_refuses_an_altered_graph(bundle: Bundle) -> None:
    path = bundle.directory / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BundleError, match="was altered"):
        onnxruntime.compile(bundle, "fp32", CompileOptions())


def test_compile_says_what_onnxruntime_says_of_a_broken_graph(
    bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    path = bundle.directory / "model.onnx"
    path.write_bytes(b"not a graph")
    bundle.manifest.graphs["fp32"].files = [file_record(path, root=bundle.directory)]
    with pytest.raises(BuildFailed, match=r"cannot open .*model.onnx: .*Protobuf parsing failed"):
        onnxruntime.compile(bundle, "fp32", CompileOptions())
    assert capfd.readouterr() == ("", "")


def test_compile_names_the_bucket_that_fails(bundle: Bundle) -> None:
    bundle.manifest.outputs[0] = bundle.manifest.outputs[0].__class__(
        name="scores_that_are_not_there", dtype="float32", shape=("batch", 3)
    )
    with pytest.raises(BuildFailed, match=r"fp32 engine fails at batch 96, 4 tokens: .*not_there"):
        onnxruntime.compile(bundle, "fp32", CompileOptions())


def test_the_cpu_computes_fp16_without_gain() -> None:
    def record(precision: str) -> EngineRecord:
        return EngineRecord(backend="onnxruntime", precision=precision, graph=precision)

    assert onnxruntime.unsuited(record("fp32")) is None
    assert onnxruntime.unsuited(record("int8")) is None
    assert "a CPU computes FP16 graphs in FP32" in str(onnxruntime.unsuited(record("fp16")))


def assert_runs(bundle: Bundle, record: EngineRecord, twin: Callable[..., Any]) -> None:
    session = onnxruntime.load(bundle, record, LoadOptions())
    feeds = seeded_feeds(session.inputs, 3, 16)
    for outputs in (session.run(feeds), *session.run_all([feeds])):
        expected = twin(feeds["input_ids"], feeds["attention_mask"])
        np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5)
    session.close()


def test_cuda_takes_any_shape_and_writes_nothing(
    bundle: Bundle, gpu_onnxruntime: Any, twin: Callable[..., Any]
) -> None:
    before = snapshot(bundle.directory)
    record = onnxruntime.compile(bundle, "fp32", ON_CUDA)
    assert record.name == "onnxruntime-fp32-cuda"
    assert (record.profiles, record.files) == ([], [])
    assert [(b["edge"], b["batch"]) for b in record.buckets] == [(4, 2048), (8, 1024), (16, 512)]
    assert record.environment["provider_options"] == {"CUDAExecutionProvider": {"use_tf32": "0"}}
    assert record.environment["gpu"] == "Tesla T4"
    assert record.environment["onnxruntime"] == ort.__version__
    session = onnxruntime.load(bundle, record, LoadOptions(streams=3))
    assert (session.profiles, session.batch_tokens) == ((), 8192)
    assert session.buckets == (4, 8, 16)
    session.close()
    assert_runs(bundle, record, twin)
    assert snapshot(bundle.directory) == before
    wanted = {"CUDAExecutionProvider": {"use_tf32": "0"}}
    assert [entry["providers"] for entry in gpu_onnxruntime.seen] == [wanted] * 3
    assert "SkipLayerNormFusion" not in gpu_onnxruntime.seen[0]["disabled"]


def test_a_gpu_session_opens_its_graph_once_and_when_it_is_loaded(
    bundle: Bundle, gpu_onnxruntime: Any
) -> None:
    record = onnxruntime.compile(bundle, "fp32", ON_CUDA)
    gpu_onnxruntime.seen.clear()
    session = onnxruntime.load(bundle, record, LoadOptions(streams=4))
    assert len(gpu_onnxruntime.seen) == 1
    feeds = seeded_feeds(session.inputs, 1, 4)
    session.run(feeds)
    list(session.run_all([feeds] * 20))
    assert len(gpu_onnxruntime.seen) == 1
    session.close()


def test_tensorrt_engines_become_files_of_the_bundle(
    bundle: Bundle, gpu_onnxruntime: Any, twin: Callable[..., Any]
) -> None:
    record = onnxruntime.compile(bundle, "fp32", ON_TENSORRT)
    assert record.name == "onnxruntime-fp32-tensorrt"
    assert [file.file for file in record.files] == [
        f"{FOLDER}/graph_1_sm75.engine",
        f"{FOLDER}/graph_1_sm75.profile",
    ]
    assert [Profile.from_json(profile) for profile in record.profiles] == [
        Profile(batch=(1, 2048, 2048), sequence=(1, 4, 4)),
        Profile(batch=(1, 1024, 1024), sequence=(5, 8, 8)),
        Profile(batch=(1, 512, 512), sequence=(9, 16, 16)),
    ]
    assert [(b["edge"], b["batch"]) for b in record.buckets] == [(4, 2048), (8, 1024), (16, 512)]
    assert_runs(bundle, record, twin)
    session = onnxruntime.load(bundle, record, LoadOptions())
    assert [str(p) for p in session.profiles] == [
        "batch 1 2048 2048, sequence 1 4 4",
        "batch 1 1024 1024, sequence 5 8 8",
        "batch 1 512 512, sequence 9 16 16",
    ]
    session.close()


def test_the_record_of_tensorrt_holds_no_path_of_this_machine(
    bundle: Bundle, gpu_onnxruntime: Any, tmp_path: Path
) -> None:
    times = tmp_path / "times" / "deep"
    options = CompileOptions(provider="tensorrt", cache=times, workspace_mib=64)
    record = onnxruntime.compile(bundle, "fp32", options)
    given = gpu_onnxruntime.seen[0]["providers"]["TensorrtExecutionProvider"]
    assert given["trt_timing_cache_path"] == str(times)
    assert times.is_dir()
    recorded = record.environment["provider_options"]["TensorrtExecutionProvider"]
    assert recorded["trt_engine_cache_path"] == FOLDER
    assert recorded["trt_max_workspace_size"] == str(64 << 20)
    assert str(tmp_path) not in json.dumps(recorded)


def test_a_timing_cache_that_cannot_be_made_is_no_failure(
    bundle: Bundle, gpu_onnxruntime: Any
) -> None:
    said: list[str] = []
    cache = bundle.directory / "model.onnx" / "times"
    options = CompileOptions(provider="tensorrt", cache=cache, say=said.append)
    onnxruntime.compile(bundle, "fp32", options)
    given = gpu_onnxruntime.seen[0]["providers"]["TensorrtExecutionProvider"]
    assert "trt_timing_cache_enable" not in given
    assert f"no timing cache: {cache}: Not a directory" in said


def test_a_moved_bundle_is_loaded_from_where_it_is_and_left_alone(
    bundle: Bundle, gpu_onnxruntime: Any, tmp_path: Path, twin: Callable[..., Any]
) -> None:
    """Its engines are found, and no file of it changes, so that it may be read-only."""
    record = onnxruntime.compile(bundle, "fp32", ON_TENSORRT)
    bundle.manifest.engines[record.name] = record
    manifest = Manifest.from_json(json.loads(json.dumps(bundle.manifest.to_json())))
    moved = Bundle(tmp_path / "moved", manifest)
    shutil.move(bundle.directory, moved.directory)
    before = snapshot(moved.directory)
    gpu_onnxruntime.seen.clear()
    assert_runs(moved, manifest.engines[record.name], twin)
    assert snapshot(moved.directory) == before
    assert gpu_onnxruntime.seen[0]["files"] == ["graph_1_sm75.engine", "graph_1_sm75.profile"]
    cache = gpu_onnxruntime.seen[0]["providers"]["TensorrtExecutionProvider"]
    assert not Path(cache["trt_engine_cache_path"]).exists()


def test_an_engine_that_onnxruntime_would_build_again_is_refused(
    bundle: Bundle, gpu_onnxruntime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = onnxruntime.compile(bundle, "fp32", ON_TENSORRT)
    before = snapshot(bundle.directory)
    monkeypatch.setattr(gpu_onnxruntime, "engine", "graph_of_another_tensorrt_sm75")
    with pytest.raises(HostError, match="did not take the engines of onnxruntime-fp32-tensorrt"):
        onnxruntime.load(bundle, record, LoadOptions())
    assert snapshot(bundle.directory) == before


def test_an_altered_engine_is_refused(bundle: Bundle, gpu_onnxruntime: Any) -> None:
    record = onnxruntime.compile(bundle, "fp32", ON_TENSORRT)
    (bundle.directory / record.files[0].file).write_bytes(b"Engine")
    with pytest.raises(BundleError, match=r"graph_1_sm75.engine was altered"):
        onnxruntime.load(bundle, record, LoadOptions())


def test_compiling_again_replaces_the_engines(
    bundle: Bundle, gpu_onnxruntime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime.compile(bundle, "fp32", ON_TENSORRT)
    monkeypatch.setattr(gpu_onnxruntime, "engine", "newer_sm75")
    record = onnxruntime.compile(bundle, "fp32", ON_TENSORRT)
    names = sorted(path.name for path in (bundle.directory / FOLDER).iterdir())
    assert names == ["newer_sm75.engine", "newer_sm75.profile"]
    assert sorted(Path(file.file).name for file in record.files) == names


def test_a_graph_that_tensorrt_leaves_to_cuda_is_no_engine(
    bundle: Bundle, gpu_onnxruntime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_onnxruntime, "engine", None)
    with pytest.raises(BuildFailed, match="TensorRT took no part of the graph"):
        onnxruntime.compile(bundle, "fp32", ON_TENSORRT)


def test_given_profiles_are_the_buckets(bundle: Bundle, gpu_onnxruntime: Any) -> None:
    said: list[str] = []
    options = CompileOptions(
        provider="tensorrt",
        profiles=(
            Profile(batch=(1, 8, 8), sequence=(1, 6, 6)),
            Profile(batch=(1, 2, 4), sequence=(7, 12, 16)),
        ),
        say=said.append,
    )
    record = onnxruntime.compile(bundle, "fp32", options)
    assert [(b["edge"], b["batch"]) for b in record.buckets] == [(6, 8), (16, 4)]
    given = gpu_onnxruntime.seen[0]["providers"]["TensorrtExecutionProvider"]
    assert given["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert given["trt_profile_opt_shapes"] == "input_ids:2x12,attention_mask:2x12"
    assert given["trt_profile_max_shapes"] == "input_ids:8x16,attention_mask:8x16"
    assert "one optimization profile: batch 1 2 8, sequence 1 12 16" in said[0]
    assert len(said) == 1


def test_profiles_longer_than_the_model_are_refused(bundle: Bundle, gpu_onnxruntime: Any) -> None:
    profiles = (Profile(batch=(1, 1, 1), sequence=(1, 17, 17)),)
    with pytest.raises(UsageError, match="longer than the model's 16 tokens"):
        onnxruntime.compile(bundle, "fp32", CompileOptions(provider="tensorrt", profiles=profiles))


@pytest.mark.parametrize("is_off", [False, True])
def test_tf32_is_mentioned_where_tensorrt_has_it(
    is_off: bool, bundle: Bundle, gpu_onnxruntime: Any, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(Gpu(name="NVIDIA B200", compute_capability="10.0", memory_mib=1))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0" if is_off else "1")
    said: list[str] = []
    onnxruntime.compile(bundle, "fp32", CompileOptions(provider="tensorrt", say=said.append))
    assert any("NVIDIA_TF32_OVERRIDE=0" in line for line in said) is not is_off


@pytest.mark.parametrize("options", [ON_CUDA, ON_TENSORRT])
def test_running_on_the_cpu_in_silence_is_an_error(
    options: CompileOptions,
    bundle: Bundle,
    gpu_onnxruntime: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
    record = onnxruntime.compile(bundle, "fp32", options)
    monkeypatch.setattr(gpu_onnxruntime, "lost", lost)
    with pytest.raises(HostError, match="would run on CPUExecutionProvider without"):
        onnxruntime.load(bundle, record, LoadOptions())
    with pytest.raises(HostError, match="would run on CPUExecutionProvider without"):
        onnxruntime.compile(bundle, "fp32", options)


def test_a_provider_that_fails_aloud_is_told_with_its_missing_library(
    bundle: Bundle, gpu_onnxruntime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Please install TensorRT libraries")

    missing = "libcublas.so.13: cannot open shared object file"
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime_session, "library_problem", lambda name: missing)
    with pytest.raises(HostError, match=f"{missing}; install the CUDA"):
        onnxruntime.compile(bundle, "fp32", ON_TENSORRT)


def test_a_graph_that_cannot_be_opened_on_a_gpu_is_no_fault_of_the_host(
    bundle: Bundle, gpu_onnxruntime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_session, "library_problem", lambda name: None)
    path = bundle.directory / "model.onnx"
    path.write_bytes(b"not a graph")
    bundle.manifest.graphs["fp32"].files = [file_record(path, root=bundle.directory)]
    with pytest.raises(BuildFailed, match="Protobuf parsing failed"):
        onnxruntime.compile(bundle, "fp32", ON_CUDA)


def test_the_host_is_asked_before_a_build(gpu_onnxruntime: Any, gpu: Any) -> None:
    onnxruntime.require_host(CompileOptions())
    onnxruntime.require_host(CompileOptions(provider="tensorrt", target="t4"))
    with pytest.raises(HostError, match="Tesla T4"):
        onnxruntime.require_host(CompileOptions(provider="cuda", target="h100"))


def test_a_gpu_engine_suits_only_a_host_that_has_its_gpu(
    bundle: Bundle, gpu_onnxruntime: Any, gpu: Any
) -> None:
    on_cuda = onnxruntime.compile(bundle, "fp32", ON_CUDA)
    on_tensorrt = onnxruntime.compile(bundle, "fp32", ON_TENSORRT)
    assert onnxruntime.unsuited(on_cuda) is None
    assert onnxruntime.unsuited(on_tensorrt) is None
    gpu(Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=1))
    assert onnxruntime.unsuited(on_cuda) is None
    assert "compute capability 7.5, here it is 8.9" in str(onnxruntime.unsuited(on_tensorrt))
    with pytest.raises(HostError, match=r"compute capability 7.5, here it is 8.9"):
        onnxruntime.load(bundle, on_tensorrt, LoadOptions())


def test_fp16_is_served_on_a_gpu(bundle: Bundle, gpu_onnxruntime: Any) -> None:
    bundle.manifest.graphs["fp16"] = GraphRecord(precision="fp16", files=bundle.graph("fp32").files)
    record = onnxruntime.compile(bundle, "fp16", ON_CUDA)
    assert onnxruntime.unsuited(record) is None
    options = record.environment["provider_options"]["CUDAExecutionProvider"]
    assert options == {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"}


def test_a_gpu_needs_at_least_one_stream(bundle: Bundle, gpu_onnxruntime: Any) -> None:
    record = onnxruntime.compile(bundle, "fp32", ON_CUDA)
    with pytest.raises(UsageError, match="streams is 0; give at least 1"):
        onnxruntime.load(bundle, record, LoadOptions(streams=0))
