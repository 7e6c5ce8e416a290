"""Building plans with every version of TensorRT's API."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from attn_export.engines.cuda_driver import Gpu
from attn_export.engines.profiles import Profile
from attn_export.engines.trt_api import is_strongly_typed
from attn_export.engines.trt_builder import BuildRequest, build_plan
from attn_export.errors import BuildFailed, HostError, MissingPackage, UsageError
from attn_export.spec import TensorSpec

VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
WEAK, FOLLOWED = VERSIONS[0], VERSIONS[1:]
MakeDouble = Callable[[str], Any]
T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15360)
PROFILES = (
    Profile(batch=(1, 8, 32), sequence=(1, 8, 8)),
    Profile(batch=(1, 4, 16), sequence=(9, 16, 16)),
)
TOKENS = [
    TensorSpec(name=name, dtype="int32", shape=("batch", "sequence"))
    for name in ("input_ids", "attention_mask")
]


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, tensorrt_double: MakeDouble) -> Any:
    return tensorrt_double(request.param)


@pytest.fixture(params=FOLLOWED)
def followed(request: pytest.FixtureRequest, tensorrt_double: MakeDouble) -> Any:
    """A TensorRT with a progress monitor."""
    return tensorrt_double(request.param)


@pytest.fixture
def weak(tensorrt_double: MakeDouble) -> Any:
    """The one that flags and layers give a precision, and that cannot be stopped."""
    return tensorrt_double(WEAK)


@pytest.fixture
def request_fp32(tmp_path: Path, model_bytes: bytes) -> BuildRequest:
    """The tiny encoder in FP32, each node named as its output."""
    model = onnx.load_model_from_string(model_bytes)
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, tmp_path / "model.onnx")
    return BuildRequest(
        graph=tmp_path / "model.onnx",
        precision="fp32",
        typed=False,
        profiles=PROFILES,
        inputs=TOKENS,
        gpu=T4,
    )


@pytest.fixture
def request_fp16(request_fp32: BuildRequest) -> BuildRequest:
    """The same in FP16, as flags and layers say it."""
    keep = {"norm": ["hidden"], "mask": ["row_bias", "masked"]}
    return replace(request_fp32, precision="fp16", keep_fp32=keep)


def with_options(request: BuildRequest, **options: Any) -> BuildRequest:
    return replace(request, options=replace(request.options, **options))


def read(plan: bytes) -> Any:
    """What the double's plan holds."""
    return importlib.import_module("inside_tensorrt.plan").Plan.from_bytes(plan)


def computes_in(plan: bytes) -> dict[str, str]:
    """By what a layer gives: 8.6 leaves some without a name."""
    return {tensor.name: layer.dtype for layer in read(plan).layers for tensor in layer.outputs}


def press_ctrl_c(after_s: float) -> threading.Timer:
    """Give the main thread a Ctrl-C, as the system does."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(after_s, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    return timer


def test_a_plan_has_every_profile_and_says_how_it_was_built(
    trt: Any, request_fp32: BuildRequest
) -> None:
    built = build_plan(request_fp32)
    plan = read(built.plan)
    tokens = [[1, 1], [8, 8], [32, 8]], [[1, 9], [4, 16], [16, 16]]
    assert plan.profiles == [{"input_ids": shapes, "attention_mask": shapes} for shapes in tokens]
    assert plan.verbosity == "DETAILED"
    assert built.version == trt.__version__
    assert built.flags == ("STRONGLY_TYPED" if is_strongly_typed(trt) else "EXPLICIT_BATCH",)
    assert built.layers == tuple(node.name for node in onnx.load(request_fp32.graph).graph.node)
    assert (built.timing_cache, built.notes) == (None, ())
    assert built.seconds > 0


def test_a_typed_graph_keeps_its_types(followed: Any, tmp_path: Path) -> None:
    """x -> FP16, MatMul, -> FP32: the product is FP16 because the graph says so."""
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float16), "weights")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["half"], name="half", to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["half", "weights"], ["product"], name="product"),
            helper.make_node("Cast", ["product"], ["y"], name="y", to=TensorProto.FLOAT),
        ],
        "typed",
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.fp16.onnx")
    built = build_plan(
        BuildRequest(
            graph=tmp_path / "model.fp16.onnx",
            precision="fp16",
            typed=True,
            profiles=PROFILES[:1],
            inputs=[TensorSpec(name="x", dtype="float32", shape=("batch", 4))],
            gpu=T4,
        )
    )
    assert built.flags == ("STRONGLY_TYPED",)
    assert computes_in(built.plan) == {"half": "HALF", "product": "HALF", "y": "FLOAT"}


def test_weak_typing_computes_in_fp16_but_for_the_keep_list(
    weak: Any, request_fp16: BuildRequest
) -> None:
    built = build_plan(request_fp16)
    types = computes_in(built.plan)
    kept = {"hidden", "row_bias", "masked"}
    assert {name: types[name] for name in kept} == dict.fromkeys(kept, "FLOAT")
    assert types["scores"] == types["context"] == types["weights"] == "HALF"
    assert built.flags == ("EXPLICIT_BATCH", "FP16", "OBEY_PRECISION_CONSTRAINTS")
    assert built.notes == ()
    assert read(built.plan).profile_sharing


def test_int8_of_weak_typing_has_both_flags(weak: Any, request_fp32: BuildRequest) -> None:
    built = build_plan(replace(request_fp32, precision="int8"))
    assert built.flags == ("EXPLICIT_BATCH", "INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS")


def test_fp16_inputs_and_outputs_of_weak_typing(weak: Any, request_fp16: BuildRequest) -> None:
    plan = read(build_plan(replace(request_fp16, fp16_io=True)).plan)
    assert [tensor.dtype for tensor in plan.inputs] == ["INT32", "INT32"]
    assert [tensor.dtype for tensor in plan.outputs] == ["HALF", "HALF"]


def test_kept_nodes_without_a_layer_are_a_note(weak: Any, request_fp16: BuildRequest) -> None:
    gone = [f"gone.{number}" for number in range(7)]
    built = build_plan(replace(request_fp16, keep_fp32={"norm": ["hidden", *gone]}))
    assert built.notes == (
        "TensorRT has no layer of these norm nodes to keep in FP32: gone.0, gone.1, gone.2, "
        "gone.3, gone.4 and 2 more",
    )


def test_where_no_kernel_obeys_fp32_is_preferred_and_noted(
    weak: Any, request_fp16: BuildRequest
) -> None:
    weak.double.fail_build = "conflict"
    built = build_plan(request_fp16)
    assert weak.double.builds == 2
    assert built.flags == ("EXPLICIT_BATCH", "FP16", "PREFER_PRECISION_CONSTRAINTS")
    assert len(built.notes) == 1
    assert "only prefers FP32 there (PREFER_PRECISION_CONSTRAINTS): " in built.notes[0]
    assert "Could not find any implementation for node" in built.notes[0]


def test_without_kept_layers_there_is_nothing_to_prefer(
    weak: Any, request_fp16: BuildRequest
) -> None:
    weak.double.fail_build = "tactic"
    with pytest.raises(BuildFailed, match="Could not find any implementation"):
        build_plan(replace(request_fp16, keep_fp32={}))
    assert weak.double.builds == 1


@pytest.mark.parametrize(
    ("version", "typed", "needed"),
    [
        (WEAK, True, "the FP32 graph and flags"),
        (FOLLOWED[0], False, "a typed graph"),
        (FOLLOWED[1], False, "a typed graph"),
    ],
)
def test_the_wrong_kind_of_graph_is_refused(
    tensorrt_double: MakeDouble,
    request_fp32: BuildRequest,
    version: str,
    typed: bool,
    needed: str,
) -> None:
    tensorrt_double(version)
    with pytest.raises(UsageError, match=f"builds int8 from {needed}; model.onnx is not"):
        build_plan(replace(request_fp32, precision="int8", typed=typed))


def test_weak_typing_builds_three_precisions(weak: Any, request_fp32: BuildRequest) -> None:
    with pytest.raises(UsageError, match="does not build int8-fp16; it builds fp32, fp16, int8"):
        build_plan(replace(request_fp32, precision="int8-fp16"))


def test_inputs_unlike_the_graphs_are_refused(trt: Any, request_fp32: BuildRequest) -> None:
    with pytest.raises(BuildFailed, match="the bundle says input_ids; export it again"):
        build_plan(replace(request_fp32, inputs=TOKENS[:1]))


def test_options_are_checked_before_tensorrt_is_looked_for(
    request_fp32: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UsageError, match="level is 9"):
        build_plan(with_options(request_fp32, optimization_level=9))
    with pytest.raises(HostError, match=r"needs 0 MiB .* has 0 MiB"):
        build_plan(replace(request_fp32, gpu=replace(T4, memory_mib=0)))
    with pytest.raises(MissingPackage):
        build_plan(request_fp32)


@pytest.mark.parametrize("kind", ["lean", "embedded"])
def test_version_compatible_plans(trt: Any, request_fp32: BuildRequest, kind: str) -> None:
    built = build_plan(with_options(request_fp32, version_compatible=kind))
    plan = read(built.plan)
    assert plan.version_compatible
    assert plan.lean_runtime == (kind == "embedded")
    assert ("EXCLUDE_LEAN_RUNTIME" in built.flags) == (kind == "lean")


def test_a_failed_build_gives_tensorrts_lines(trt: Any, request_fp32: BuildRequest) -> None:
    trt.double.fail_build = "Error Code 4: Internal Error (something)"
    with pytest.raises(BuildFailed) as caught:
        build_plan(request_fp32)
    assert f"building fp32 with TensorRT {trt.__version__} failed:\n  " in str(caught.value)
    assert "Error Code 4: Internal Error (something)" in str(caught.value)


def test_a_failure_holds_nothing_of_tensorrt(trt: Any, request_fp32: BuildRequest) -> None:
    trt.double.fail_build = "tactic"
    kinds = (trt.Builder, trt.INetworkDefinition, trt.IBuilderConfig, trt.OnnxParser)
    with pytest.raises(BuildFailed) as caught:
        build_plan(request_fp32)
    assert caught.value
    assert not [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]


def test_what_others_were_made_from_is_freed_after_them(
    trt: Any, request_fp32: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[str] = []

    def follow(cls: Any, method: str, name: str) -> None:
        made = getattr(cls, method)

        def make(this: Any, *args: Any) -> Any:
            result = made(this, *args)
            weakref.finalize(this if result is None else result, freed.append, name)
            return result

        monkeypatch.setattr(cls, method, make)

    follow(trt.Builder, "__init__", "builder")
    follow(trt.Builder, "create_network", "network")
    follow(trt.Builder, "create_builder_config", "config")
    follow(trt.OnnxParser, "__init__", "parser")
    build_plan(request_fp32)
    assert freed == ["parser", "config", "network", "builder"]


def test_too_little_gpu_memory(trt: Any, request_fp32: BuildRequest) -> None:
    trt.double.fail_build = "memory"
    with pytest.raises(HostError, match="lower --workspace or the profiles' batch") as caught:
        build_plan(request_fp32)
    assert "17179869184 bytes" in str(caught.value)


def test_an_exception_of_the_build_is_a_failure_with_its_text(
    trt: Any, request_fp32: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("an exception from C++")

    monkeypatch.setattr(trt.Builder, "build_serialized_network", broken)
    with pytest.raises(BuildFailed, match=r"failed:\n  an exception from C\+\+"):
        build_plan(request_fp32)


def test_a_builder_that_cannot_start_blames_the_driver(
    trt: Any, request_fp32: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt.Builder, "__init__", broken)
    with pytest.raises(HostError, match=r"cannot start on Tesla T4:\n.*nullptr\nits driver may"):
        build_plan(request_fp32)


def test_the_timing_cache_grows_and_is_used_again(
    trt: Any, request_fp32: BuildRequest, tmp_path: Path
) -> None:
    cached = with_options(request_fp32, cache=tmp_path / "cache")
    assert [build_plan(cached).timing_cache for _ in range(2)] == ["new", "complete"]
    release = ".".join(trt.__version__.split(".")[:3])
    files = list((tmp_path / "cache").iterdir())
    assert [file.name for file in files] == [f"timing-{release}-sm75-tesla-t4.bin"]


def test_a_larger_graph_extends_the_timing_cache(
    trt: Any, request_fp32: BuildRequest, tmp_path: Path
) -> None:
    cached = with_options(request_fp32, cache=tmp_path / "cache")
    build_plan(cached)
    model = onnx.load(cached.graph)
    model.graph.node[-1].name = "another"
    onnx.save(model, cached.graph)
    assert [build_plan(cached).timing_cache for _ in range(2)] == ["extended", "complete"]


def test_a_refused_timing_cache_is_a_note(
    trt: Any, request_fp32: BuildRequest, tmp_path: Path
) -> None:
    cached = with_options(request_fp32, cache=tmp_path / "cache")
    build_plan(cached)
    file = next((tmp_path / "cache").iterdir())
    file.write_bytes(b"something else")
    built = build_plan(cached)
    assert built.timing_cache == "refused"
    assert "a new timing cache is begun" in built.notes[0]
    assert build_plan(cached).timing_cache == "complete"


def test_a_cache_that_cannot_be_written_is_a_note(
    trt: Any, request_fp32: BuildRequest, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    built = build_plan(with_options(request_fp32, cache=tmp_path / "cache"))
    assert read(built.plan).profiles
    assert "the timing cache was not kept" in built.notes[-1]


def test_a_failed_build_keeps_its_timing_cache(
    trt: Any, request_fp32: BuildRequest, tmp_path: Path
) -> None:
    trt.double.fail_build = "tactic"
    with pytest.raises(BuildFailed):
        build_plan(with_options(request_fp32, cache=tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_phases_are_told_while_it_builds(followed: Any, request_fp32: BuildRequest) -> None:
    said: list[str] = []
    build_plan(with_options(request_fp32, say=said.append))
    assert said[0] == "building fp32: Building Engine, 2 steps"
    assert "building fp32: Tactic Selection for profile 1, 4 steps" in said


def test_without_phases_log_lines_are_told(weak: Any, request_fp32: BuildRequest) -> None:
    said: list[str] = []
    build_plan(with_options(request_fp32, say=said.append))
    assert said
    assert all(line.startswith("building fp32: ") for line in said)


def test_a_time_limit_stops_the_build_and_keeps_its_cache(
    followed: Any, request_fp32: BuildRequest, tmp_path: Path
) -> None:
    followed.double.slow_build_s = 4.0
    begun = time.monotonic()
    with pytest.raises(BuildFailed, match=r"took longer than 0\.1 s and was stopped"):
        build_plan(with_options(request_fp32, timeout_s=0.1, cache=tmp_path / "cache"))
    assert time.monotonic() - begun < 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_time_limit_gives_up_on_a_build_that_cannot_be_stopped(
    weak: Any, request_fp32: BuildRequest
) -> None:
    weak.double.slow_build_s = 0.5
    with pytest.raises(BuildFailed, match=r"8\.6\.1 took longer than 0\.05 s; it cannot be stop"):
        build_plan(with_options(request_fp32, timeout_s=0.05))
    wait_for_builds()


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_stops_the_build_and_keeps_its_cache(
    followed: Any, request_fp32: BuildRequest, tmp_path: Path
) -> None:
    followed.double.slow_build_s = 4.0
    said: list[str] = []
    begun = time.monotonic()
    timer = press_ctrl_c(0.2)
    with pytest.raises(KeyboardInterrupt):
        build_plan(with_options(request_fp32, say=said.append, cache=tmp_path / "cache"))
    timer.join()
    assert time.monotonic() - begun < 3
    assert "stopping the build; press Ctrl-C again to give up at once" in said
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_waits_for_a_build_that_cannot_be_stopped(
    weak: Any, request_fp32: BuildRequest, tmp_path: Path
) -> None:
    weak.double.slow_build_s = 0.6
    said: list[str] = []
    timer = press_ctrl_c(0.2)
    with pytest.raises(KeyboardInterrupt):
        build_plan(with_options(request_fp32, say=said.append, cache=tmp_path / "cache"))
    timer.join()
    assert "8.6.1 cannot be stopped: waiting for its end" in said[-1]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def wait_for_builds() -> None:
    """Let builds that were given up end before the double is taken away."""
    for thread in threading.enumerate():
        if thread.name == "attn-export build":
            thread.join()
