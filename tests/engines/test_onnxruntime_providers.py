"""ONNX Runtime's providers: exact options, and a reason for each host that cannot use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from attn_export.engines import onnxruntime, targets
from attn_export.engines import onnxruntime_providers as providers
from attn_export.engines.cuda_driver import Cuda, Gpu
from attn_export.engines.profiles import Profile, bucket_profiles
from attn_export.engines.session import CompileOptions
from attn_export.errors import BundleError, HostError, UsageError
from attn_export.manifest import EngineRecord
from attn_export.spec import TensorSpec

A_LIBRARY = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_shared.so"
TOKENS = ("batch", "sequence")
INPUTS = [
    TensorSpec(name="input_ids", dtype="int32", shape=TOKENS, role="ids", limit=50),
    TensorSpec(name="attention_mask", dtype="int32", shape=TOKENS, role="mask"),
    TensorSpec(name="features", dtype="float32", shape=("batch", 7)),
    TensorSpec(name="scale", dtype="float32", shape=(2,)),
]


def options_for(precision: str = "fp32", **given: Any) -> dict[str, dict[str, str]]:
    return providers.provider_options(
        precision,
        CompileOptions(**given),
        inputs=INPUTS,
        profiles=bucket_profiles((16, 128), 8192),
        engine_cache="trt/name",
    )


def test_the_cpu_needs_no_options() -> None:
    assert options_for() == {"CPUExecutionProvider": {}}


@pytest.mark.parametrize(
    ("precision", "strict"), [("fp32", {}), ("int8", {}), ("fp16", {}), ("int8-fp16", {})]
)
def test_cuda_never_rounds_to_tf32_and_keeps_fp16_layernorm_statistics(
    precision: str, strict: dict[str, str]
) -> None:
    if "fp16" in precision:
        strict = {"enable_skip_layer_norm_strict_mode": "1"}
    expected = {"CUDAExecutionProvider": {"use_tf32": "0", **strict}}
    assert options_for(precision, provider="cuda") == expected


def test_tensorrt_is_asked_for_one_box_and_no_precision() -> None:
    """16 tokens: 512 sequences; 128 tokens: 64. The box holds both, tuned for the second."""
    assert options_for("fp16", provider="tensorrt") == {
        "TensorrtExecutionProvider": {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": "trt/name",
            "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1,features:1x7",
            "trt_profile_opt_shapes": "input_ids:64x128,attention_mask:64x128,features:64x7",
            "trt_profile_max_shapes": "input_ids:512x128,attention_mask:512x128,features:512x7",
        },
        "CUDAExecutionProvider": {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"},
    }


def test_tensorrt_gets_the_workspace_in_bytes_and_the_level() -> None:
    plain = options_for(provider="tensorrt")["TensorrtExecutionProvider"]
    given = options_for(provider="tensorrt", workspace_mib=3, optimization_level=0)
    assert given["TensorrtExecutionProvider"] == {
        **plain,
        "trt_max_workspace_size": "3145728",
        "trt_builder_optimization_level": "0",
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"provider": "cpu", "target": "t4"}, "--target does nothing .* provider cpu"),
        ({"provider": "cpu", "workspace_mib": 64}, "--workspace does nothing"),
        ({"provider": "cuda", "optimization_level": 0}, "--optimization-level does nothing"),
        ({"provider": "tensorrt", "error_on_cache_miss": True}, "--error-on-timing-cache-miss"),
        ({"provider": "tensorrt", "version_compatible": "lean"}, "--version-compatible"),
        ({"provider": "tensorrt", "same_compute_capability": True}, "--same-compute-capability"),
        ({"provider": "tensorrt", "timeout_s": 9.0}, "--timeout .* use --backend tensorrt"),
    ],
)
def test_what_has_no_effect_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        onnxruntime.require_host(CompileOptions(**given))


def test_the_union_is_tuned_for_the_longest_profile() -> None:
    given = [
        Profile(batch=(2, 4, 8), sequence=(64, 100, 128)),
        Profile(batch=(3, 32, 99), sequence=(5, 8, 16)),
    ]
    assert providers.union_profile(given) == Profile(batch=(2, 4, 99), sequence=(5, 100, 128))


def test_folders_are_put_where_the_bundle_is_and_nothing_else_changes() -> None:
    options = options_for(provider="tensorrt")
    here = providers.placed(options, Path("/there/trt"), timing_cache=Path("/times"))
    assert here["CUDAExecutionProvider"] == options["CUDAExecutionProvider"]
    assert here["TensorrtExecutionProvider"] == {
        **options["TensorrtExecutionProvider"],
        "trt_engine_cache_path": "/there/trt",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "/times",
    }
    assert options["TensorrtExecutionProvider"]["trt_engine_cache_path"] == "trt/name"


def record_of(variant: str, options: Any) -> EngineRecord:
    environment = {"provider_options": options}
    return EngineRecord(
        backend="onnxruntime",
        precision="fp16",
        graph="fp16",
        variant=variant,
        environment=environment,
    )


def test_recorded_options_come_back_without_what_only_the_build_needs() -> None:
    options = options_for(provider="tensorrt", workspace_mib=3, optimization_level=5)
    found = providers.recorded_options(record_of("tensorrt", options))
    assert found == options_for(provider="tensorrt")


@pytest.mark.parametrize(
    ("variant", "options", "said"),
    [
        ("cuda", None, "are broken"),
        ("rocm", {"CUDAExecutionProvider": {}}, "are broken"),
        ("tensorrt", {"CUDAExecutionProvider": {}}, "are broken"),
        ("cuda", {"CUDAExecutionProvider": {"gpu_external_alloc": "1"}}, "gpu_external_alloc of"),
        (
            "tensorrt",
            {
                "TensorrtExecutionProvider": {"trt_extra_plugin_lib_paths": "evil.so"},
                "CUDAExecutionProvider": {},
            },
            "trt_extra_plugin_lib_paths of TensorrtExecutionProvider",
        ),
    ],
)
def test_a_manifest_may_not_ask_for_other_options(variant: str, options: Any, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        providers.recorded_options(record_of(variant, options))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_without_a_driver_that_is_the_reason(
    provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Cuda(version=None, gpus=(), problem="no NVIDIA driver")
    monkeypatch.setattr(targets, "probe", lambda: nothing)
    with pytest.raises(HostError, match="no NVIDIA driver"):
        providers.require_provider(provider)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_cpu_build_is_named_with_the_way_out(
    provider: Any, gpu: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(HostError) as caught:
        providers.require_provider(provider)
    assert "has no " in str(caught.value)
    assert "it has: CPUExecutionProvider" in str(caught.value)
    assert "pip uninstall -y onnxruntime && pip install 'attn-export[gpu]'" in str(caught.value)


def test_another_gpu_than_the_target_is_refused(gpu: object) -> None:
    with pytest.raises(
        HostError, match=r"Tesla T4, compute capability 7\.5; .*8\.9 \(L4\) was asked"
    ):
        providers.require_provider("cuda", "l4")


def test_the_gpu_is_returned(gpu_onnxruntime: object) -> None:
    assert providers.require_provider("tensorrt", "t4").name == "Tesla T4"


def test_a_provider_that_is_in_use_is_no_error() -> None:
    providers.require_in_use(
        ["CUDAExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )


@pytest.mark.parametrize(
    ("wanted", "in_use", "missing"),
    [
        (["CUDAExecutionProvider"], ["CPUExecutionProvider"], "CUDAExecutionProvider"),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
            "TensorrtExecutionProvider",
        ),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
            ["TensorrtExecutionProvider", "CPUExecutionProvider"],
            "CUDAExecutionProvider",
        ),
    ],
)
def test_a_provider_left_out_in_silence_is_an_error(
    wanted: list[str], in_use: list[str], missing: str
) -> None:
    with pytest.raises(HostError) as caught:
        providers.require_in_use(wanted, in_use)
    assert f"would run on {', '.join(in_use)} without {missing}: " in str(caught.value)
    # The CPU build has no such library, and the linker says so.
    assert "cannot open shared object file" in str(caught.value)


def test_a_library_that_loads_leaves_the_reason_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "library_problem", lambda name: None)
    with pytest.raises(HostError, match="log on stderr has the reason; install the CUDA"):
        providers.require_in_use(["CUDAExecutionProvider"], ["CPUExecutionProvider"])


def test_the_linker_is_asked_for_the_providers_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "capi").mkdir()
    for name, source in (("cuda", b"no library"), ("tensorrt", A_LIBRARY.read_bytes())):
        (tmp_path / "capi" / f"libonnxruntime_providers_{name}.so").write_bytes(source)
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    problem = str(providers.library_problem("CUDAExecutionProvider"))
    assert "libonnxruntime_providers_cuda.so: file too short" in problem
    assert providers.library_problem("TensorrtExecutionProvider") is None


@pytest.mark.parametrize(
    ("what", "environment", "gpu"),
    [
        ("onnxruntime 1.2.3", {"onnxruntime": "1.2.3", "compute_capability": "7.5"}, "7.5"),
        (
            "compute capability 7.5",
            {"onnxruntime": ort.__version__, "compute_capability": "7.5"},
            "8.9",
        ),
    ],
)
def test_an_engine_of_another_host_is_refused_before_it_is_built_again(
    what: str, environment: dict[str, str], gpu: str
) -> None:
    record = record_of("tensorrt", {})
    record.environment.update(environment)
    here = Gpu(name="a GPU", compute_capability=gpu, memory_mib=1)
    with pytest.raises(HostError, match=f"fp16-tensorrt was compiled with {what}, here it is"):
        providers.require_same_host(record, here)


def test_preloading_prints_nothing(
    gpu_onnxruntime: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def preload_dlls() -> None:
        called.append(True)
        print("Failed to load libcublasLt.so.13")  # noqa: T201  (as ONNX Runtime does)

    monkeypatch.setattr(ort, "preload_dlls", preload_dlls)
    providers.load_libraries("tensorrt")
    assert called == [True]
    assert capsys.readouterr() == ("", "")


def show_gpu(gpu: Callable[[Gpu], None], capability: str) -> None:
    gpu(Gpu(name="another", compute_capability=capability, memory_mib=1))


def test_the_environment_says_what_ran_where(gpu_onnxruntime: object, gpu: Any) -> None:
    show_gpu(gpu, "8.9")
    options = {"CUDAExecutionProvider": {"use_tf32": "0"}}
    found = providers.gpu_environment("cuda", providers.require_provider("cuda"), options)
    assert found == {
        "provider": "CUDAExecutionProvider",
        "provider_options": options,
        "gpu": "another",
        "compute_capability": "8.9",
        "driver_cuda": "13.0",
    }
