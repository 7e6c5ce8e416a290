"""The embedded backend: ONNX Runtime on a CPU; on a GPU through its CUDA or TensorRT provider."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.errors import HostError, UsageError
from attn_export.lazy import require
from attn_export.manifest import EngineRecord
from attn_export.spec import TensorSpec

from .bucket_times import time_buckets
from .cpu import examine_cpu, usable_threads
from .onnxruntime_engines import engine_files, linked_engines, new_engines
from .onnxruntime_providers import (
    CPU,
    Options,
    gpu_environment,
    load_libraries,
    placed,
    provider_options,
    recorded_options,
    require_provider,
    require_same_host,
    require_taken,
    union_profile,
)
from .onnxruntime_session import GPU_BATCH_TOKENS, OnnxRuntimeSession
from .packing import ATTENTION_PRICE, break_even_width
from .packing_session import PACKED, PackingSession, graph_specs, is_packed, provider_of
from .profiles import Profile, bucket_profiles, check_profiles, profile_edges
from .session import CompileOptions, Goal, LoadOptions, Session, goal_of

TF32 = "NVIDIA_TF32_OVERRIDE"


def require_host(options: CompileOptions) -> None:
    """Check that engines can be made here.

    Raises:
        UsageError: if the target is unknown, or an option would have no effect.
        HostError: if there is no such GPU, or this ONNX Runtime has no such provider.
        MissingPackage: if ONNX Runtime is not installed.
    """
    require_taken(options)
    if options.provider == "cpu":
        require("onnxruntime", extra="cpu")
    else:
        require_provider(options.provider, options.target)


# A CPU wants its own INT8 graph; TensorRT takes symmetric Q/DQ; CUDA has no fast INT8 here.
GRAPHS = {
    "cpu": {"fp32": "fp32", "fp16": "fp16", "int8": "int8-cpu", PACKED: PACKED},
    "cuda": {"fp32": "fp32", "fp16": "fp16", PACKED: PACKED},
    "tensorrt": {"fp32": "fp32", "fp16": "fp16", "int8": "int8"},
}


def graphs(bundle: Bundle, options: CompileOptions) -> dict[str, str]:
    """The precisions that engines are made of, each with the key of its graph in the bundle.

    ``"packed"`` is FP32 on rows that texts share.
    """
    chosen = GRAPHS[options.provider]
    return {name: key for name, key in chosen.items() if key in bundle.manifest.graphs}


def compile(bundle: Bundle, precision: str, options: CompileOptions) -> EngineRecord:  # noqa: A001
    """Open a bundle's graph and run each bucket on it.

    Each bucket is recorded with its edge (tokens), the batch size and the time of one such batch
    in ms, the best of some after a warm-up. Only the TensorRT provider writes files: its engines,
    under ``trt/``. They have one optimization profile, which holds all of ``options.profiles``.

    Raises:
        BundleError: if the bundle has no such graph, or the graph was altered.
        BuildFailed: if ONNX Runtime cannot open or run it.
        HostError: if there is no such GPU, or this ONNX Runtime cannot use it.
        MissingPackage: if ONNX Runtime is not installed.
        UsageError: if the profiles do not fit the model.
    """
    of = ("" if options.provider == "cpu" else options.provider, PACKED * (precision == PACKED))
    record = EngineRecord(
        backend="onnxruntime",
        precision="fp32" if precision == PACKED else precision,
        graph=GRAPHS[options.provider][precision],
        variant="-".join(filter(None, of)),
    )
    if options.provider == "cpu":
        session = _open_on_cpu(bundle, record, LoadOptions(goal=options.goal))
        with contextlib.closing(session):
            streams = session.threads if options.goal == "throughput" else 1
            record.environment = {
                **_host(),
                "provider": CPU,
                "goal": options.goal,
                "streams": streams,
                "threads": session.threads,
            }
            record.buckets = time_buckets(session, precision, at_a_time=streams)
    else:
        _compile_for_gpu(bundle, record, options)
    return record


def load(bundle: Bundle, record: EngineRecord, options: LoadOptions) -> Session:
    """Check an engine's files against the manifest and make a session of it.

    Raises:
        BundleError: if a file is missing or altered.
        HostError: if this host has not the engine's GPU or ONNX Runtime.
        UsageError: if ``threads`` is below 1 or above the CPUs this process may use, or ``streams``
            is below 1.
        MissingPackage: if ONNX Runtime is not installed.
    """
    provider = provider_of(record)
    if not provider:
        return _open_on_cpu(bundle, record, options)
    if options.streams < 1:
        raise UsageError(f"streams is {options.streams}; give at least 1")
    providers = recorded_options(record)
    _require_here(record)
    load_libraries(provider)
    profiles = [Profile.from_json(profile) for profile in record.profiles]
    with contextlib.ExitStack() as stack:
        if record.files:
            providers = placed(providers, stack.enter_context(linked_engines(bundle, record)))
        return _open_on_gpu(bundle, record, providers, profiles, streams=options.streams)


def unsuited(record: EngineRecord) -> str | None:
    """Why this host should not serve an engine, or None."""
    if not provider_of(record):
        computes_fp32 = "a CPU computes FP16 graphs in FP32; serve FP32 or INT8 there"
        return computes_fp32 if "fp16" in record.precision else None
    try:
        _require_here(record)
    except HostError as error:
        return str(error)
    return None


def open_graph(
    path: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    buckets: Sequence[int],
    threads: int | None,
    goal: Goal = "throughput",
) -> OnnxRuntimeSession:
    """A session of any ONNX file on the CPU, opened at its first run; it need be no engine.

    Args:
        buckets: the ascending bucket edges, in tokens.
        threads: CPU threads in all, or None for each CPU that this process may use.
        goal: what the threads are set for.

    Raises:
        BundleError: if the file is missing.
        UsageError: if ``threads`` is below 1 or above the CPUs this process may use.
        MissingPackage: if ONNX Runtime is not installed.
    """
    require("onnxruntime", extra="cpu")
    return OnnxRuntimeSession(
        path,
        inputs=inputs,
        outputs=outputs,
        buckets=buckets,
        threads=usable_threads(threads),
        goal=goal,
    )


def _compile_for_gpu(bundle: Bundle, record: EngineRecord, options: CompileOptions) -> None:
    """Fill in a record of the provider ``cuda`` or ``tensorrt``."""
    provider = provider_of(record)
    gpu = require_provider(provider, options.target)
    load_libraries(provider)
    graph, folder = bundle.graph(record.graph), f"trt/{record.name}"
    profiles = _profiles(bundle, options)
    providers = provider_options(
        record.precision,
        options,
        inputs=[graph.typed(spec) for spec in bundle.manifest.inputs],
        profiles=profiles,
        engine_cache=folder,
    )
    with contextlib.ExitStack() as stack:
        here = providers
        if profiles:
            options.say(
                f"ONNX Runtime runs one optimization profile: {union_profile(profiles)}; the "
                "backend tensorrt has one for each bucket"
            )
            if float(gpu.compute_capability) >= 8 and os.environ.get(TF32) != "0":
                options.say(
                    "TensorRT may round FP32 products to TF32, and ONNX Runtime has no option "
                    f"against it; set {TF32}=0 where parity asks for it, also to serve"
                )
            engines = stack.enter_context(new_engines(bundle.directory, folder))
            here = placed(providers, engines, timing_cache=_timing_cache(options))
        session = _open_on_gpu(bundle, record, here, profiles, streams=LoadOptions().streams)
        with contextlib.closing(session):
            record.buckets = time_buckets(session, record.precision)
    if profiles:
        record.files = engine_files(bundle.directory, folder)
    record.profiles = [profile.to_json() for profile in profiles]
    record.environment = {**_host(), **gpu_environment(provider, gpu, providers)}


def _profiles(bundle: Bundle, options: CompileOptions) -> tuple[Profile, ...]:
    """The shapes that TensorRT is asked for; CUDA takes any."""
    if options.provider == "cuda":
        return ()
    check_profiles(options.profiles, int(bundle.manifest.model["max_length"]))
    edges = bundle.manifest.buckets["edges"]
    return options.profiles or bucket_profiles(edges, GPU_BATCH_TOKENS)


def _timing_cache(options: CompileOptions) -> Path | None:
    """The folder for TensorRT's timing cache, if it can be there. ONNX Runtime names the file."""
    if options.cache:
        try:
            options.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            options.say(f"no timing cache: {options.cache}: {error.strerror}")
            return None
    return options.cache


def _require_here(record: EngineRecord) -> None:
    """Ask for the GPU and the ONNX Runtime that an engine was compiled with."""
    gpu = require_provider(provider_of(record))
    if record.files:
        require_same_host(record, gpu)


def _open_on_cpu(
    bundle: Bundle, record: EngineRecord, options: LoadOptions
) -> OnnxRuntimeSession | PackingSession:
    inputs, outputs = _specs(bundle, record)
    session = open_graph(
        bundle.verify_graph(bundle.graph(record.graph)),
        inputs=inputs,
        outputs=outputs,
        buckets=bundle.manifest.buckets["edges"],
        threads=options.threads,
        goal=goal_of(record, options),
    )
    return _as_padded(bundle, session, session.threads) if is_packed(record) else session


def _open_on_gpu(
    bundle: Bundle,
    record: EngineRecord,
    providers: Options,
    profiles: Sequence[Profile],
    *,
    streams: int,
) -> OnnxRuntimeSession | PackingSession:
    inputs, outputs = _specs(bundle, record)
    session = OnnxRuntimeSession(
        bundle.verify_graph(bundle.graph(record.graph)),
        inputs=inputs,
        outputs=outputs,
        buckets=profile_edges(profiles) or bundle.manifest.buckets["edges"],
        threads=streams,
        providers=providers,
        profiles=profiles,
    )
    session.open()
    return _as_padded(bundle, session, threads=1) if is_packed(record) else session


def _specs(bundle: Bundle, record: EngineRecord) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and outputs of an engine's graph."""
    graph = bundle.graph(record.graph)
    if is_packed(record):
        return graph_specs(graph, "inputs"), graph_specs(graph, "outputs")
    manifest = bundle.manifest
    return [graph.typed(i) for i in manifest.inputs], [graph.typed(o) for o in manifest.outputs]


def _as_padded(bundle: Bundle, session: OnnxRuntimeSession, threads: int) -> PackingSession:
    manifest = bundle.manifest
    return PackingSession(
        session,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        buckets=session.buckets,
        width=break_even_width(manifest.model["spec"]) // ATTENTION_PRICE,
        threads=threads,
    )


def _host() -> dict[str, Any]:
    return {
        "onnxruntime": require("onnxruntime", extra="cpu").__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": examine_cpu().model,
    }
