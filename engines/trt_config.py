"""How TensorRT is told to build: flags, memory, tactic sources, profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attn_export.errors import BuildFailed, HostError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .cuda_driver import Gpu
from .profiles import Profile
from .session import CompileOptions
from .trt_api import INSTALL, is_strongly_typed, version

MIB = 1 << 20
LEVELS = range(6)
OBEY, PREFER = "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"
# What the layers may compute in, for a TensorRT that is told by flags.
WEAK_FLAGS = {"fp32": (), "fp16": ("FP16", OBEY), "int8": ("INT8", "FP16", OBEY)}
# Libraries beside TensorRT's own kernels: deprecated, off in 10 and gone in 11. Without them 8.6
# holds no cuBLAS and cuDNN handles in GPU memory.
LIBRARY_TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN")
MIN, OPT, MAX = range(3)


def check_options(options: CompileOptions) -> None:
    """Refuse option values that TensorRT does not take.

    Raises:
        UsageError: naming the option.
    """
    level, workspace = options.optimization_level, options.workspace_mib
    if level is not None and level not in LEVELS:
        raise UsageError(f"the optimization level is {level}; it must be 0 to {LEVELS[-1]}")
    if workspace is not None and workspace < 1:
        raise UsageError(f"the workspace is {workspace} MiB; it must be at least 1")
    if options.error_on_cache_miss and options.cache is None:
        raise UsageError("to fail on a timing cache miss needs a timing cache; name its folder")


def make_config(
    trt: Any, builder: Any, *, precision: str, options: CompileOptions
) -> tuple[Any, list[str]]:
    """A builder configuration, and the names of the flags that are set in it.

    Raises:
        HostError: if this TensorRT lacks something that the options ask for.
    """
    config = builder.create_builder_config()
    names = [] if is_strongly_typed(trt) else list(WEAK_FLAGS[precision])
    if options.version_compatible:
        names.append("VERSION_COMPATIBLE")
    if options.version_compatible == "lean":
        names.append("EXCLUDE_LEAN_RUNTIME")
    if options.error_on_cache_miss:
        names.append("ERROR_ON_TIMING_CACHE_MISS")
    for name in names:
        if not hasattr(trt.BuilderFlag, name):
            raise HostError(
                f"TensorRT {version(trt)} has no {name}; leave that option out, or use a newer "
                f"TensorRT: {INSTALL}"
            )
        config.set_flag(getattr(trt.BuilderFlag, name))
    # On by default on Ampere and later, where it would round FP32 products to 10 bits.
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector
    if options.same_compute_capability:
        names.append(_suit_every_gpu_of_this_kind(trt, config))
    _leave_out_libraries(trt, config)
    _share_profiles(trt, config)
    return config, names


def _suit_every_gpu_of_this_kind(trt: Any, config: Any) -> str:
    name = "SAME_COMPUTE_CAPABILITY"
    if not hasattr(trt.HardwareCompatibilityLevel, name):
        raise HostError(
            f"TensorRT {version(trt)} has no {name}; leave out --same-compute-capability, or use "
            f"a newer TensorRT: {INSTALL}"
        )
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    return name


def _leave_out_libraries(trt: Any, config: Any) -> None:
    sources = kept = config.get_tactic_sources()
    for name in LIBRARY_TACTICS:
        if hasattr(trt.TacticSource, name):
            kept &= ~(1 << int(getattr(trt.TacticSource, name)))
    if kept != sources:
        config.set_tactic_sources(kept)


def _share_profiles(trt: Any, config: Any) -> None:
    """Let execution contexts use one profile together: an option in 8.6, the rule from 10 on."""
    feature = getattr(trt.PreviewFeature, "PROFILE_SHARING_0806", None)
    if feature is not None and not config.get_preview_feature(feature):
        config.set_preview_feature(feature, True)


def prefer_precisions(trt: Any, config: Any, flags: list[str]) -> None:
    """Let TensorRT leave a requested precision where no kernel obeys it; corrects ``flags``."""
    config.clear_flag(getattr(trt.BuilderFlag, OBEY))
    config.set_flag(getattr(trt.BuilderFlag, PREFER))
    flags[flags.index(OBEY)] = PREFER


def add_profiles(
    builder: Any, config: Any, inputs: Sequence[TensorSpec], profiles: Sequence[Profile]
) -> None:
    """Give the configuration one optimization profile each.

    Raises:
        BuildFailed: if TensorRT refuses one.
    """
    for number, given in enumerate(profiles):
        profile = builder.create_optimization_profile()
        try:
            for spec in inputs:
                shapes = (_shape(spec, given, index) for index in (MIN, OPT, MAX))
                profile.set_shape(spec.name, *shapes)
            accepted = config.add_optimization_profile(profile) >= 0
            reason = ""
        except (RuntimeError, ValueError) as error:
            accepted, reason = False, f": {error}"
        if not accepted:
            raise BuildFailed(
                f"TensorRT refuses profile {number} ({given}){reason}; the graph's fixed sizes may "
                "not allow it: give other profiles with -b and -s"
            )


def check_memory(tensors: Sequence[TensorSpec], profiles: Sequence[Profile], gpu: Gpu) -> None:
    """Refuse profiles whose inputs and outputs alone are more than the GPU has.

    Raises:
        HostError: with the profile, what it needs and what there is, in MiB.
    """
    for number, profile in enumerate(profiles):
        needed = sum(
            math.prod(_shape(spec, profile, MAX)) * np.dtype(spec.dtype).itemsize
            for spec in tensors
        )
        if needed > gpu.memory_mib * MIB:
            raise HostError(
                f"profile {number} ({profile}) needs {needed // MIB} MiB for its inputs and "
                f"outputs alone; {gpu.name} has {gpu.memory_mib} MiB: lower the batch or the length"
            )


def _shape(spec: TensorSpec, profile: Profile, index: int) -> tuple[int, ...]:
    """An input's shape at a profile's least, optimal or largest point."""
    sizes = {BATCH: profile.batch[index], SEQUENCE: profile.sequence[index]}
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
