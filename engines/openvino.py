"""OpenVINO on the CPU: FP32, INT8 with AMX or VNNI, and BF16 where the CPU computes it."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
from typing import Any

from attn_export.bundle import Bundle
from attn_export.errors import BundleError, HostError, UsageError
from attn_export.manifest import EngineRecord

from .bucket_times import time_buckets
from .cpu import examine_cpu, usable_threads
from .openvino_library import Computes, library, version
from .openvino_session import OpenVinoSession
from .session import CompileOptions, LoadOptions, Session, goal_of

# The graphs that a precision may come from: the first one that is near enough to FP32, or, if none
# is, the first one. The symmetric INT8 graph is the fastest with AMX; for some models only the
# other one is near enough. BF16 is FP32's graph, computed in BF16.
GRAPHS = {"fp32": ("fp32",), "bf16": ("fp32",), "int8": ("int8", "int8-cpu")}
NOT_TAKEN = {
    "target": "--target",
    "profiles": "-b and -s",
    "provider": "--provider",
    "workspace_mib": "--workspace",
    "optimization_level": "--optimization-level",
    "error_on_cache_miss": "--error-on-timing-cache-miss",
    "version_compatible": "--version-compatible",
    "same_compute_capability": "--same-compute-capability",
}
BF16_NEEDED = "it computes BF16, and this CPU does not in hardware (AVX512_BF16 or AMX)"


def require_host(options: CompileOptions) -> None:
    """Check that engines can be made here.

    Raises:
        UsageError: if an option would have no effect.
        HostError: if BF16 is asked of a CPU that does not compute it.
        MissingPackage: if OpenVINO is not installed.
    """
    ours = CompileOptions()
    for field, spelling in NOT_TAKEN.items():
        if getattr(options, field) != getattr(ours, field):
            raise UsageError(f"OpenVINO does not take {spelling}; leave it out")
    library()
    cpu = examine_cpu()
    if options.bf16 and not cpu.computes_bf16:
        raise HostError(
            f"{cpu.model} does not compute BF16 in hardware (it takes AVX512_BF16 or AMX), and "
            "imitating it is slower than FP32: leave BF16 out, or compile on such a CPU"
        )


def graphs(bundle: Bundle, options: CompileOptions) -> dict[str, str]:
    """The precisions that engines are made of, each with the key of its graph in the bundle.

    There is no FP16: a CPU would compute it in FP32.
    """
    found = {}
    for precision, keys in GRAPHS.items():
        there = [key for key in keys if key in bundle.manifest.graphs]
        if there and (precision != "bf16" or options.bf16):
            found[precision] = next((key for key in there if _is_near(bundle, key)), there[0])
    return found


def compile(bundle: Bundle, precision: str, options: CompileOptions) -> EngineRecord:  # noqa: A001
    """Open a bundle's graph and run each bucket on it; nothing is written.

    Each bucket is recorded with its edge (tokens), the batch size and the time of one such batch
    in ms, the best of some after a warm-up: alone on all threads, or, for throughput, its share of
    the time of one batch a stream.

    Raises:
        BundleError: if the bundle has no such graph, or the graph was altered.
        BuildFailed: if OpenVINO cannot open or run it.
        MissingPackage: if OpenVINO is not installed.
    """
    chosen = graphs(bundle, options)
    if precision not in chosen:
        raise BundleError(
            f"{bundle.directory} holds no graph for {precision} on OpenVINO, which makes: "
            f"{', '.join(chosen)}; rebuild it with that precision"
        )
    record = EngineRecord(backend="openvino", precision=precision, graph=chosen[precision])
    cpu = examine_cpu()
    takes_bf16 = precision == "bf16" or (precision == "int8" and cpu.computes_bf16)
    record.environment = {
        "openvino": version(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cpu.model,
        "cpu_features": [name for name, is_there in cpu.features.items() if is_there],
        "computes": "bf16" if takes_bf16 else "f32",
        "goal": options.goal,
    }
    with contextlib.closing(_open(bundle, record, LoadOptions(goal=options.goal))) as session:
        record.environment |= session.settings()
        record.buckets = time_buckets(session, precision, at_a_time=session.streams)
    return record


def load(bundle: Bundle, record: EngineRecord, options: LoadOptions) -> Session:
    """Check an engine's graph against the manifest and make a session of it.

    Raises:
        BundleError: if a file is missing or altered, or the manifest is broken.
        HostError: if the engine computes BF16 and this CPU does not.
        UsageError: if ``threads`` is below 1 or above the CPUs this process may use.
        MissingPackage: if OpenVINO is not installed.
    """
    library()
    reason = unsuited(record)
    if reason:
        raise HostError(f"{record.name} cannot run here: {reason}; serve FP32, or compile it here")
    return _open(bundle, record, options)


def unsuited(record: EngineRecord) -> str | None:
    """Why this host should not serve an engine, or None."""
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed"
    if record.environment.get("computes") == "bf16" and not examine_cpu().computes_bf16:
        return BF16_NEEDED
    return None


def _is_near(bundle: Bundle, key: str) -> bool:
    return bundle.manifest.graphs[key].quantization.get("accepted") is not False


def _open(bundle: Bundle, record: EngineRecord, options: LoadOptions) -> OpenVinoSession:
    graph = bundle.graph(record.graph)
    return OpenVinoSession(
        bundle.verify_graph(graph),
        inputs=[graph.typed(spec) for spec in bundle.manifest.inputs],
        outputs=[graph.typed(spec) for spec in bundle.manifest.outputs],
        buckets=bundle.manifest.buckets["edges"],
        threads=usable_threads(options.threads),
        computes=_computes(record),
        skip_masks=record.precision != "fp32",  # beside FP32's products a mask costs nothing
        goal=goal_of(record, options),
    )


def _computes(record: EngineRecord) -> Computes:
    recorded: Any = record.environment.get("computes")
    if recorded == "bf16":
        return "bf16"
    if recorded == "f32":
        return "f32"
    raise BundleError(
        f"the manifest says that {record.name} computes in {recorded!r}; it must be f32 or bf16: "
        "compile it again"
    )
