"""The whole road on small models: built, loaded, altered, refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

import attn_export
from attn_export.benchmarks.parity import ParityReport
from attn_export.bucketing import BucketOptions
from attn_export.build import (
    BuildPlan,
    build,
    compile_bundle,
    parity,
    resolve_backends,
)
from attn_export.bundle import Bundle, file_record, write_manifest
from attn_export.engines.cuda_driver import Cuda
from attn_export.engines.profiles import given_profiles
from attn_export.engines.session import CompileOptions
from attn_export.errors import (
    BuildFailed,
    BundleError,
    GateFailed,
    HostError,
    InputError,
    UsageError,
)
from attn_export.exporter.attention import Attention
from attn_export.exporter.source import ModelSource, load_model
from attn_export.gates import require_parity
from attn_export.manifest import EngineRecord
from attn_export.portable import Fp16Options, export

TINY = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "vocab_size": 60, "max_length": 16}


def say(step: str) -> None:
    """Nobody listens."""


def tiny(model: str, **more: Any) -> ModelSource:
    options = {**TINY, **({"num_kv_heads": 2} if model == "gqa" else {})}
    return ModelSource(model=model, options=options, **more)


def plan_of(source: ModelSource, **more: Any) -> BuildPlan:
    return BuildPlan(
        **{
            "source": source,
            "fp16": Fp16Options(),
            "buckets": BucketOptions(count=2),
            "backend": "onnxruntime",
            **more,
        }
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle of a tiny model; copy it before changing it."""
    made: dict[str, Path] = {}

    def make(model: str) -> Path:
        if model not in made:
            made[model] = tmp_path_factory.mktemp("built") / model
            require_parity(build(plan_of(tiny(model)), made[model], say=say))
        return made[model]

    return make


@pytest.fixture
def bundle(built: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the MQA bundle."""
    return shutil.copytree(built("mqa"), tmp_path / "bundle")


def again(directory: Path, **more: Any) -> ParityReport:
    report, note = parity(
        directory, **{"engine": None, "reference": "auto", "tolerances": None, **more}
    )
    assert note is None
    return report


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
def test_a_bundle_holds_what_it_says_and_passes_parity_again(
    built: Callable[[str], Path], model: str
) -> None:
    directory = built(model)
    manifest = Bundle.open(directory).manifest
    assert set(manifest.graphs) == {"fp32", "fp16"}
    assert set(manifest.engines) == {"onnxruntime-fp32", "onnxruntime-fp16"}
    assert manifest.graphs["fp16"].summary["casts_inserted"] == 2
    assert manifest.buckets["edges"][-1] == 16
    for graph in manifest.graphs.values():
        Bundle.open(directory).verify_graph(graph)
    for engine in manifest.engines.values():
        assert engine.parity is not None
        assert engine.parity["passed"]
        assert engine.parity["sha256"] == manifest.graphs[engine.graph].files[0].sha256
    names = {p.name for p in directory.iterdir()}
    assert names == {
        "manifest.json",
        "model.onnx",
        "model.fp16.onnx",
        "model.fp16.twin.onnx",
        "reference.npz",
        "reports",
    }


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
def test_the_engine_answers_as_the_textbook_does(built: Callable[[str], Path], model: str) -> None:
    rng = np.random.default_rng(0)
    requests = [rng.integers(0, 60, n).astype(np.int32) for n in (3, 16, 1, 7, 7, 12)]
    module = load_model(tiny(model)).module
    with attn_export.load(built(model), threads=1) as engine:
        assert engine.precision == "fp32"
        got = engine.run_many(requests)["logits"]
    for request, row in zip(requests, got, strict=True):
        ids = torch.from_numpy(request)[None]
        with torch.inference_mode():
            expected = module(ids, torch.ones_like(ids))[0][0].numpy()
        np.testing.assert_allclose(row, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("reference", ["eager", "golden"])
def test_both_references_agree(bundle: Path, reference: str) -> None:
    report = again(bundle, reference=reference)
    assert report.reference == reference
    assert report.passed


def scale_a_weight(directory: Path, file: str, factor: float) -> None:
    """Change one weight matrix of a graph, in place."""
    proto = onnx.load(directory / file)
    tensor = next(t for t in proto.graph.initializer if t.name == "layers.0.attention.value.weight")
    array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.raw_data = array.tobytes()
    onnx.save(proto, directory / file)


def test_an_altered_weight_is_refused(bundle: Path) -> None:
    scale_a_weight(bundle, "model.onnx", 1.5)
    with pytest.raises(BundleError, match="altered"):
        again(bundle)
    with pytest.raises(BundleError, match="altered"):
        attn_export.load(bundle)


def test_an_altered_weight_with_a_matching_hash_fails_parity(bundle: Path) -> None:
    scale_a_weight(bundle, "model.onnx", 1.5)
    manifest = Bundle.open(bundle).manifest
    manifest.graphs["fp32"].files = [file_record(bundle / "model.onnx", root=bundle)]
    write_manifest(bundle, manifest)
    report = again(bundle, engine="onnxruntime-fp32")
    assert not report.passed
    assert report.engines[0].judge.outputs[0].max_abs > 1e-3
    with pytest.raises(GateFailed, match="onnxruntime-fp32 differs"):
        require_parity(report)
    # The verdict is in the bundle now: only the engine that still passes is loaded.
    with pytest.raises(BundleError):
        attn_export.load(bundle)


def test_an_overflow_that_only_fp16_hardware_would_show_fails_the_build(tmp_path: Path) -> None:
    """Every score is 1e5 larger: the softmax does not see it, FP16 cannot hold it."""
    inner = load_model(tiny("mha")).module.inner
    for part in inner.modules():
        if isinstance(part, Attention):
            size = part.head_size
            with torch.no_grad():
                for projection in (part.query, part.key):
                    projection.weight[::size] = 0
                    projection.bias[::size] = (1e5 * size**0.5) ** 0.5
                part.value.weight.mul_(0.01)  # FP32 has steps of 0.008 there: keep them small
    save_file(inner.state_dict(), tmp_path / "large.safetensors")
    source = tiny("mha", weights=str(tmp_path / "large.safetensors"))
    report = build(plan_of(source), tmp_path / "b", say=say)
    fp32, fp16 = report.engines
    assert fp32.passed
    assert not fp16.passed
    engine, twin = fp16.runs
    assert engine.outputs[0].verdict in ("pass", "fail")  # finite on a CPU
    assert twin.outputs[0].verdict == "nonfinite"
    mended = plan_of(source, fp16=Fp16Options(nodes_to_exclude=[r".*\.(scores|mask_add|softmax)"]))
    twin = build(mended, tmp_path / "b", say=say).engines[1].runs[1]
    assert twin.outputs[0].verdict in ("pass", "fail")


def test_compile_needs_no_model(bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    manifest.engines.clear()
    manifest.model["source"]["model"] = "gone.module:make"
    write_manifest(bundle, manifest)
    report = compile_bundle(
        bundle, backend="onnxruntime", options=CompileOptions(), tolerances=None, say=say
    )
    assert report.reference == "golden"
    assert report.passed
    attn_export.load(bundle).close()


NO_GPU = Cuda(version=None, gpus=(), problem="no NVIDIA driver (libcuda.so.1 was not found)")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cuda_driver", "targets", "tensorrt"):
        monkeypatch.setattr(f"attn_export.engines.{module}.probe", lambda: NO_GPU)


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("target", [None, "t4"])
def test_compile_without_a_gpu_says_so_and_changes_nothing(
    bundle: Path, target: str | None
) -> None:
    before = contents(bundle)
    with pytest.raises(HostError) as caught:
        compile_bundle(
            bundle,
            backend="tensorrt",
            options=CompileOptions(target=target),
            tolerances=None,
            say=say,
        )
    assert caught.value.exit_code == 3
    assert "no NVIDIA driver" in str(caught.value)
    assert f"{bundle} is unchanged" in str(caught.value)
    assert contents(bundle) == before


@pytest.mark.usefixtures("no_gpu")
def test_a_build_for_a_gpu_elsewhere_leaves_a_bundle_that_can_be_compiled(tmp_path: Path) -> None:
    plan = plan_of(tiny("mqa"), backend="auto", options=CompileOptions(target="t4"))
    with pytest.raises(HostError) as caught:
        build(plan, tmp_path / "b", say=say)
    assert "a GPU of compute capability 7.5 (T4)" in str(caught.value)
    assert f"attn-export compile {tmp_path / 'b'}" in str(caught.value)
    made = Bundle.open(tmp_path / "b")
    assert set(made.manifest.graphs) == {"fp32", "fp16"}
    assert made.manifest.engines == {}
    report = compile_bundle(
        tmp_path / "b", backend="onnxruntime", options=CompileOptions(), tolerances=None, say=say
    )
    assert report.passed
    attn_export.load(tmp_path / "b").close()


def test_shapes_for_a_gpu_are_refused_on_a_cpu(bundle: Path) -> None:
    options = CompileOptions(profiles=given_profiles([(1, 2, 2)], [(1, 5, 5)]))
    with pytest.raises(UsageError, match="-b and -s are for a GPU"):
        compile_bundle(bundle, backend="onnxruntime", options=options, tolerances=None, say=say)


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_every_installed_cpu_backend_where_no_gpu_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resolve_backends("auto", CompileOptions()) == ("onnxruntime", "openvino")
    assert resolve_backends("openvino", CompileOptions()) == ("openvino",)
    on_cuda = CompileOptions(provider="cuda", target="t4")
    assert resolve_backends("auto", on_cuda) == ("onnxruntime",)
    assert resolve_backends("auto", CompileOptions(target="t4")) == ("tensorrt",)
    monkeypatch.setattr("attn_export.build._installed", lambda package: package == "onnxruntime")
    assert resolve_backends("auto", CompileOptions()) == ("onnxruntime",)
    monkeypatch.setattr("attn_export.build._installed", lambda package: False)
    assert resolve_backends("auto", CompileOptions()) == ("onnxruntime",), "its error names it"


def test_a_verdict_on_other_bytes_counts_for_nothing(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    engine = manifest.engines["onnxruntime-fp32"]
    assert engine.parity is not None
    engine.parity["sha256"] = "0" * 64
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=r"onnxruntime-fp32 \(parity failed"):
        attn_export.load(bundle)


def test_an_engine_for_elsewhere_is_skipped_by_parity_unless_it_is_named(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    plan = EngineRecord(
        backend="tensorrt",
        precision="fp16",
        graph="fp16",
        variant="sm75-10.16.1",
        environment={"compute_capability": "7.5", "tensorrt": "10.16.1.11", "gpu": "Tesla T4"},
    )
    manifest.engines[plan.name] = plan
    write_manifest(bundle, manifest)
    report = again(bundle)
    assert report.passed
    assert list(report.skipped) == ["tensorrt-fp16-sm75-10.16.1"]
    with pytest.raises(HostError):
        again(bundle, engine=plan.name)
    manifest.engines = {plan.name: plan}
    write_manifest(bundle, manifest)
    with pytest.raises(HostError, match="this machine can run no engine of the bundle"):
        again(bundle)


def test_profiles_set_the_buckets_of_a_build(tmp_path: Path) -> None:
    profiles = given_profiles([(1, 2, 2)], [(1, 5, 5), (6, 12, 12)])
    report = build(
        plan_of(tiny("gqa"), buckets=BucketOptions(profiles=profiles)), tmp_path / "b", say=say
    )
    assert report.passed
    assert Bundle.open(tmp_path / "b").manifest.buckets["edges"] == [5, 12]
    too_long = given_profiles([(1, 2, 2)], [(1, 5, 17)])
    with pytest.raises(UsageError, match="longer than the model's 16 tokens"):
        build(
            plan_of(tiny("gqa"), buckets=BucketOptions(profiles=too_long)), tmp_path / "c", say=say
        )


def test_other_weights_than_the_bundles_fall_back_to_the_golden_file(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    manifest.model["source"]["seed"] = 99
    write_manifest(bundle, manifest)
    report = again(bundle)
    assert report.reference == "golden"
    assert "other weights" in report.reason
    with pytest.raises(BundleError, match="other weights"):
        again(bundle, reference="eager")


def test_two_builds_into_one_directory(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    code = "import sys; from attn_export.bundle import locked; from pathlib import Path\n"
    code += "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(bundle)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parent.parent / "src")},
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(HostError, match="another attn-export is writing"):
            build(plan_of(tiny("mqa")), bundle, say=say)
        other.communicate()
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        (plan_of(ModelSource(model="nonsense")), UsageError, "unknown model"),
        (plan_of(ModelSource(model="mha", options={"num_heads": 5})), UsageError, "do not divide"),
        (plan_of(tiny("mqa"), backend="quantum"), UsageError, "unknown backend 'quantum'"),
        (
            plan_of(tiny("mqa"), buckets=BucketOptions(max_length=17)),
            UsageError,
            "over the model's maximum of 16",
        ),
        (
            plan_of(tiny("mqa"), fp16=Fp16Options(op_types_to_exclude=["Conv"])),
            UsageError,
            "nothing in the graph matches Conv",
        ),
        (plan_of(tiny("mqa", weights="/absent.pt")), UsageError, "no checkpoint at"),
    ],
)
def test_a_build_that_cannot_be_leaves_nothing(
    tmp_path: Path, plan: BuildPlan, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build(plan, tmp_path / "b", say=say)
    assert list(tmp_path.iterdir()) == []


def test_data_over_the_last_edge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"input_ids": list(range(17))}))
    plan = plan_of(tiny("mqa"), buckets=BucketOptions(data=tmp_path / "long.jsonl"))
    with pytest.raises(InputError, match="17"):
        build(plan, tmp_path / "b", say=say)


def test_buckets_come_from_the_data(tmp_path: Path) -> None:
    rows = [{"input_ids": [1] * n} for n in (3, 3, 9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plan = plan_of(
        tiny("mqa"),
        buckets=BucketOptions(count=3, data=tmp_path / "rows.jsonl", max_length=12),
        fp16=None,
    )
    build(plan, tmp_path / "b", say=say)
    buckets = Bundle.open(tmp_path / "b").manifest.buckets
    assert buckets["edges"] == [3, 9, 12]
    assert buckets["source"] == "rows.jsonl"
    assert buckets["padded_share"] == 0.0


def test_a_factory_that_raises_is_a_build_failure(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def make():\n    raise ValueError('no')\n")
    source = ModelSource(model=f"{tmp_path / 'bad.py'}:make")
    with pytest.raises(BuildFailed, match="raised ValueError: no"):
        build(plan_of(source), tmp_path / "b", say=say)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("fp16_io", [False, True])
def test_the_example_goes_the_whole_road(tmp_path: Path, root: Path, fp16_io: bool) -> None:
    source = ModelSource(model=f"{root / 'examples' / 'tagger.py'}:make")
    plan = plan_of(source, fp16=Fp16Options(fp16_io=fp16_io))
    require_parity(build(plan, tmp_path / "b", say=say))
    with attn_export.load(tmp_path / "b", precision="fp16", threads=1) as engine:
        tags = engine.run_many([[1, 2, 3], [4, 5]])["tags"]
    assert [row.shape for row in tags] == [(3, 9), (2, 9)]
    assert tags[0].dtype == (np.float16 if fp16_io else np.float32)
    islands = Bundle.open(tmp_path / "b").manifest.graphs["fp16"].keep_fp32
    assert set(islands) == {"mask", "norm_statistics"}


TORCH_ATTENTION = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]

def make():
    torch.manual_seed(0)
    axes = {"x": {0: "batch", 1: "sequence"}}
    return Net(), {"x": torch.randn(2, 8, 64)}, axes
"""


@pytest.mark.parametrize("fp16_io", [False, True])
def test_torchs_own_attention_with_float_inputs_goes_the_whole_road(
    tmp_path: Path, fp16_io: bool
) -> None:
    (tmp_path / "net.py").write_text(TORCH_ATTENTION)
    source = ModelSource(model=f"{tmp_path / 'net.py'}:make", max_length=24)
    require_parity(
        build(plan_of(source, fp16=Fp16Options(fp16_io=fp16_io)), tmp_path / "b", say=say)
    )
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    rows = {}
    for precision in ("fp32", "fp16"):
        with attn_export.load(tmp_path / "b", precision=precision, threads=1) as engine:
            rows[precision] = engine.run_many([{"x": x}, {"x": x[:2]}])["output"]
            assert engine.run({"x": x[None]})["output"].shape == (1, 5, 64)
    assert [row.shape for row in rows["fp16"]] == [(5, 64), (2, 64)]
    np.testing.assert_allclose(rows["fp16"][0], rows["fp32"][0], atol=5e-3)


def test_a_lone_graph_is_compared_and_written_whole(tmp_path: Path) -> None:
    summary, verdict, _ = export(tiny("gqa"), tmp_path / "out" / "g.onnx", lowering="fold", say=say)
    assert "equal to eager PyTorch" in verdict
    assert summary["opset"] == 17
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["g.onnx"]
    onnx.checker.check_model(str(tmp_path / "out" / "g.onnx"), full_check=True)


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Block())
"""


def test_a_host_without_torch_loads_runs_and_proves_the_bundle(
    bundle: Path, fresh_python: Callable[..., Any]
) -> None:
    code = BLOCKED + (
        "import attn_export\n"
        "from pathlib import Path\n"
        "with attn_export.load(sys.argv[1]) as engine:\n"
        "    print(engine.run_many([[1, 2, 3]])['logits'].shape)\n"
        "from attn_export.build import parity\n"
        "report, _ = parity(Path(sys.argv[1]), engine=None, reference='auto', tolerances=None)\n"
        "print(report.passed, report.reference, len(report.engines[1].runs))\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = fresh_python("-c", code, str(bundle))
    assert result.stdout.splitlines() == ["(1, 3)", "True golden 2"]
