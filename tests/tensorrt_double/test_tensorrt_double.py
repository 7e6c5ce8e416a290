"""The double of TensorRT builds, refuses, loads and computes as the real one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from .tiny_network import WEIGHT, Draft, Recorder, product_onnx

Double = Callable[[str], Any]


@pytest.fixture
def trt(tensorrt_double: Double, tensorrt_version: str) -> Any:
    return tensorrt_double(tensorrt_version)


def load(trt: Any, plan: Any, *, host_code: bool = False) -> tuple[Any, str]:
    """The engine or None, and the ERROR lines."""
    log = Recorder(trt)
    runtime = trt.Runtime(log.logger)
    runtime.engine_host_code_allowed = host_code
    return runtime.deserialize_cuda_engine(plan), log.errors


def test_layers_carry_the_names_of_the_onnx_nodes(trt: Any) -> None:
    network = Draft(trt).network
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    assert [(layer.name, layer.type.name) for layer in layers] == [
        ("w", "CONSTANT"),
        ("product", "MATRIX_MULTIPLY"),
    ]
    assert network.get_input(0).name == "x"
    assert network.get_output(0).dtype == trt.float32


def test_an_op_without_importer_is_a_parser_error_with_its_node(trt: Any) -> None:
    draft = Draft(trt, product_onnx("Unsupported"))
    assert not draft.parsed
    assert draft.parser.num_errors == 1
    error = draft.parser.get_error(0)
    assert "No importer registered for op: Unsupported" in error.desc()
    assert error.node() == 0
    if hasattr(error, "node_name"):
        assert (error.node_name(), error.node_operator()) == ("product", "Unsupported")


def test_bytes_that_are_no_model_are_a_parser_error(trt: Any) -> None:
    draft = Draft(trt, b"\xff\xff not a model")
    assert not draft.parsed
    assert draft.parser.num_errors == 1


def test_8_6_refuses_a_network_without_explicit_batch(tensorrt_double: Double) -> None:
    trt = tensorrt_double("8.6.1")
    log = Recorder(trt)
    network = trt.Builder(log.logger).create_network()
    assert not trt.OnnxParser(network, log.logger).parse(product_onnx())
    assert "explicit batch" in log.errors


def test_a_dynamic_input_without_profile_is_refused(trt: Any) -> None:
    draft = Draft(trt)
    assert draft.build() is None
    assert "no optimization profile has been defined" in draft.log.errors


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((1, 5), (2, 5), (3, 5)), "dimension number 1 in profile 0 does not match"),
        (((1,), (2,), (3,)), "number of dimensions is not 2"),
    ],
)
def test_a_profile_that_does_not_fit_the_network_is_refused(
    trt: Any, shapes: Any, said: str
) -> None:
    draft = Draft(trt)
    profile = draft.builder.create_optimization_profile()
    profile.set_shape("x", *shapes)
    assert draft.config.add_optimization_profile(profile) == 0
    assert draft.build() is None
    assert said in draft.log.errors


def test_a_profile_must_ascend(trt: Any) -> None:
    profile = Draft(trt).builder.create_optimization_profile()
    with pytest.raises(ValueError, match="inconsistent"):
        profile.set_shape("x", (2, 4), (1, 4), (3, 4))


@pytest.mark.parametrize("version", ["8.6.1", "10.16.1.11"])
def test_weak_typing_needs_the_fp16_flag_for_an_fp16_graph(
    tensorrt_double: Double, version: str
) -> None:
    trt = tensorrt_double(version)
    draft = Draft(trt, product_onnx(dtype=TensorProto.FLOAT16), typed=False).add_profile()
    assert draft.build() is None
    assert "fp16 is not configured in the builder" in draft.log.errors
    draft.config.set_flag(trt.BuilderFlag.FP16)
    assert draft.build() is not None


def test_strong_typing_refuses_precision_flags(tensorrt_double: Double) -> None:
    trt = tensorrt_double("10.16.1.11")
    draft = Draft(trt).add_profile()
    draft.config.set_flag(trt.BuilderFlag.FP16)
    assert draft.build() is None
    assert "strongly typed" in draft.log.errors


def test_precision_of_a_constant_is_refused(tensorrt_double: Double) -> None:
    trt = tensorrt_double("8.6.1")
    draft = Draft(trt).add_profile()
    draft.network.get_layer(0).precision = trt.float32
    assert draft.build() is None
    assert "w: floating-point precision was set on a layer of type CONSTANT" in draft.log.errors


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("tactic", "Could not find any implementation for node {ForeignNode[product...product]}"),
        ("memory", "Requested amount of GPU memory (17179869184 bytes) could not be allocated"),
        ("Error Code 1: anything", "Error Code 1: anything"),
    ],
)
def test_a_build_fails_as_asked(trt: Any, asked: str, said: str) -> None:
    draft = Draft(trt).add_profile()
    trt.double.fail_build = asked
    assert draft.build() is None
    assert said in draft.log.errors


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
@pytest.mark.parametrize("stop_at", [None, 2])
def test_a_progress_monitor_is_told_and_may_stop_the_build(
    tensorrt_double: Double, version: str, stop_at: int | None
) -> None:
    trt = tensorrt_double(version)
    calls: list[tuple[Any, ...]] = []

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            calls.append(("start", phase, parent, steps))

        def step_complete(self, phase: str, step: int) -> bool:
            calls.append(("step", phase, step))
            return step != stop_at

        def phase_finish(self, phase: str) -> None:
            calls.append(("finish", phase))

    draft = Draft(trt).add_profile()
    draft.config.progress_monitor = Monitor()
    assert (draft.build() is None) == (stop_at is not None)
    inner = "Tactic Selection for profile 0"
    assert calls[:2] == [("start", "Building Engine", None, 1), ("start", inner, calls[0][1], 4)]
    assert calls[-1] == ("finish", "Building Engine")
    assert [call[2] for call in calls if call[:2] == ("step", inner)] == list(range(4))[
        : 4 if stop_at is None else stop_at + 1
    ]


def test_a_timing_cache_remembers_and_a_foreign_one_is_not_taken(
    trt: Any, tensorrt_double: Double
) -> None:
    draft = Draft(trt).add_profile()
    cache = draft.config.create_timing_cache(b"")
    assert draft.config.set_timing_cache(cache, ignore_mismatch=False)
    empty = bytes(cache.serialize())
    draft.build()
    filled = bytes(draft.config.get_timing_cache().serialize())
    assert len(filled) > len(empty)
    version = "10.16.1.11" if trt.__version__ != "10.16.1.11" else "8.6.1"
    other = Draft(tensorrt_double(version))
    foreign = other.config.create_timing_cache(filled)
    assert not other.config.set_timing_cache(foreign, ignore_mismatch=True)
    assert not other.config.create_timing_cache(b"").combine(foreign, ignore_mismatch=True)


def test_a_plan_is_refused_where_it_does_not_fit(trt: Any, tensorrt_double: Double) -> None:
    plan = bytes(Draft(trt).add_profile().build())
    assert load(trt, plan)[0].num_io_tensors == 2
    for damaged in (plan[:-1], b"", b"abcd" + plan[4:]):
        engine, errors = load(trt, damaged)
        assert engine is None
        assert "Serialization assertion" in errors
    trt.double.compute_capability = "8.9"
    engine, errors = load(trt, plan)
    assert engine is None
    assert "expecting compute 8.9 got compute 7.5, please rebuild" in errors
    other = tensorrt_double("10.16.1.11" if trt.__version__ != "10.16.1.11" else "11.4.0.106")
    engine, errors = load(other, plan)
    assert engine is None
    assert f"expecting library version {other.__version__} got {trt.__version__}" in errors


def test_the_lean_runtime_takes_version_compatible_plans_only(
    tensorrt_double: Double, lean_double: Any
) -> None:
    trt = tensorrt_double("10.16.1.11")
    draft = Draft(trt).add_profile()
    assert "version compatible engines only" in load(lean_double, draft.build())[1]
    draft.config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert "engineHostCodeAllowed" in load(lean_double, draft.build())[1]
    draft.config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    assert load(lean_double, draft.build())[0].get_tensor_name(0) == "x"
    assert not hasattr(lean_double, "Builder")


@pytest.mark.parametrize("version", ["8.6.1", "11.4.0.106"])
def test_a_plan_without_its_lean_runtime_needs_the_very_same_one(
    tensorrt_double: Double, lean_double: Any, version: str
) -> None:
    trt = tensorrt_double(version)
    draft = Draft(trt).add_profile()
    draft.config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    draft.config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    engine, errors = load(lean_double, draft.build())
    assert engine is None
    assert f"needs the lean runtime of {version}" in errors


def test_a_plan_with_its_lean_runtime_runs_on_newer_versions_only(tensorrt_double: Double) -> None:
    plans = {}
    for version in ("10.16.1.11", "11.4.0.106"):
        trt = tensorrt_double(version)
        draft = Draft(trt).add_profile()
        draft.config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        plans[version] = bytes(draft.build())
    newer = load(tensorrt_double("11.4.0.106"), plans["10.16.1.11"], host_code=True)
    older = load(tensorrt_double("10.16.1.11"), plans["11.4.0.106"], host_code=True)
    assert newer[0].num_io_tensors == 2
    assert older[0] is None
    assert "needs this or a newer TensorRT" in older[1]


def test_an_engine_tells_its_tensors_and_profiles(trt: Any) -> None:
    engine = Draft(trt).add_profile(1, 2, 8).add_profile(9, 16, 16).engine()
    assert [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)] == ["x", "y"]
    assert engine.get_tensor_mode("x") == trt.TensorIOMode.INPUT
    assert engine.get_tensor_dtype("y") == trt.float32
    assert tuple(engine.get_tensor_shape("x")) == (-1, 4)
    assert engine.num_optimization_profiles == 2
    shapes = engine.get_tensor_profile_shape("x", 1)
    assert [tuple(shape) for shape in shapes] == [(9, 4), (16, 4), (16, 4)]
    needed = getattr(engine, "device_memory_size_v2", None) or engine.device_memory_size
    assert needed == 16 * 4 * 512


def test_the_inspector_writes_the_schema_of_its_version(trt: Any) -> None:
    draft = Draft(trt).add_profile()
    draft.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    inspector = draft.engine().create_engine_inspector()
    seen = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    [layer] = seen["Layers"]
    assert layer["Metadata"] == "[ONNX Layer: product]"
    if trt.__version__.startswith("8"):
        assert layer["LayerType"] == "Myelin"
        assert layer["Outputs"][0]["Format/Datatype"] == "N/A due to dynamic shapes"
        assert seen["Bindings"] == ["x", "y"]
    elif trt.__version__.startswith("10"):
        assert layer["Outputs"][0]["Format/Datatype"] == "Float"
    else:
        assert layer["Outputs"][0]["DataType"] == "Float"
        assert [tensor["Name"] for tensor in seen["I/O Tensors"]] == ["x", "y"]


class Launch:
    """A context of the product, with memory and a stream of the CUDA double."""

    def __init__(self, trt: Any, gpu: Any, draft: Draft) -> None:
        self.log, self.gpu = draft.log, gpu
        self.engine = draft.engine()
        self.context = self.engine.create_execution_context()
        self.stream = gpu.runtime.cudaStreamCreateWithFlags(1)[1]
        self.x, self.y = gpu.allocate(8 * 16, "device"), gpu.allocate(8 * 8, "device")

    def ready(self, batch: int = 3) -> Launch:
        """Everything set for a batch."""
        assert self.context.set_input_shape("x", (batch, 4))
        assert self.context.set_tensor_address("x", self.x)
        assert self.context.set_tensor_address("y", self.y)
        return self

    def run(self) -> bool:
        return bool(self.context.execute_async_v3(int(self.stream)))

    def finish(self) -> str:
        return str(self.gpu.runtime.cudaStreamSynchronize(self.stream)[0].name)

    def array(self, address: int, *shape: int) -> Any:
        return self.gpu.view(address, 4 * int(np.prod(shape))).view(np.float32).reshape(shape)


@pytest.fixture
def launch(trt: Any, cuda_double: Any) -> Launch:
    return Launch(trt, cuda_double, Draft(trt).add_profile())


def test_a_run_computes_when_the_stream_is_waited_for(launch: Launch) -> None:
    launch.ready(3)
    x = launch.array(launch.x, 3, 4)
    x[...] = np.arange(12).reshape(3, 4)
    assert tuple(launch.context.get_tensor_shape("y")) == (3, 2)
    before = launch.array(launch.y, 3, 2).copy()
    assert launch.run()
    np.testing.assert_array_equal(launch.array(launch.y, 3, 2), before)
    assert launch.finish() == "cudaSuccess"
    np.testing.assert_allclose(launch.array(launch.y, 3, 2), x @ WEIGHT)


def test_a_context_has_memory_of_its_own_as_long_as_it_lives(launch: Launch) -> None:
    before = launch.gpu.free_bytes()
    second = launch.engine.create_execution_context()
    assert before - launch.gpu.free_bytes() == 8 * 4 * 512
    del second
    assert launch.gpu.free_bytes() == before
    launch.gpu.total_bytes = 0
    assert launch.engine.create_execution_context() is None
    assert "the activation memory could not be allocated" in launch.log.errors


def test_the_inspector_shows_the_shapes_of_a_context(trt: Any, cuda_double: Any) -> None:
    draft = Draft(trt).add_profile()
    draft.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    launch = Launch(trt, cuda_double, draft)
    inspector = launch.engine.create_engine_inspector()

    def output() -> Any:
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return json.loads(text)["Layers"][0]["Outputs"][0]

    inspector.execution_context = launch.context
    assert output()["Dimensions"] == [-1, 2]
    launch.ready(3)
    assert output()["Dimensions"] == [3, 2]
    if trt.__version__.startswith("8"):
        assert output()["Format/Datatype"] == "Row major linear FP32 format"


def test_a_shape_outside_the_profile_is_refused(launch: Launch) -> None:
    assert not launch.context.set_input_shape("x", (9, 4))
    assert "does not satisfy any optimization profiles" in launch.log.errors


def _forget_address(launch: Launch) -> None:
    launch.ready().context.set_tensor_address("y", 0)


def _forget_shape(launch: Launch) -> None:
    launch.context.set_tensor_address("x", launch.x)
    launch.context.set_tensor_address("y", launch.y)


def _destroy_stream(launch: Launch) -> None:
    launch.ready().gpu.runtime.cudaStreamDestroy(launch.stream)


def _small_memory(launch: Launch) -> None:
    launch.ready().context.set_tensor_address("y", launch.gpu.allocate(16, "device"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_forget_address, "The address of y is not set"),
        (_forget_shape, "the shape of x is not set"),
        (_destroy_stream, "the stream does not exist"),
        (_small_memory, "a tensor's memory is smaller than its shape"),
    ],
)
def test_an_incomplete_run_is_refused(
    launch: Launch, spoil: Callable[[Launch], None], said: str
) -> None:
    spoil(launch)
    assert not launch.run()
    assert said in launch.log.errors


def test_memory_freed_before_the_run_is_an_illegal_address(launch: Launch) -> None:
    assert launch.ready().run()
    del launch.gpu.allocations[launch.y]
    assert launch.finish() == "cudaErrorIllegalAddress"


def test_a_context_begins_with_profile_0_and_others_are_chosen(trt: Any, cuda_double: Any) -> None:
    launch = Launch(trt, cuda_double, Draft(trt).add_profile(1, 2, 8).add_profile(9, 16, 16))
    assert launch.context.active_optimization_profile == 0
    assert launch.ready().run()
    assert launch.context.set_optimization_profile_async(1, int(launch.stream))
    assert not launch.run()  # the shapes are forgotten
    with pytest.raises(RuntimeError, match="Error in set optimization profile async"):
        launch.context.set_optimization_profile_async(2, int(launch.stream))
    assert "Profile index 2 is outside [0, 2)" in launch.log.errors


def test_8_6_shares_no_profile_unless_it_was_built_so(
    tensorrt_double: Double, cuda_double: Any
) -> None:
    trt = tensorrt_double("8.6.1")
    launch = Launch(trt, cuda_double, Draft(trt).add_profile())
    second = launch.engine.create_execution_context()
    assert second.active_optimization_profile == -1
    assert not second.set_input_shape("x", (3, 4))
    with pytest.raises(RuntimeError):
        second.set_optimization_profile_async(0, int(launch.stream))
    assert "Profile 0 has been chosen by another IExecutionContext" in launch.log.errors
    del launch.context
    assert second.set_optimization_profile_async(0, int(launch.stream))


def test_a_context_that_meets_a_capture_breaks_both(trt: Any, cuda_double: Any) -> None:
    launch = Launch(trt, cuda_double, Draft(trt).add_profile())
    runtime = cuda_double.runtime
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    runtime.cudaStreamBeginCapture(launch.stream, mode)
    assert launch.engine.create_execution_context() is None
    assert "operation not permitted when stream is capturing" in launch.log.errors
    [status, _] = runtime.cudaStreamEndCapture(launch.stream)
    assert status == runtime.cudaError_t.cudaErrorStreamCaptureInvalidated


def test_a_context_without_memory_must_be_given_enough(trt: Any, cuda_double: Any) -> None:
    launch = Launch(trt, cuda_double, Draft(trt).add_profile())
    del launch.context  # 8.6 keeps its profile for it
    make = getattr(launch.engine, "create_execution_context_without_device_memory", None)
    if make is None:
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        launch.context = launch.engine.create_execution_context(strategy)
    else:
        launch.context = make()
    assert not launch.ready().run()
    needed = 8 * 4 * 512
    launch.context.device_memory = cuda_double.allocate(needed - 1, "device")
    assert not launch.run()
    enough = cuda_double.allocate(needed, "device")
    launch.context.device_memory = enough + 1
    assert "is not 256-byte aligned" in launch.log.errors
    launch.context.device_memory = enough
    assert launch.run()
    assert launch.finish() == "cudaSuccess"


def test_a_capture_needs_a_run_since_the_last_shape(launch: Launch) -> None:
    runtime = launch.ready().gpu.runtime
    runtime.cudaStreamBeginCapture(
        launch.stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
    )
    assert not launch.run()
    assert "not permitted when stream is capturing" in launch.log.errors


def test_a_captured_run_reads_the_inputs_of_each_launch(launch: Launch) -> None:
    runtime = launch.ready(2).gpu.runtime
    assert launch.run()
    launch.finish()
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    runtime.cudaStreamBeginCapture(launch.stream, mode)
    assert launch.run()
    graph = runtime.cudaStreamEndCapture(launch.stream)[1]
    executable = runtime.cudaGraphInstantiate(graph, 0)[1]
    for value in (1.0, 2.0):
        launch.array(launch.x, 2, 4)[...] = value
        runtime.cudaGraphLaunch(executable, launch.stream)
        assert launch.finish() == "cudaSuccess"
        expected = np.tile(value * WEIGHT.sum(axis=0), (2, 1))
        np.testing.assert_allclose(launch.array(launch.y, 2, 2), expected)
