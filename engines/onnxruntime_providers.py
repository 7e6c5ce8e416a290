"""ONNX Runtime's execution providers: their options, and whether this host has them.

A CPU needs neither. On a GPU, ONNX Runtime runs a graph on the CPU where a provider cannot be
loaded, with no more than a line in its log; here that is an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attn_export.errors import BundleError, HostError, UsageError
from attn_export.lazy import require
from attn_export.manifest import EngineRecord
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .cuda_driver import Gpu, probe
from .packing_session import provider_of
from .profiles import Profile
from .session import CompileOptions
from .targets import require_gpu

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
Provider = Literal["cpu", "cuda", "tensorrt"]
# In order: a node runs on the first of them that takes it. ONNX Runtime adds the CPU as the last.
CHAINS: dict[str, tuple[str, ...]] = {
    "cpu": (CPU,),
    "cuda": (CUDA,),
    "tensorrt": (TENSORRT, CUDA),
}
Options = dict[str, dict[str, str]]
CPU_OPTIONS: Mapping[str, Mapping[str, str]] = {CPU: {}}

INSTALL = (
    "install the CUDA, cuDNN and TensorRT that this onnxruntime was built for "
    "(onnxruntime.ai/docs/execution-providers, under Requirements)"
)
ENGINE_CACHE = "trt_engine_cache_path"
# Options for the build alone: an engine that is loaded from its cache is not built.
BUILD_ONLY = ("trt_builder_optimization_level", "trt_max_workspace_size")
# What may be asked for with TensorRT in mind, as the command line spells it, and who takes it.
SPELLINGS = {
    "target": "--target",
    "workspace_mib": "--workspace",
    "optimization_level": "--optimization-level",
    "error_on_cache_miss": "--error-on-timing-cache-miss",
    "version_compatible": "--version-compatible",
    "same_compute_capability": "--same-compute-capability",
    "timeout_s": "--timeout",
}
TAKEN: dict[str, tuple[str, ...]] = {
    "cpu": (),
    "cuda": ("target",),
    "tensorrt": ("target", "workspace_mib", "optimization_level"),
}
# A manifest may ask for these and no others: some name libraries that would be run.
LOADABLE: dict[str, tuple[str, ...]] = {
    CUDA: ("use_tf32", "enable_skip_layer_norm_strict_mode"),
    TENSORRT: (
        "trt_engine_cache_enable",
        ENGINE_CACHE,
        "trt_profile_min_shapes",
        "trt_profile_opt_shapes",
        "trt_profile_max_shapes",
    ),
}


def require_provider(provider: str, target: str | None = None) -> Gpu:
    """The GPU for a provider, after the driver and the installed ONNX Runtime were asked.

    Args:
        provider: ``"cuda"`` or ``"tensorrt"``.
        target: a name of ``targets.TARGETS``, or None for the GPU that is there.

    Raises:
        HostError: if there is no such GPU, or this ONNX Runtime has no such provider.
        UsageError: if the target is unknown.
        MissingPackage: if ONNX Runtime is not installed.
    """
    gpu = require_gpu(target)
    ort = require("onnxruntime", extra="gpu")
    available = ort.get_available_providers()
    if CHAINS[provider][0] not in available:
        raise HostError(
            f"this onnxruntime {ort.__version__} has no {CHAINS[provider][0]}; it has: "
            f"{', '.join(available)}; run: pip uninstall -y onnxruntime && "
            "pip install 'attn-export[gpu]'"
        )
    return gpu


def load_libraries(provider: str) -> None:
    """Load CUDA (and TensorRT) from their Python packages, where they are installed.

    Without it ONNX Runtime looks only where the system's linker does.
    """
    ort = require("onnxruntime", extra="gpu")
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # what is missing is said by the next step
            ort.preload_dlls()
    if provider == "tensorrt":
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def require_in_use(wanted: Iterable[str], in_use: Sequence[str]) -> None:
    """Refuse a session that does without one of its providers.

    Args:
        in_use: what the session's ``get_providers`` says.

    Raises:
        HostError: with the library that is missing, where the linker can tell.
    """
    for name in wanted:
        if name not in in_use:
            reason = library_problem(name) or "ONNX Runtime's log on stderr has the reason"
            raise HostError(
                f"ONNX Runtime would run on {', '.join(in_use)} without {name}: {reason}; {INSTALL}"
            )


def library_problem(name: str) -> str | None:
    """What the linker says of a provider's library, or None where it loads."""
    folder = Path(require("onnxruntime", extra="gpu").__file__).parent / "capi"
    provider = name.removesuffix("ExecutionProvider").lower()
    try:
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{provider}.so"))
    except OSError as error:
        return str(error)
    return None


def require_taken(options: CompileOptions) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: naming the option.
    """
    ours = CompileOptions()
    for field, spelling in SPELLINGS.items():
        is_given = getattr(options, field) != getattr(ours, field)
        if is_given and field not in TAKEN[options.provider]:
            raise UsageError(
                f"{spelling} does nothing for ONNX Runtime's provider {options.provider}; leave it "
                "out, or use --backend tensorrt"
            )


def provider_options(
    precision: str,
    options: CompileOptions,
    *,
    inputs: Sequence[TensorSpec],
    profiles: Sequence[Profile],
    engine_cache: str,
) -> Options:
    """The options of each provider in the chain, in its order.

    Args:
        engine_cache: the folder that TensorRT's engines go to, relative to the bundle.
    """
    # TF32 would round FP32 products to 10 bits on Ampere and later, against FP32 parity.
    cuda = {"use_tf32": "0"}
    if "fp16" in precision:
        # SkipLayerNormalization replaces an Add and a LayerNormalization whose statistics are
        # FP32. Its kernel summed in FP16 unless strict, until github.com/microsoft/onnxruntime
        # pull request 28682 of May 2026.
        cuda["enable_skip_layer_norm_strict_mode"] = "1"
    if options.provider == "cpu":
        return {CPU: {}}
    if options.provider == "cuda":
        return {CUDA: cuda}
    return {
        TENSORRT: _tensorrt_options(options, inputs, union_profile(profiles), engine_cache),
        CUDA: cuda,
    }


def union_profile(profiles: Sequence[Profile]) -> Profile:
    """The one box that holds all profiles, tuned for the profile of the longest sequences.

    ONNX Runtime builds several profiles but runs the first one only
    (github.com/microsoft/onnxruntime, pull request 31624).
    """
    longest = max(profiles, key=lambda profile: profile.sequence[2])
    return Profile(
        batch=(
            min(profile.batch[0] for profile in profiles),
            longest.batch[1],
            max(profile.batch[2] for profile in profiles),
        ),
        sequence=(
            min(profile.sequence[0] for profile in profiles),
            longest.sequence[1],
            longest.sequence[2],
        ),
    )


def _tensorrt_options(
    options: CompileOptions, inputs: Sequence[TensorSpec], box: Profile, engine_cache: str
) -> dict[str, str]:
    # No trt_fp16_enable and no trt_int8_enable: without them ONNX Runtime makes a strongly typed
    # network (TensorRT 9 and later), so that the precision is the graph's own.
    chosen = {
        "trt_engine_cache_enable": "True",
        ENGINE_CACHE: engine_cache,
    }
    for index, bound in enumerate(("min", "opt", "max")):
        chosen[f"trt_profile_{bound}_shapes"] = ",".join(_shapes(inputs, box, index))
    if options.optimization_level is not None:
        chosen["trt_builder_optimization_level"] = str(options.optimization_level)
    if options.workspace_mib is not None:
        chosen["trt_max_workspace_size"] = str(options.workspace_mib << 20)
    return chosen


def _shapes(inputs: Sequence[TensorSpec], box: Profile, index: int) -> Iterator[str]:
    """One bound of each dynamic input, as ``name:1x128``."""
    sizes = {BATCH: box.batch[index], SEQUENCE: box.sequence[index]}
    for spec in inputs:
        if any(isinstance(size, str) for size in spec.shape):
            shape = "x".join(str(sizes.get(str(size), size)) for size in spec.shape)
            yield f"{spec.name}:{shape}"


def placed(options: Options, engine_cache: Path, *, timing_cache: Path | None = None) -> Options:
    """The options with TensorRT's folders where they are on this machine."""
    here = {**options[TENSORRT], ENGINE_CACHE: str(engine_cache)}
    if timing_cache:
        here["trt_timing_cache_enable"] = "True"
        here["trt_timing_cache_path"] = str(timing_cache.absolute())
    return {**options, TENSORRT: here}


def recorded_options(record: EngineRecord) -> Options:
    """What an engine was compiled with, as its manifest says, less what only the build needs.

    Raises:
        BundleError: if the manifest asks for a provider or an option that is not ours.
    """
    recorded = record.environment.get("provider_options")
    chain = CHAINS.get(provider_of(record))
    if chain is None or not isinstance(recorded, dict) or tuple(recorded) != chain:
        raise BundleError(
            f"the manifest's provider_options of {record.name} are broken; rebuild it"
        )
    kept: Options = {}
    for name, options in recorded.items():
        kept[name] = {key: str(of) for key, of in options.items() if key not in BUILD_ONLY}
        unknown = sorted(set(kept[name]) - set(LOADABLE[name]))
        if unknown:
            raise BundleError(
                f"the manifest asks for the option {unknown[0]} of {name}, which attn-export does "
                "not write; rebuild the bundle"
            )
    return kept


def gpu_environment(provider: str, gpu: Gpu, options: Options) -> dict[str, Any]:
    """What is recorded of an engine on a GPU, besides its host."""
    return {
        "provider": CHAINS[provider][0],
        "provider_options": options,
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver_cuda": probe().version,
    }


def require_same_host(record: EngineRecord, gpu: Gpu) -> None:
    """Refuse a TensorRT engine that ONNX Runtime would not take, but build again for minutes.

    Raises:
        HostError: if the GPU's kind or ONNX Runtime's version is another one.
    """
    version = require("onnxruntime", extra="gpu").__version__
    for what, here in (("compute_capability", gpu.compute_capability), ("onnxruntime", version)):
        there = record.environment.get(what)
        if there != here:
            raise HostError(
                f"{record.name} was compiled with {what.replace('_', ' ')} {there}, here it is "
                f"{here}; compile the bundle again on this host"
            )
