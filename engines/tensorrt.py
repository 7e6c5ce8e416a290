"""The TensorRT backend: one plan for each precision, GPU and TensorRT version.

A plan is code for a GPU, so plans are trusted files only: one is deserialised after its hash was
checked against the manifest, and the manifest is as trustworthy as the place it came from.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle, file_record, write_atomic
from attn_export.errors import BuildFailed, HostError, UsageError
from attn_export.manifest import EngineRecord, GraphRecord
from attn_export.spec import TensorSpec

from .bucket_times import time_buckets
from .cuda_driver import Gpu, probe
from .layer_proof import read_proof, require_share
from .profiles import Profile, bucket_profiles, check_profiles
from .session import CompileOptions, LoadOptions
from .targets import require_gpu
from .trt_api import is_strongly_typed, require_tensorrt
from .trt_builder import BuildRequest, BuiltPlan, build_plan
from .trt_lean import require_lean
from .trt_session import BATCH_TOKENS, TensorRTSession, open_plan

SLOW = 0.8  # a share of the FP32 engine's time that says nothing for a lower precision
LAST_WEAKLY_TYPED = "tensorrt-8.6"  # as graphs are linted for


def require_host(options: CompileOptions) -> None:
    """Check that engines can be built here; the driver is asked before TensorRT is touched.

    Raises:
        UsageError: if the target is unknown.
        HostError: if there is no GPU of the asked kind, or TensorRT is of another age.
        MissingPackage: if TensorRT, or the lean runtime that a plan is for, is not installed.
    """
    require_gpu(options.target)
    require_tensorrt()
    if options.version_compatible == "lean":
        require_lean()


# Strong typing takes the precision from the graph; weak typing from flags and layers, and so it
# takes the graphs that have no FP16 in them.
TYPED = {"fp32": "fp32", "fp16": "fp16", "int8": "int8-fp16"}
WEAK = {"fp32": "fp32", "fp16": "fp32", "int8": "int8"}


def graphs(bundle: Bundle, options: CompileOptions) -> dict[str, str]:
    """The precisions that engines are made of, each with the key of its graph in the bundle."""
    chosen = TYPED if is_strongly_typed(require_tensorrt()) else WEAK
    asked = [name for name in chosen if name == "int8" or name in bundle.manifest.graphs]
    return {name: chosen[name] for name in asked if chosen[name] in bundle.manifest.graphs}


def compile(  # noqa: A001
    bundle: Bundle, precision: str, options: CompileOptions
) -> EngineRecord:
    """Build one plan, open it, prove its precision and time its buckets.

    The plan and the inspector's JSON land in ``trt/<GPU and version>/`` of the bundle's directory.

    Raises:
        HostError: if this machine cannot build it; out of GPU memory.
        UsageError: if a profile does not suit the model.
        BundleError: if the graph is missing or altered.
        BuildFailed: if TensorRT refuses the graph, or too few layers run in the asked precision.
    """
    gpu = require_gpu(options.target)
    trt = require_tensorrt()
    typed = is_strongly_typed(trt)
    key = (TYPED if typed else WEAK)[precision]
    source = bundle.graph(key)
    # What stays FP32, and the types of inputs and outputs, were decided with the FP16 graph.
    asked = bundle.graph(precision) if precision == "fp16" else source
    if not typed:
        _require_readable(source)
    inputs, outputs = _typed(bundle, asked)
    profiles = _profiles(bundle, options)
    built = build_plan(
        BuildRequest(
            graph=bundle.verify_graph(source),
            precision=precision,
            typed=typed,
            keep_fp32=asked.keep_fp32,
            fp16_io=asked.fp16_io,
            profiles=profiles,
            inputs=inputs,
            outputs=outputs,
            options=options,
            gpu=gpu,
        )
    )
    record = EngineRecord(
        backend="tensorrt",
        precision=precision,
        graph=precision if precision == "fp16" else key,
        variant=_variant(gpu, trt.__version__),
        environment=_environment(gpu, built, options),
        profiles=[profile.to_json() for profile in profiles],
    )
    path = bundle.directory / "trt" / record.variant / f"{Path(asked.path).stem}.plan"
    write_atomic(path, built.plan)
    with closing(_open(bundle, record, built.plan, LoadOptions(allow_host_code=True))) as session:
        files = [path]
        inspected = session.inspector_json()
        if inspected is not None:
            proof = read_proof(
                inspected, precision=precision, keep_fp32=asked.keep_fp32, nodes=built.layers
            )
            require_share(proof, options.least_fp16_share)
            record.proof = proof.to_json()
            files.append(path.with_suffix(".inspector.json"))
            write_atomic(files[-1], inspected)
        record.buckets = time_buckets(session, precision)
        record.environment["device_mib"] = round(session.device_bytes / 2**20, 1)
    record.files = [file_record(file, root=bundle.directory) for file in files]
    _compare_with_fp32(bundle, record)
    return record


def load(bundle: Bundle, record: EngineRecord, options: LoadOptions) -> TensorRTSession:
    """Check that a plan is for this GPU and TensorRT and unaltered, and open it.

    Raises:
        HostError: if there is no GPU, or the plan is for another GPU or TensorRT.
        UsageError: if the plan carries code and that was not allowed.
        BundleError: if the plan is missing, altered or broken.
        MissingPackage: if the runtime is not installed.
    """
    gpu = require_gpu()
    runtime = require_lean() if _is_lean(record) else require_tensorrt()
    reason = _mismatch(record, gpu, runtime.__version__)
    if reason:
        raise HostError(
            f"{reason}; build it for this machine with 'attn-export compile {bundle.directory}'"
        )
    if record.environment.get("version_compatible") == "embedded" and not options.allow_host_code:
        raise UsageError(
            f"{record.name} carries its own TensorRT runtime, which is code that would run here; "
            "allow it for a bundle that you trust: allow_host_code=True, or --allow-host-code"
        )
    path = bundle.verify(bundle.manifest.shipped(record))
    return _open(bundle, record, path.read_bytes(), options)


def unsuited(record: EngineRecord) -> str | None:
    """Why this host cannot serve a plan, or None."""
    cuda = probe()
    if cuda.problem:
        return cuda.problem
    try:
        runtime = require_lean() if _is_lean(record) else require_tensorrt()
    except HostError as error:
        return str(error)
    return _mismatch(record, cuda.gpus[0], runtime.__version__)


def _open(
    bundle: Bundle, record: EngineRecord, plan: bytes, options: LoadOptions
) -> TensorRTSession:
    inputs, outputs = _typed(bundle, bundle.graph(record.graph))
    return open_plan(
        plan,
        inputs=inputs,
        outputs=outputs,
        profiles=[Profile.from_json(profile) for profile in record.profiles],
        options=options,
        lean=_is_lean(record),
        host_code=record.environment.get("version_compatible") == "embedded",
    )


def _typed(bundle: Bundle, graph: GraphRecord) -> tuple[list[TensorSpec], list[TensorSpec]]:
    manifest = bundle.manifest
    return [graph.typed(s) for s in manifest.inputs], [graph.typed(s) for s in manifest.outputs]


def _require_readable(graph: GraphRecord) -> None:
    reasons = graph.lint.get(LAST_WEAKLY_TYPED)
    if reasons:
        raise BuildFailed(
            f"{graph.path} is not for TensorRT 8.6: {'; '.join(reasons)}; change the model, or "
            "build with TensorRT 10 or 11"
        )


def _profiles(bundle: Bundle, options: CompileOptions) -> Sequence[Profile]:
    profiles = options.profiles or bucket_profiles(bundle.manifest.buckets["edges"], BATCH_TOKENS)
    check_profiles(profiles, int(bundle.manifest.model["max_length"]))
    return profiles


def _variant(gpu: Gpu, version: str) -> str:
    release = ".".join(version.split(".")[:3])
    return f"sm{gpu.compute_capability.replace('.', '')}-{release}"


def _is_lean(record: EngineRecord) -> bool:
    return record.environment.get("version_compatible") == "lean"


def _mismatch(record: EngineRecord, gpu: Gpu, version: str) -> str | None:
    made_on = record.environment
    if gpu.compute_capability != made_on["compute_capability"]:
        return (
            f"{record.name} was built on {made_on['gpu']}, compute capability "
            f"{made_on['compute_capability']}; the GPU here is {gpu.name}, compute capability "
            f"{gpu.compute_capability}"
        )
    built_by, kind = made_on["tensorrt"], made_on["version_compatible"]
    if kind == "embedded" and _numbers(version) < _numbers(built_by):
        return (
            f"{record.name} was built by TensorRT {built_by} and runs on newer ones; TensorRT "
            f"{version} is installed here"
        )
    if kind != "embedded" and version != built_by:
        what = "TensorRT's lean runtime" if kind == "lean" else "TensorRT"
        return f"{record.name} was built by TensorRT {built_by}; {what} {version} is installed here"
    return None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _environment(gpu: Gpu, built: BuiltPlan, options: CompileOptions) -> dict[str, Any]:
    return {
        "tensorrt": built.version,
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "gpu_memory_mib": gpu.memory_mib,
        "driver_cuda": probe().version,
        "python": platform.python_version(),
        "flags": list(built.flags),
        "build_s": round(built.seconds, 1),
        "version_compatible": options.version_compatible,
        "notes": [*built.notes, *built.warnings],
    }


def _compare_with_fp32(bundle: Bundle, record: EngineRecord) -> None:
    """Put the time over the FP32 engine's beside the proof: evidence where layers are hidden."""
    whole = next(
        (
            engine
            for engine in bundle.manifest.engines.values()
            if (engine.backend, engine.variant, engine.precision)
            == (record.backend, record.variant, "fp32")
        ),
        None,
    )
    if record.proof is None or whole is None or record.precision == "fp32":
        return
    fp32 = {(bucket["edge"], bucket["batch"]): bucket["ms"] for bucket in whole.buckets}
    ratios = [
        bucket["ms"] / fp32[key]
        for bucket in record.buckets
        if (key := (bucket["edge"], bucket["batch"])) in fp32
    ]
    if not ratios:
        return
    ratio = record.proof["time_ratio"] = sum(ratios) / len(ratios)
    if record.proof["gemm_share"] is None and ratio > SLOW:
        record.environment["notes"].append(
            f"TensorRT hides this plan's layers, and it takes {ratio:.2f} of the FP32 engine's "
            f"time: nothing shows that it computes in {record.precision}"
        )
