"""The seam: what a backend must do, and how one is found.

A session is a protocol and not a base class: a backend shares no code with another, only this
shape. A backend is one module with five functions:

* ``require_host(options)``: raise a HostError if this machine cannot compile;
* ``graphs(bundle, options) -> dict``: the precisions that it makes engines of, each with the key of
  the bundle's graph that it takes for it;
* ``compile(bundle, precision, options) -> EngineRecord``: make what ``load`` needs, run every
  bucket once;
* ``load(bundle, record, options) -> Session``;
* ``unsuited(record) -> str | None``: why this host should not serve that engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from attn_export.errors import UsageError
from attn_export.manifest import EngineRecord
from attn_export.spec import TensorSpec

from .profiles import Profile

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Outputs = dict[str, np.ndarray[Any, Any]]
# What the threads of a CPU are set for: many batches, or each one alone.
Goal = Literal["throughput", "latency"]

# Strings, so that listing the backends imports none of them.
BACKENDS = {
    "onnxruntime": "attn_export.engines.onnxruntime",
    "openvino": "attn_export.engines.openvino",
    "tensorrt": "attn_export.engines.tensorrt",
}
ENTRY_POINTS = "attn_export.backends"


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How engines are made. A backend reads what concerns it.

    Args:
        provider: ONNX Runtime's execution provider: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        goal: what a CPU's threads are set for when the buckets are timed, and when it is served.
        bf16: also make a BF16 engine; OpenVINO, on a CPU that computes it.
        target: the GPU to build for, a name of ``targets.TARGETS``; None is the one that is there.
        profiles: optimization profiles; none: one for each bucket.
        workspace_mib: memory for the tactics that TensorRT tries; None is all that the GPU has.
        optimization_level: 0 to 5, how long TensorRT searches; None is its own default.
        cache: the folder of timing caches; None keeps none.
        error_on_cache_miss: fail where a tactic's time is not in the cache.
        version_compatible: ``"lean"``: a plan for the lean runtime of the same version;
            ``"embedded"``: one that carries that runtime with it, for newer TensorRTs too.
        same_compute_capability: a plan for every GPU of this compute capability, not for this
            model alone; NvInfer.h says that it may cost speed.
        timeout_s: give up on one engine after this many seconds.
        least_fp16_share: of the GEMM layers of a reduced-precision engine.
        say: told what is going on.
    """

    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    goal: Goal = "throughput"
    bf16: bool = False
    target: str | None = None
    profiles: tuple[Profile, ...] = ()
    workspace_mib: int | None = None
    optimization_level: int | None = None
    cache: Path | None = None
    error_on_cache_miss: bool = False
    version_compatible: Literal["lean", "embedded"] | None = None
    same_compute_capability: bool = False
    timeout_s: float | None = None
    least_fp16_share: float = 0.9
    say: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How an engine is opened. A backend reads what concerns it.

    Args:
        threads: CPU threads, or None for each CPU that this process may use.
        goal: what a CPU's threads are set for; None is what the engine was compiled for.
        streams: batches that a GPU works on at a time; each has its own device memory.
        cuda_graphs: replay a captured CUDA graph where a shape comes again.
        wait_s: how long a batch waits for a free stream.
        allow_host_code: run the code that a version-compatible plan may carry.
    """

    threads: int | None = None
    goal: Goal | None = None
    streams: int = 2
    cuda_graphs: bool = True
    wait_s: float = 60.0
    allow_host_code: bool = False


class Session(Protocol):
    """One loaded engine. Safe to share between threads.

    Attributes:
        profiles: the shapes that it takes; none where it takes any.
        batch_tokens: how many tokens (padding included) fill one batch of :meth:`run_all`.

    With profiles, batches of :meth:`run_all` are padded to their bucket's edge; without, a batch
    may stop at its own longest sequence. A session that is faster without padding also has
    ``unpadded_tokens``: from so many tokens on, sequences of one length are a batch of their own.
    One whose :meth:`run_all` is fastest with several batches at a time also has ``streams``: how
    many.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buckets: tuple[int, ...]
    profiles: tuple[Profile, ...]
    batch_tokens: int

    def run(self, feeds: Feeds) -> Outputs:
        """One batch of a shape that it takes, as fast as one batch can be."""

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        """Many independent batches, as many a second as the device can; results in order."""

    def close(self) -> None:
        """Free the engine; later calls are errors."""


def goal_of(record: EngineRecord, options: LoadOptions) -> Goal:
    """What an engine's threads are set for: as asked, else as it was compiled.

    Raises:
        UsageError: if something else is asked for.
    """
    if options.goal not in (None, *get_args(Goal)):
        raise UsageError(f"goal is {options.goal!r}; it must be {' or '.join(get_args(Goal))}")
    recorded: Goal = "latency" if record.environment.get("goal") == "latency" else "throughput"
    return options.goal or recorded


def backend_names() -> list[str]:
    """All backends that are installed, built-in ones first."""
    plugins = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return [*BACKENDS, *sorted(plugins - set(BACKENDS))]


def backend(name: str) -> ModuleType:
    """The module of one backend.

    Raises:
        UsageError: if no backend has this name.
    """
    if name in BACKENDS:
        return importlib.import_module(BACKENDS[name])
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            module: ModuleType = point.load()
            return module
    raise UsageError(f"unknown backend {name!r}; there are: {', '.join(backend_names())}")
