"""Builder configurations of every version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from attn_export.engines.cuda_driver import Gpu
from attn_export.engines.profiles import Profile
from attn_export.engines.session import CompileOptions
from attn_export.engines.trt_api import is_strongly_typed, make_log
from attn_export.engines.trt_config import (
    add_profiles,
    check_memory,
    check_options,
    make_config,
    prefer_precisions,
)
from attn_export.errors import BuildFailed, HostError, UsageError
from attn_export.spec import TensorSpec

VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
MakeDouble = Callable[[str], Any]
T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15360)
IDS = TensorSpec(name="input_ids", dtype="int32", shape=("batch", "sequence"), role="ids")
HIDDEN = TensorSpec(name="hidden", dtype="float32", shape=("batch", "sequence", 768))


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, tensorrt_double: MakeDouble) -> Any:
    return tensorrt_double(request.param)


@pytest.fixture
def builder(trt: Any) -> Any:
    return trt.Builder(make_log(trt))


def set_flags(trt: Any, config: Any) -> set[str]:
    return {name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)}


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", set()),
        ("fp16", {"FP16", "OBEY_PRECISION_CONSTRAINTS"}),
        ("int8", {"INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"}),
    ],
)
def test_flags_give_the_precision_only_where_the_graph_cannot_and_tf32_is_off(
    trt: Any, builder: Any, precision: str, expected: set[str]
) -> None:
    config, names = make_config(trt, builder, precision=precision, options=CompileOptions())
    wanted = set() if is_strongly_typed(trt) else expected
    assert set_flags(trt, config) == wanted == set(names)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("embedded", {"VERSION_COMPATIBLE"}),
        ("lean", {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}),
    ],
)
def test_plans_for_other_versions_carry_their_runtime_or_leave_it_out(
    trt: Any, builder: Any, kind: Any, expected: set[str]
) -> None:
    options = CompileOptions(version_compatible=kind)
    config, names = make_config(trt, builder, precision="fp32", options=options)
    assert set_flags(trt, config) == expected == set(names)


def test_level_and_workspace_are_passed_on(trt: Any, builder: Any) -> None:
    options = CompileOptions(optimization_level=5, workspace_mib=256)
    config, _ = make_config(trt, builder, precision="fp32", options=options)
    assert config.builder_optimization_level == 5
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 268435456


def test_level_and_workspace_stay_tensorrts_own_when_not_given(trt: Any, builder: Any) -> None:
    untouched = builder.create_builder_config()
    config, _ = make_config(trt, builder, precision="fp32", options=CompileOptions())
    pool = trt.MemoryPoolType.WORKSPACE
    assert config.builder_optimization_level == untouched.builder_optimization_level
    assert config.get_memory_pool_limit(pool) == untouched.get_memory_pool_limit(pool)


def test_the_inspector_will_see_all_and_libraries_are_left_out(trt: Any, builder: Any) -> None:
    config, _ = make_config(trt, builder, precision="fp32", options=CompileOptions())
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.NONE
    sources = trt.TacticSource.__members__
    used = {name for name, s in sources.items() if config.get_tactic_sources() >> int(s) & 1}
    assert used == {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}


def test_contexts_may_share_a_profile_wherever_that_is_an_option(trt: Any, builder: Any) -> None:
    config, _ = make_config(trt, builder, precision="fp32", options=CompileOptions())
    if hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        assert config.get_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806)


def test_engines_for_all_gpus_of_a_kind_are_refused_where_tensorrt_makes_none(
    trt: Any, builder: Any
) -> None:
    options = CompileOptions(same_compute_capability=True)
    if is_strongly_typed(trt):
        config, names = make_config(trt, builder, precision="fp32", options=options)
        levels = trt.HardwareCompatibilityLevel
        assert config.hardware_compatibility_level == levels.SAME_COMPUTE_CAPABILITY
        assert names == ["SAME_COMPUTE_CAPABILITY"]
        return
    with pytest.raises(HostError, match=r"8\.6\.1 has no SAME_COMPUTE_CAPABILITY; leave out --sa"):
        make_config(trt, builder, precision="fp32", options=options)


def test_failing_on_a_cache_miss_is_refused_where_tensorrt_cannot(
    trt: Any, builder: Any, tmp_path: Any
) -> None:
    options = CompileOptions(error_on_cache_miss=True, cache=tmp_path)
    if is_strongly_typed(trt):
        config, _ = make_config(trt, builder, precision="fp32", options=options)
        assert set_flags(trt, config) == {"ERROR_ON_TIMING_CACHE_MISS"}
        return
    with pytest.raises(HostError, match=r"8\.6\.1 has no ERROR_ON_TIMING_CACHE_MISS; leave"):
        make_config(trt, builder, precision="fp32", options=options)


def test_obeying_becomes_preferring(tensorrt_double: MakeDouble) -> None:
    trt = tensorrt_double("8.6.1")
    builder = trt.Builder(make_log(trt))
    config, names = make_config(trt, builder, precision="fp16", options=CompileOptions())
    prefer_precisions(trt, config, names)
    assert set_flags(trt, config) == {"FP16", "PREFER_PRECISION_CONSTRAINTS"} == set(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CompileOptions(optimization_level=6), "level is 6; it must be 0 to 5"),
        (CompileOptions(optimization_level=-1), "level is -1; it must be 0 to 5"),
        (CompileOptions(workspace_mib=0), "workspace is 0 MiB; it must be at least 1"),
        (CompileOptions(error_on_cache_miss=True), "needs a timing cache; name its folder"),
    ],
)
def test_values_that_tensorrt_would_not_take_are_refused(
    options: CompileOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_options(options)


def test_each_profile_bounds_each_input_by_its_axes(trt: Any, builder: Any) -> None:
    config, _ = make_config(trt, builder, precision="fp32", options=CompileOptions())
    profiles = [
        Profile(batch=(1, 8, 64), sequence=(1, 32, 32)),
        Profile(batch=(1, 4, 16), sequence=(33, 128, 128)),
    ]
    add_profiles(builder, config, [IDS, HIDDEN], profiles)
    assert config.num_optimization_profiles == 2


def test_a_profile_that_tensorrt_refuses_is_named(trt: Any, builder: Any) -> None:
    config, _ = make_config(trt, builder, precision="fp32", options=CompileOptions())
    profile = Profile(batch=(1, 2, 4), sequence=(1, 8, 16))
    with pytest.raises(
        BuildFailed, match=r"refuses profile 0 \(batch 1 2 4, sequence 1 8 16\).*with -b and -s"
    ):
        add_profiles(builder, config, [], [profile])


def test_profiles_that_only_their_tensors_would_overfill_are_refused() -> None:
    """64 x 128 x 768 floats are 24 MiB, and 64 x 128 ids are 32 KiB: 24 MiB rounded down."""
    small = Profile(batch=(1, 1, 64), sequence=(1, 128, 128))
    tensors = [IDS, HIDDEN]
    check_memory(tensors, [small], T4)
    tiny = Gpu(name="Tiny", compute_capability="7.5", memory_mib=24)
    with pytest.raises(
        HostError, match=r"profile 0 \(.*\) needs 24 MiB for .* alone; Tiny has 24 MiB"
    ):
        check_memory(tensors, [small], tiny)
    check_memory([HIDDEN], [small], tiny)
