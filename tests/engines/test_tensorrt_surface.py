"""The double of TensorRT has the names and takes the calls of the real bindings, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt_double.tiny_network import Draft, Recorder

# Which major versions have what, worked out from the bindings of 8.6.1, 10.16.1 and 11.4.0.
MEMBERS = {
    "Builder.build_serialized_network": (8, 10, 11),
    "Builder.platform_has_fast_fp16": (8, 10),
    "Builder.max_batch_size": (8,),
    "BuilderFlag.FP16": (8, 10),
    "BuilderFlag.BF16": (10,),
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": (8, 10),
    "BuilderFlag.STRIP_PLAN": (10, 11),
    "BuilderFlag.VERSION_COMPATIBLE": (8, 10, 11),
    "DataType.INT64": (10, 11),
    "ExecutionContextAllocationStrategy.USER_MANAGED": (10, 11),
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": (10, 11),
    "IBuilderConfig.int8_calibrator": (8, 10),
    "IBuilderConfig.max_workspace_size": (8,),
    "IBuilderConfig.progress_monitor": (10, 11),
    "ICudaEngine.create_execution_context_without_device_memory": (8, 10),
    "ICudaEngine.device_memory_size": (8, 10),
    "ICudaEngine.device_memory_size_v2": (10, 11),
    "ICudaEngine.num_bindings": (8,),
    "IExecutionContext.all_shape_inputs_specified": (8, 10),
    "IExecutionContext.execute_async_v2": (8,),
    "IExecutionContext.execute_async_v3": (8, 10, 11),
    "IExecutionContext.set_device_memory": (10, 11),
    "ILayer.precision": (8, 10),
    "ILayer.set_output_type": (8, 10),
    "IProgressMonitor.phase_start": (10, 11),
    "ITimingCache.queryKeys": (10, 11),
    "MemoryPoolType.WORKSPACE": (8, 10, 11),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (8, 10),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": (10, 11),
    "OnnxParser.supports_model": (8, 10),
    "ParserError.node_name": (10, 11),
    "PreviewFeature.PROFILE_SHARING_0806": (8, 10),
    "TacticSource.CUBLAS": (8, 10),
    "BuilderFlag.MADE_UP": (),
    "Builder.made_up": (),
}


@pytest.fixture
def trt(tensorrt_double: Callable[[str], Any], tensorrt_version: str) -> Any:
    return tensorrt_double(tensorrt_version)


def test_each_version_has_its_members_and_no_others(trt: Any) -> None:
    major = int(trt.__version__.partition(".")[0])
    found = {
        name: hasattr(getattr(trt, name.split(".")[0], None), name.split(".")[1])
        for name in MEMBERS
    }
    assert found == {name: major in versions for name, versions in MEMBERS.items()}


def test_every_class_has_the_public_names_of_the_real_one(
    trt: Any, surface: Callable[[str], Path]
) -> None:
    classes = json.loads(surface(trt.__version__).read_text())["classes"]
    added_by_hand = {"DataType": {"itemsize"}, "Logger": {"Severity"}}

    def real_names(name: str) -> set[str]:
        entry = classes[name]
        own = {*entry["methods"], *entry["properties"], *entry["constants"], *(entry["enum"] or ())}
        own |= {"name", "value"} if entry["enum"] else set()
        own |= {other.split(".")[1] for other in classes if other.startswith(f"{name}.")}
        inherited = [real_names(base) for base in entry["bases"]]
        return own.union(added_by_hand.get(name, set()), *inherited)

    for name in classes:
        cls = trt
        for part in name.split("."):
            cls = getattr(cls, part)
        names = {item for item in dir(cls) if not item.startswith("_")}
        if name == "IHostMemory":
            names -= set(dir(bytearray))
        assert names == {item for item in real_names(name) if not item.startswith("_")}, name
    assert len(classes) > 150


def test_enum_values_move_between_versions(trt: Any) -> None:
    expected = {"8": (7, 15), "10": (6, 13), "11": (6, 12)}[trt.__version__.partition(".")[0]]
    flags = trt.BuilderFlag
    assert (int(flags.TF32), int(flags.VERSION_COMPATIBLE)) == expected
    assert flags(expected[0]) == flags.TF32


def test_an_enum_member_is_no_int(trt: Any) -> None:
    flag = trt.BuilderFlag.TF32
    assert flag != int(flag)
    assert flag != trt.DataType(int(flag) % 4)
    assert str(flag) == "BuilderFlag.TF32"
    assert {flag: 1}[trt.BuilderFlag.TF32] == 1
    with pytest.raises(TypeError):
        1 << flag
    with pytest.raises(TypeError, match="matching type"):
        _ = flag < 3


def test_module_constants_name_the_data_types(trt: Any) -> None:
    assert trt.float16 == trt.DataType.HALF
    assert trt.DataType.HALF.itemsize == 2
    assert trt.Logger.Severity.ERROR == trt.Logger.ERROR
    assert trt.volume((2, 3)) == 6
    assert trt.nptype(trt.int32).__name__ == "int32"


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda d: d.builder.create_network(0, 0), id="one argument too many"),
        pytest.param(lambda d: d.builder.create_network("0"), id="str for int"),
        pytest.param(lambda d: d.builder.create_network(1.0), id="float for int"),
        pytest.param(lambda d: d.builder.create_network(options=0), id="unknown keyword"),
        pytest.param(lambda d: d.builder.build_serialized_network(d.network), id="one missing"),
        pytest.param(
            lambda d: d.builder.build_serialized_network(d.config, d.network), id="in wrong order"
        ),
        pytest.param(lambda d: d.config.set_flag(6), id="int for an enum"),
        pytest.param(lambda d: d.config.set_flag(d.trt.DataType.HALF), id="another enum"),
        pytest.param(lambda d: d.config.set_flag(None), id="None"),
        pytest.param(lambda d: d.parser.parse_from_file(Path("x.onnx")), id="Path for str"),
        pytest.param(lambda d: d.parser.parse("model"), id="str for bytes"),
        pytest.param(lambda d: d.config.create_timing_cache(None), id="None for bytes"),
        pytest.param(lambda d: d.network.get_input("x"), id="name for an index"),
        pytest.param(
            lambda d: d.builder.create_optimization_profile().set_shape("x", 1, 2, 3),
            id="numbers for shapes",
        ),
        pytest.param(lambda d: d.trt.OnnxParser(d.log.logger, d.network), id="constructor"),
        pytest.param(lambda d: d.trt.Builder(), id="constructor without logger"),
        pytest.param(lambda d: d.trt.Logger("INFO"), id="str for a severity"),
        pytest.param(lambda d: d.trt.ICudaEngine(), id="no constructor at all"),
    ],
)
def test_a_call_that_the_real_signature_does_not_take_is_refused(
    trt: Any, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match=r"incompatible function arguments|No constructor defined"):
        call(Draft(trt))


def test_arguments_may_have_the_names_of_the_real_signature(trt: Any) -> None:
    draft = Draft(trt)
    draft.config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, pool_size=1 << 20)
    assert draft.config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 20
    profile = draft.builder.create_optimization_profile()
    profile.set_shape(input="x", min=(1, 4), opt=[2, 4], max=trt.Dims((3, 4)))
    assert [tuple(shape) for shape in profile.get_shape("x")] == [(1, 4), (2, 4), (3, 4)]


def test_unknown_attributes_cannot_be_set(trt: Any) -> None:
    draft = Draft(trt)
    for shown in (draft.builder, draft.config, draft.network.get_layer(0), trt.Logger()):
        with pytest.raises(AttributeError):
            shown.made_up = 1
    with pytest.raises(AttributeError):
        draft.config.num_optimization_profiles = 2
    with pytest.raises(TypeError):
        draft.config.builder_optimization_level = "3"


def test_a_class_of_the_user_may_have_attributes(trt: Any) -> None:
    logger = Recorder(trt).logger
    logger.made_up = 1
    assert logger.made_up == 1


def test_a_class_of_the_user_must_call_the_real_constructor(trt: Any) -> None:
    class Forgetful(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            self.made_up = 1

    with pytest.raises(TypeError, match="must be called when overriding __init__"):
        Forgetful()


def test_shapes_compare_with_tuples_and_lists_only(trt: Any) -> None:
    shape = Draft(trt).network.get_input(0).shape
    assert shape == (-1, 4)
    assert tuple(shape) == (-1, 4)
    assert len(shape) == 2
    assert shape[1:] == (4,)
    with pytest.raises(TypeError):
        _ = shape == trt.Dims((-1, 4))


def test_host_memory_is_read_as_a_buffer_and_nothing_else(trt: Any) -> None:
    plan = Draft(trt).add_profile().build()
    assert len(bytes(plan)) == plan.nbytes > 100
    assert memoryview(plan).nbytes == plan.nbytes
    assert plan
    for wrong in (len, iter, lambda memory: memory[:4], lambda memory: memory + b""):
        with pytest.raises(TypeError):
            wrong(plan)
    with pytest.raises(AttributeError):
        plan.decode()


def test_an_unplayed_member_says_so(trt: Any) -> None:
    network = Draft(trt).network
    with pytest.raises(NotImplementedError, match=r"does not play INetworkDefinition\.add_shape"):
        network.add_shape(network.get_input(0))
