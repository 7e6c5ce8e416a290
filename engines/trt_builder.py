"""A graph and its profiles -> a TensorRT plan, with any TensorRT from 8.6 to 11."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attn_export.errors import HostError, UsageError
from attn_export.spec import TensorSpec

from .build_progress import Progress, can_be_followed, make_monitor
from .build_thread import Stopped, run_stoppable
from .cuda_driver import Gpu
from .profiles import Profile
from .session import CompileOptions
from .timing_cache import TimingCache, cache_file
from .trt_api import is_strongly_typed, make_log, require_tensorrt, version
from .trt_config import (
    PREFER,
    WEAK_FLAGS,
    add_profiles,
    check_memory,
    check_options,
    make_config,
    prefer_precisions,
)
from .trt_failures import is_precision_conflict, no_engine
from .trt_network import check_inputs, make_io_fp16, make_network, node_names, parse_graph, pin_fp32

LISTED_NODES = 5


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One engine to build.

    Args:
        graph: the ONNX file, external data beside it.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``; a typed graph may have others.
        typed: the graph carries its precision, for TensorRT 10 and later; else it is the FP32
            graph (with Q/DQ for INT8), and flags give the precision, for 8.6.
        keep_fp32: node names that stay FP32, by role; for a graph that is not typed.
        fp16_io: bind float inputs and outputs as FP16; for a graph that is not typed.
        inputs: the graph's inputs, all of them.
        outputs: the graph's outputs, for the estimate of memory.
        gpu: the GPU that is here; the caller has asked the driver.
    """

    graph: Path
    precision: str
    typed: bool
    profiles: Sequence[Profile]
    inputs: Sequence[TensorSpec]
    gpu: Gpu
    keep_fp32: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fp16_io: bool = False
    outputs: Sequence[TensorSpec] = ()
    options: CompileOptions = field(default_factory=CompileOptions)


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan and how it came to be.

    Args:
        version: TensorRT's.
        layers: names of the ONNX nodes that the network's layers came from.
        warnings: TensorRT's own, each once.
        notes: where the build is not quite what was asked for.
        flags: names of the network and builder flags that were set.
        timing_cache: ``"new"``, ``"extended"``, ``"complete"`` (no tactic had to be timed) or
            ``"refused"``; None without one.
    """

    plan: bytes
    version: str
    seconds: float
    layers: tuple[str, ...]
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    timing_cache: str | None


def build_plan(request: BuildRequest) -> BuiltPlan:
    """Build one engine. It takes minutes and the whole GPU.

    Raises:
        BuildFailed: if TensorRT does not take the graph, builds nothing or takes too long.
        HostError: if TensorRT is missing, too old for an option, or the GPU too small.
        UsageError: if an option's value is wrong, or the graph is not of the kind that this
            TensorRT takes.
        KeyboardInterrupt: after the timing cache was kept.
    """
    options = request.options
    check_options(options)
    check_memory([*request.inputs, *request.outputs], request.profiles, request.gpu)
    trt = require_tensorrt()
    _check_typing(trt, request)
    followed = can_be_followed(trt)
    progress = Progress(f"building {request.precision}", options.say)
    # Made first and held here until the end: TensorRT's objects write to it while they die.
    log = make_log(trt, None if followed else progress.line)
    build = _Build(trt, request, log, progress)
    begun = time.monotonic()
    plan = run_stoppable(
        build.run,
        what=build.what,
        stop=progress.stop if followed else None,
        timeout_s=options.timeout_s,
        say=options.say,
    )
    return BuiltPlan(
        plan=plan,
        version=version(trt),
        seconds=time.monotonic() - begun,
        layers=build.layers,
        flags=tuple(build.flags),
        notes=tuple(build.notes),
        warnings=tuple(log.warnings()),
        timing_cache=build.cache_state,
    )


def _check_typing(trt: Any, request: BuildRequest) -> None:
    strong, precision = is_strongly_typed(trt), request.precision
    if not strong and precision not in WEAK_FLAGS:
        raise UsageError(
            f"TensorRT {version(trt)} does not build {precision}; it builds {', '.join(WEAK_FLAGS)}"
        )
    if precision != "fp32" and request.typed != strong:
        needed = "a typed graph" if strong else "the FP32 graph and flags"
        raise UsageError(
            f"TensorRT {version(trt)} builds {precision} from {needed}; {request.graph.name} is "
            "not for it"
        )


class _Build:
    """One build: what it notes on its way, in the thread it runs in."""

    def __init__(self, trt: Any, request: BuildRequest, log: Any, progress: Progress) -> None:
        self.what = f"building {request.precision} with TensorRT {version(trt)}"
        self.flags: list[str] = []
        self.notes: list[str] = []
        self.layers: tuple[str, ...] = ()
        self.cache_state: str | None = None
        self._trt, self._request = trt, request
        self._log, self._progress = log, progress
        self._pinned = 0

    def run(self) -> bytes:
        """Build; every object of TensorRT is made, used and freed in this thread."""
        trt, request, log = self._trt, self._request, self._log
        builder = network = parser = config = None
        try:
            builder = self._make_builder()
            network, typing = make_network(trt, builder)
            parser = parse_graph(trt, network, log, request.graph)
            self.layers = node_names(network)
            check_inputs(network, [spec.name for spec in request.inputs])
            if not is_strongly_typed(trt):
                self._set_types(network)
            config, flags = make_config(
                trt, builder, precision=request.precision, options=request.options
            )
            self.flags = [typing, *flags]
            add_profiles(builder, config, request.inputs, request.profiles)
            return self._build_cached(builder, network, config)
        finally:
            # They use one another, and the parser owns the weights: the first made goes last.
            del parser, config, network, builder

    def _make_builder(self) -> Any:
        try:
            return self._trt.Builder(self._log)
        except (RuntimeError, TypeError) as error:
            lines = "\n  ".join(self._log.errors() or [str(error)])
            raise HostError(
                f"TensorRT {version(self._trt)} cannot start on {self._request.gpu.name}:\n  "
                f"{lines}\nits driver may be too old for it; run 'attn-export doctor'"
            ) from error

    def _set_types(self, network: Any) -> None:
        request = self._request
        if request.fp16_io:
            make_io_fp16(self._trt, network)
        if request.precision == "fp32":
            return
        self._pinned, unmet = pin_fp32(self._trt, network, request.keep_fp32)
        for role, names in unmet.items():
            more = f" and {len(names) - LISTED_NODES} more" if len(names) > LISTED_NODES else ""
            self.notes.append(
                f"TensorRT has no layer of these {role} nodes to keep in FP32: "
                f"{', '.join(names[:LISTED_NODES])}{more}"
            )

    def _build_cached(self, builder: Any, network: Any, config: Any) -> bytes:
        """Build with the timing cache, which is kept however the build ends."""
        request = self._request
        folder = request.options.cache
        if folder is None:
            return self._build(builder, network, config)
        cache = TimingCache(config, cache_file(folder, version(self._trt), request.gpu))
        try:
            return self._build(builder, network, config)
        finally:
            cache.save()
            self.cache_state = cache.state
            self.notes += cache.notes

    def _build(self, builder: Any, network: Any, config: Any) -> bytes:
        if can_be_followed(self._trt):
            config.progress_monitor = make_monitor(self._trt, self._progress)
        plan = self._serialize(builder, network, config)
        if plan is None and self._pinned and is_precision_conflict(self._log):
            self.notes.append(
                "no kernels obey every layer that stays FP32, so TensorRT only prefers FP32 there "
                f"({PREFER}): {self._log.errors()[-1]}"
            )
            prefer_precisions(self._trt, config, self.flags)
            plan = self._serialize(builder, network, config)
        if plan is None:
            raise no_engine(self.what, self._log, self._request.options)
        return plan

    def _serialize(self, builder: Any, network: Any, config: Any) -> bytes | None:
        if self._progress.stopped:
            raise Stopped
        try:
            plan = builder.build_serialized_network(network, config)
        except (RuntimeError, TypeError, ValueError, MemoryError) as error:
            raise no_engine(self.what, self._log, self._request.options, str(error)) from error
        if plan is not None:
            return bytes(plan)
        if self._progress.stopped:
            raise Stopped
        return None
