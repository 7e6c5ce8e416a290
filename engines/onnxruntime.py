"""The embedded backend: ONNX Runtime on the CPU.

Throughput and latency want different threads. Many batches are fastest as independent runs of one
thread each, small enough to stay in that core's cache; one batch is fastest with all threads. ONNX
Runtime fixes the threads when a graph is opened, so a session opens the graph once for each way it
is used.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.errors import (
    BuildFailed,
    BundleError,
    HostError,
    InputError,
    UsageError,
)
from attn_export.lazy import require
from attn_export.manifest import EngineRecord
from attn_export.spec import TensorSpec

from .feeds import seeded_feeds
from .session import Feeds, Outputs, Session

PROVIDER = "CPUExecutionProvider"
# One activation of 384 tokens and 768 channels is 1.2 MB, which stays in a core's L2 cache of 2 MB.
# With 256 tokens the weights are read more often: 2 % slower, measured.
BATCH_TOKENS = 384


def compile(bundle: Bundle, precision: str) -> EngineRecord:  # noqa: A001
    """Open a bundle's graph and run each bucket on it; no file is written.

    Each bucket is recorded with its edge (tokens), the batch size and the time of one such batch
    in ms, the best of three after a warm-up.

    Raises:
        BundleError: if the bundle has no such graph, or the graph was altered.
        BuildFailed: if ONNX Runtime cannot open or run it.
        MissingPackage: if ONNX Runtime is not installed.
    """
    session = _open_record(bundle, precision, None)
    with contextlib.closing(session):
        buckets = []
        for edge in session.buckets:
            batch = max(1, session.batch_tokens // edge)
            feeds = seeded_feeds(session.inputs, batch, edge)
            try:
                ms = min(_timed_ms(session, feeds) for _ in range(4))
            except (HostError, InputError) as error:
                raise BuildFailed(
                    f"the {precision} graph fails at batch {batch}, {edge} tokens: {error}"
                ) from error
            buckets.append({"edge": edge, "batch": batch, "ms": round(ms, 3)})
    return EngineRecord(
        backend="onnxruntime",
        precision=precision,
        graph=precision,
        environment=_environment(session.threads),
        buckets=buckets,
    )


def load(bundle: Bundle, record: EngineRecord, threads: int | None) -> Session:
    """Check an engine's graph against the manifest and make a session of it.

    Raises:
        BundleError: if the graph is missing or altered.
        UsageError: if ``threads`` is below 1 or above the CPUs this process may use.
        MissingPackage: if ONNX Runtime is not installed.
    """
    return _open_record(bundle, record.graph, threads)


def open_graph(
    path: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    buckets: Sequence[int],
    threads: int | None,
) -> OnnxRuntimeSession:
    """A session of any ONNX file, also of one that is no engine. Opened at its first run.

    Args:
        buckets: the ascending bucket edges, in tokens.
        threads: CPU threads in all, or None for each CPU that this process may use.

    Raises:
        BundleError: if the file is missing.
        UsageError: if ``threads`` is below 1 or above the CPUs this process may use.
        MissingPackage: if ONNX Runtime is not installed.
    """
    require("onnxruntime", extra="cpu")
    cpus = len(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= cpus:
        raise UsageError(
            f"threads is {threads}; this process may use {cpus} CPUs: give 1 to {cpus}"
        )
    return OnnxRuntimeSession(
        path, inputs=inputs, outputs=outputs, buckets=buckets, threads=threads or cpus
    )


class OnnxRuntimeSession:
    """A graph on the CPU. Feeds must already have the dtypes of ``inputs``.

    Attributes:
        threads: CPU threads, for one batch or for as many batches at a time.
    """

    pads_to_edge = False
    batch_tokens = BATCH_TOKENS

    def __init__(
        self,
        path: Path,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        buckets: Sequence[int],
        threads: int,
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.buckets = tuple(buckets)
        self.threads = threads
        self._path = path
        self._identity = _identity(path)
        self._names = [spec.name for spec in outputs]
        self._lock = threading.Lock()
        self._opened: dict[int, Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def run(self, feeds: Feeds) -> Outputs:
        """One batch on all threads.

        Raises:
            InputError: if ONNX Runtime refuses the feeds.
            HostError: if it fails while it runs them.
            BuildFailed: if it cannot open the graph.
            BundleError: if the graph was replaced since this session was made.
            UsageError: after :meth:`close`.
        """
        return self._run(self._graph(self.threads), feeds)

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        """Many batches, one thread each; results in order, few batches in flight.

        Raises:
            AttnExportError: as :meth:`run` does; the first error ends the iteration.
        """
        graph = self._graph(1)
        if self.threads == 1:
            return (self._run(self._graph(1), feeds) for feeds in batches)
        return self._stream(graph, batches)

    def close(self) -> None:
        """Free the graph once the runs in flight have ended; later runs are errors."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
            self._opened.clear()
        if pool:
            pool.shutdown()

    def _stream(self, graph: Any, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        pending: deque[Future[Outputs]] = deque()
        try:
            for feeds in batches:
                pending.append(self._submit(graph, feeds))
                if len(pending) >= 2 * self.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)

    def _submit(self, graph: Any, feeds: Feeds) -> Future[Outputs]:
        with self._lock:
            self._refuse_if_closed()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="attn-export")
            return self._pool.submit(self._run, graph, feeds)

    def _run(self, graph: Any, feeds: Feeds) -> Outputs:
        # Not through I/O binding: on the CPU run() takes and returns arrays without a copy, while a
        # binding costs some microseconds and copies the outputs.
        try:
            return dict(zip(self._names, graph.run(self._names, dict(feeds)), strict=True))
        except Exception as error:
            refused = require("onnxruntime.capi.onnxruntime_pybind11_state", extra="cpu")
            kind = InputError if isinstance(error, refused.InvalidArgument) else HostError
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise kind(f"ONNX Runtime failed on the feeds {shapes}: {error}") from error

    def _graph(self, intra_threads: int) -> Any:
        with self._lock:
            self._refuse_if_closed()
            if intra_threads not in self._opened:
                if _identity(self._path) != self._identity:
                    raise BundleError(
                        f"{self._path} was replaced since it was loaded; load the bundle again"
                    )
                self._opened[intra_threads] = _inference_session(self._path, intra_threads)
            return self._opened[intra_threads]

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("the engine is closed; load the bundle again")


def _open_record(bundle: Bundle, graph: str, threads: int | None) -> OnnxRuntimeSession:
    record = bundle.graph(graph)
    return open_graph(
        bundle.verify_graph(record),
        inputs=[record.typed(spec) for spec in bundle.manifest.inputs],
        outputs=[record.typed(spec) for spec in bundle.manifest.outputs],
        buckets=bundle.manifest.buckets["edges"],
        threads=threads,
    )


def _inference_session(path: Path, intra_threads: int) -> Any:
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # its errors arrive as exceptions; do not print them as well
    # Idle threads must not take the CPU from whatever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(
            path,
            options,
            providers=[PROVIDER],
            # The CPU's SkipLayerNormalization kernel is 8 times slower than the Add and the
            # LayerNormalization that it replaces, a tenth of a whole encoder. The layout pass for
            # convolutions crashes the process on some FP16 graphs (1.31: a fused product with a
            # transposed operand), and attention has no use for it.
            disabled_optimizers=["SkipLayerNormFusion", "NchwcTransformer"],
        )
    except Exception as error:
        raise BuildFailed(f"ONNX Runtime {ort.__version__} cannot open {path}: {error}") from error


def _identity(path: Path) -> tuple[int, int, int]:
    """Tells a file from the one that later takes its name."""
    try:
        stat = path.stat()
    except OSError as error:
        raise BundleError(f"{path} is missing; rebuild the bundle") from error
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _timed_ms(session: Session, feeds: Feeds) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return (time.perf_counter() - start) * 1e3


def _environment(threads: int) -> dict[str, Any]:
    return {
        "onnxruntime": require("onnxruntime", extra="cpu").__version__,
        "provider": PROVIDER,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "threads": threads,
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
