"""OpenVINO as a backend: what it makes of a bundle, what it refuses, and ONNX Runtime's opinion."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.benchmarks.parity import run_parity
from attn_export.bucketing import BucketOptions
from attn_export.build import BuildPlan, portable_bundle
from attn_export.bundle import Bundle, file_record, write_manifest
from attn_export.engines import cpu, onnxruntime, openvino
from attn_export.engines.cpu import Cpu, examine_cpu
from attn_export.engines.engine import load
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.openvino_library import version
from attn_export.engines.profiles import Profile
from attn_export.engines.session import CompileOptions, LoadOptions
from attn_export.errors import BuildFailed, BundleError, HostError, UsageError
from attn_export.exporter.source import ModelSource
from attn_export.int8_options import Int8Options
from attn_export.manifest import EngineRecord, GraphRecord

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
needs_bf16 = pytest.mark.skipif(
    not examine_cpu().computes_bf16, reason="this CPU does not compute BF16"
)
SIZES = {"hidden_size": 64, "num_heads": 4, "num_layers": 2, "vocab_size": 60, "max_length": 16}


@pytest.fixture(scope="module", params=["mha", "gqa", "mqa"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny reference encoder, with INT8 graphs of a few seeded requests."""
    folder = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, 60, int(rng.integers(2, 17))).tolist() for _ in range(100)]
    data = folder / "requests.jsonl"
    data.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    groups = {"num_kv_heads": 2} if request.param == "gqa" else {}
    plan = BuildPlan(
        source=ModelSource(model=request.param, options={**SIZES, **groups}),
        buckets=BucketOptions(count=2),
        int8=Int8Options(data=str(data), method="minmax", min_agreement=0.8),
    )
    portable_bundle(plan, folder / "bundle", say=lambda text: None)
    return Bundle.open(folder / "bundle")


# INT8's roundings differ between the two, as each fuses other operations.
ALLOWED = {"fp32": 1e-5, "bf16": 4e-2, "int8": 0.1}
PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16), "int8"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_computes_what_onnxruntime_does(reference: Bundle, precision: str) -> None:
    """The same graph in both, on ragged masks and on a row without a real token."""
    record = openvino.compile(reference, precision, CompileOptions(bf16=True))
    rival = EngineRecord(backend="onnxruntime", precision="fp32", graph=record.graph)
    ours = openvino.load(reference, record, LoadOptions(threads=2))
    theirs = onnxruntime.load(reference, rival, LoadOptions(threads=2))
    batches = [seeded_feeds(ours.inputs, batch, length) for batch, length in SHAPES]
    for feeds in batches:
        feeds["attention_mask"][0, 1:] = 0
        feeds["attention_mask"][1, :] = 0
        feeds["attention_mask"][2, :-1] = 0
    for feeds, got in zip(batches, ours.run_all(batches), strict=True):
        expected = theirs.run(feeds)["logits"]
        np.testing.assert_allclose(got["logits"], expected, atol=ALLOWED[precision])
        np.testing.assert_allclose(ours.run(feeds)["logits"], expected, atol=ALLOWED[precision])
    assert np.ptp(expected) > 0.2  # so that the tolerance can tell one sample from another
    ours.close()
    theirs.close()


SHAPES = [(3, 1), (4, 7), (3, 16)]


def test_every_precision_passes_its_parity(reference: Bundle) -> None:
    options = CompileOptions(bf16=examine_cpu().computes_bf16)
    bundle = Bundle.open(reference.directory)
    for precision in openvino.graphs(bundle, options):
        record = openvino.compile(bundle, precision, options)
        bundle.manifest.engines[record.name] = record
    names = [name for name in bundle.manifest.engines if name.startswith("openvino")]
    report = run_parity(bundle, engines=names)
    assert len(report.engines) == len(names) >= 2
    assert [engine.engine for engine in report.engines if not engine.passed] == []
    assert all(len(engine.runs) == 1 for engine in report.engines)


# What is made


def test_compile_records_what_was_used_and_writes_nothing(bundle: Bundle) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in bundle.directory.rglob("*")}
    record = openvino.compile(bundle, "fp32", CompileOptions())
    assert record.name == "openvino-fp32"
    assert (record.graph, record.profiles, record.files) == ("fp32", [], [])
    assert [(b["edge"], b["batch"]) for b in record.buckets] == [(4, 96), (8, 48), (16, 24)]
    assert all(bucket["ms"] > 0 for bucket in record.buckets)
    cpus = examine_cpu().cores
    found = record.environment
    assert (found["openvino"], found["computes"], found["goal"]) == (version(), "f32", "throughput")
    assert (found["streams"], found["threads"]) == (cpus, cpus)
    assert found["cpu"] == examine_cpu().model
    assert json.loads(json.dumps(found)) == found
    assert {path.name: path.stat().st_mtime_ns for path in bundle.directory.rglob("*")} == before


@pytest.mark.parametrize("module", [openvino, onnxruntime])
def test_an_engine_for_latency_is_served_so_unless_asked_otherwise(
    bundle: Bundle, module: Any
) -> None:
    record = module.compile(bundle, "fp32", CompileOptions(goal="latency"))
    assert (record.environment["goal"], record.environment["streams"]) == ("latency", 1)
    threads = record.environment["threads"]
    assert module.load(bundle, record, LoadOptions()).streams == 1
    asked = LoadOptions(goal="throughput")
    assert module.load(bundle, record, asked).streams == threads


def quantized(bundle: Bundle, **accepted: bool) -> None:
    """Let the FP32 graph's file stand for INT8 graphs too, with a verdict on each."""
    files = bundle.manifest.graphs["fp32"].files
    for key, verdict in accepted.items():
        bundle.manifest.graphs[key.replace("_", "-")] = GraphRecord(
            precision="int8", files=files, quantization={"accepted": verdict}
        )


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ({"int8": True, "int8_cpu": True}, "int8"),
        ({"int8": False, "int8_cpu": True}, "int8-cpu"),
        ({"int8": False, "int8_cpu": False}, "int8"),
        ({"int8_cpu": False}, "int8-cpu"),
    ],
)
def test_int8_comes_from_the_first_graph_that_is_near_enough(
    bundle: Bundle, accepted: dict[str, bool], chosen: str
) -> None:
    quantized(bundle, **accepted)
    assert openvino.graphs(bundle, CompileOptions()) == {"fp32": "fp32", "int8": chosen}
    assert openvino.compile(bundle, "int8", CompileOptions()).graph == chosen


def test_bf16_is_made_where_it_is_asked_for(bundle: Bundle) -> None:
    assert openvino.graphs(bundle, CompileOptions(bf16=True)) == {"fp32": "fp32", "bf16": "fp32"}
    with pytest.raises(BundleError, match="no graph for bf16 on OpenVINO, which makes: fp32"):
        openvino.compile(bundle, "bf16", CompileOptions())


@needs_bf16
def test_bf16_rounds_and_fp32_does_not(bundle: Bundle, twin: Callable[..., Any]) -> None:
    """An engine called BF16 that computed FP32 would be as near as FP32 is, and the reverse."""
    errors = {}
    for precision in ("fp32", "bf16"):
        record = openvino.compile(bundle, precision, CompileOptions(bf16=True))
        session = openvino.load(bundle, record, LoadOptions())
        feeds = seeded_feeds(session.inputs, 4, 16)
        expected = twin(feeds["input_ids"], feeds["attention_mask"])["logits"]
        errors[precision] = np.abs(session.run(feeds)["logits"] - expected).max()
        session.close()
    assert errors["fp32"] < 1e-5
    assert 2**-9 < errors["bf16"] < 1


# What is loaded


@pytest.fixture
def served(bundle: Bundle) -> Path:
    """The tiny encoder with one proven OpenVINO engine."""
    record = openvino.compile(bundle, "fp32", CompileOptions())
    record.parity = {"passed": True, "sha256": bundle.manifest.shipped(record).sha256}
    bundle.manifest.engines[record.name] = record
    write_manifest(bundle.directory, bundle.manifest)
    return bundle.directory


@pytest.mark.parametrize("goal", ["throughput", "latency"])
@pytest.mark.parametrize("threads", [1, 2])
def test_run_many_equals_numpy_one_by_one(
    served: Path, twin: Callable[..., Any], threads: int, goal: Any
) -> None:
    rng = np.random.default_rng(3)
    requests = [rng.integers(0, 50, length) for length in [3, 16, 1, 8, 5, 16, 2, 11] * 30]
    with load(served, threads=threads, goal=goal) as engine:
        assert (engine.backend, engine.precision) == ("openvino", "fp32")
        found = engine.run_many(requests)
    for index, ids in enumerate(requests):
        expected = twin(ids[None], np.ones((1, len(ids))))
        np.testing.assert_allclose(found["logits"][index], expected["logits"][0], atol=1e-5)
        np.testing.assert_allclose(found["hidden"][index], expected["hidden"][0], atol=1e-5)


def test_eight_threads_share_an_engine(served: Path) -> None:
    rng = np.random.default_rng(4)
    requests = [rng.integers(0, 50, length) for length in [3, 16, 1, 8, 5] * 20]
    with load(served) as engine, ThreadPoolExecutor(8) as pool:
        expected = engine.run_many(requests)["logits"]
        for found in pool.map(lambda _: engine.run_many(requests)["logits"], range(16)):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_it_loads_from_a_folder_that_nobody_may_write(served: Path) -> None:
    paths = [served, *served.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(path.name for path in served.rglob("*"))
    try:
        with load(served) as engine:
            assert len(engine.run_many([[1, 2, 3]])["logits"]) == 1
        assert sorted(path.name for path in served.rglob("*")) == before
    finally:
        for path in paths:
            path.chmod(0o755)


def test_a_goal_that_there_is_not_is_refused(served: Path) -> None:
    with pytest.raises(UsageError, match="goal is 'fast'; it must be throughput or latency"):
        load(served, goal="fast")  # type: ignore[arg-type]


def test_an_altered_graph_is_never_opened(served: Path) -> None:
    path = served / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BundleError, match="was altered"):
        load(served)


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads_outside_this_host_are_refused(served: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=rf"threads is {threads}; .*give 1 to \d+"):
        load(served, threads=threads)


def test_a_manifest_with_another_arithmetic_is_broken(bundle: Bundle) -> None:
    record = openvino.compile(bundle, "fp32", CompileOptions())
    record.environment["computes"] = "f8"
    with pytest.raises(BundleError, match="openvino-fp32 computes in 'f8'; it must be f32 or bf16"):
        openvino.load(bundle, record, LoadOptions())


def test_a_server_without_openvino_takes_another_engine(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(served)
    slower = onnxruntime.compile(bundle, "fp32", CompileOptions())
    slower.buckets = [{**bucket, "ms": 1e6} for bucket in slower.buckets]
    slower.parity = {"passed": True, "sha256": bundle.manifest.shipped(slower).sha256}
    bundle.manifest.engines[slower.name] = slower
    write_manifest(served, bundle.manifest)
    with load(served) as engine:
        assert engine.backend == "openvino"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with load(served) as engine:
        assert engine.backend == "onnxruntime"


# What is refused


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cpu:
    """A CPU with AVX-512 and VNNI, and without BF16."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Cascade Lake\nflags\t: avx2 avx512f avx512_vnni\n")
    found = cpu.examine_cpu(cpuinfo)
    monkeypatch.setattr(openvino, "examine_cpu", lambda: found)
    return found


def test_bf16_needs_a_cpu_that_computes_it(bundle: Bundle, old_cpu: Cpu) -> None:
    with pytest.raises(HostError, match=f"{old_cpu.model} does not compute BF16 in hardware"):
        openvino.require_host(CompileOptions(bf16=True))
    openvino.require_host(CompileOptions())
    record = EngineRecord(
        backend="openvino", precision="bf16", graph="fp32", environment={"computes": "bf16"}
    )
    assert "this CPU does not" in str(openvino.unsuited(record))
    with pytest.raises(HostError, match="openvino-bf16 cannot run here: it computes BF16"):
        openvino.load(bundle, record, LoadOptions())
    assert openvino.unsuited(replace(record, environment={"computes": "f32"})) is None


def test_int8_leaves_the_rest_in_fp32_where_there_is_no_bf16(bundle: Bundle, old_cpu: Cpu) -> None:
    quantized(bundle, int8=True)
    assert openvino.compile(bundle, "int8", CompileOptions()).environment["computes"] == "f32"


@needs_bf16
def test_int8_leaves_the_rest_in_bf16_where_that_is_fast(bundle: Bundle) -> None:
    quantized(bundle, int8=True)
    assert openvino.compile(bundle, "int8", CompileOptions()).environment["computes"] == "bf16"


@pytest.mark.parametrize(
    ("options", "spelling"),
    [
        (CompileOptions(target="t4"), "--target"),
        (CompileOptions(provider="cuda"), "--provider"),
        (CompileOptions(workspace_mib=1), "--workspace"),
        (CompileOptions(optimization_level=1), "--optimization-level"),
        (CompileOptions(error_on_cache_miss=True), "--error-on-timing-cache-miss"),
        (CompileOptions(version_compatible="lean"), "--version-compatible"),
        (CompileOptions(same_compute_capability=True), "--same-compute-capability"),
        (CompileOptions(profiles=(Profile(batch=(1, 2, 3), sequence=(1, 2, 3)),)), "-b and -s"),
    ],
)
def test_options_without_an_effect_are_refused(options: CompileOptions, spelling: str) -> None:
    with pytest.raises(UsageError, match=f"OpenVINO does not take {spelling}; leave it out"):
        openvino.require_host(options)


def test_compile_refuses_an_altered_graph(bundle: Bundle) -> None:
    path = bundle.directory / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BundleError, match="was altered"):
        openvino.compile(bundle, "fp32", CompileOptions())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a graph", r"cannot open .*model.onnx: .*can't be parsed"),
        (b"", "fp32 engine fails at batch 96, 4 tokens: .*input_ids was not found"),
    ],
)
def test_compile_says_what_openvino_says_of_a_broken_graph(
    bundle: Bundle, content: bytes, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = bundle.directory / "model.onnx"
    path.write_bytes(content)
    bundle.manifest.graphs["fp32"].files = [file_record(path, root=bundle.directory)]
    with pytest.raises(BuildFailed, match=said):
        openvino.compile(bundle, "fp32", CompileOptions())
    assert capfd.readouterr() == ("", "")


def test_compile_names_the_bucket_that_fails(bundle: Bundle) -> None:
    output = bundle.manifest.outputs[0]
    bundle.manifest.outputs[0] = replace(output, name="scores_that_are_not_there")
    with pytest.raises(BuildFailed, match=r"fp32 engine fails at batch 96, 4 tokens: .*not_there"):
        openvino.compile(bundle, "fp32", CompileOptions())
