"""An ONNX graph open in ONNX Runtime, on a CPU or on a GPU.

On a CPU, throughput and latency want different threads. Many batches are fastest as independent
runs of one thread each, small enough to stay in that core's cache; one batch is fastest with all
threads. ONNX Runtime fixes the threads when a graph is opened, so a session opens the graph once
for each way it is used. On a GPU it is open once, and a few threads run it so that the copies of
one batch overlap with the work of another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from attn_export.errors import BuildFailed, HostError, InputError, UsageError
from attn_export.lazy import require
from attn_export.spec import TensorSpec

from .onnxruntime_providers import CPU, CPU_OPTIONS, INSTALL, library_problem, require_in_use
from .profiles import Profile
from .session import Feeds, Goal, Outputs
from .unchanged_file import UnchangedFile

# One activation of 384 tokens and 768 channels is 1.2 MB, which stays in a core's L2 cache of 2 MB.
# With 256 tokens the weights are read more often: 2 % slower, measured.
CPU_BATCH_TOKENS = 384
# The padded baseline's batch: 64 sequences of 128 tokens.
GPU_BATCH_TOKENS = 8192


class OnnxRuntimeSession:
    """An open graph. Feeds must already have the dtypes of ``inputs``.

    Args:
        goal: on a CPU, ``"throughput"``: :meth:`run_all` runs a batch on each thread;
            ``"latency"``: one after the other, each on all threads.

    Attributes:
        threads: how many batches run at a time; on a CPU also the threads of a single batch.
        streams: how many batches :meth:`run_all` runs at a time.
    """

    def __init__(
        self,
        path: Path,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        buckets: Sequence[int],
        threads: int,
        providers: Mapping[str, Mapping[str, str]] = CPU_OPTIONS,
        profiles: Sequence[Profile] = (),
        goal: Goal = "throughput",
    ) -> None:
        on_cpu = CPU in providers
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.buckets = tuple(buckets)
        self.profiles = tuple(profiles)
        self.batch_tokens = CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS
        self.threads = threads
        self.streams = 1 if on_cpu and goal == "latency" else threads
        self._threads_of_one = threads if on_cpu else 1
        self._providers = providers
        self._file = UnchangedFile(path)
        self._names = [spec.name for spec in outputs]
        self._lock = threading.Lock()
        self._opened: dict[int, Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def run(self, feeds: Feeds) -> Outputs:
        """One batch on the whole device.

        Raises:
            InputError: if ONNX Runtime refuses the feeds.
            HostError: if it fails while it runs them.
            BuildFailed: if it cannot open the graph.
            BundleError: if the graph was replaced since this session was made.
            UsageError: after :meth:`close`.
        """
        return self._run(self._graph(self._threads_of_one), feeds)

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        """Many batches, ``streams`` of them at a time; results in order, few in flight.

        Raises:
            AttnExportError: as :meth:`run` does; the first error ends the iteration.
        """
        if self.streams > 1:
            return self._stream(self._graph(1), batches)
        self._graph(self._threads_of_one)  # an error comes now, not at the first batch
        return (self.run(feeds) for feeds in batches)

    def open(self) -> None:
        """Open the graph now and not at the first run.

        Raises:
            AttnExportError: as :meth:`run` does.
        """
        self._graph(self._threads_of_one)

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
                if len(pending) >= 2 * self.streams:
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
                self._pool = ThreadPoolExecutor(self.streams, thread_name_prefix="attn-export")
            return self._pool.submit(self._run, graph, feeds)

    def _run(self, graph: Any, feeds: Feeds) -> Outputs:
        # Not through I/O binding: on the CPU run() takes and returns arrays without a copy, while a
        # binding costs some microseconds and copies the outputs. On a GPU both make the same two
        # copies, as batches come from the host and go back to it.
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
                self._opened[intra_threads] = _inference_session(
                    self._file.path(), intra_threads, self._providers
                )
            return self._opened[intra_threads]

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("the engine is closed; load the bundle again")


def _inference_session(
    path: Path, intra_threads: int, providers: Mapping[str, Mapping[str, str]]
) -> Any:
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # its errors arrive as exceptions; do not print them as well
    # Idle threads must not take the CPU from whatever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The layout pass for convolutions crashes the process on some FP16 graphs (1.31: a fused
    # product with a transposed operand), and attention has no use for it. The CPU's
    # SkipLayerNormalization kernel is 8 times slower than the Add and the LayerNormalization that
    # it replaces, a tenth of a whole encoder; a GPU's kernel saves it a read and a write.
    disabled = ["NchwcTransformer", *(["SkipLayerNormFusion"] if CPU in providers else [])]
    try:
        session = ort.InferenceSession(
            path,
            options,
            providers=[(name, dict(of)) for name, of in providers.items()],
            disabled_optimizers=disabled,
            enable_fallback=0,  # else it prints, and goes on without the provider that failed
        )
    except Exception as error:
        problem = None if CPU in providers else library_problem(next(iter(providers)))
        failure = f"ONNX Runtime {ort.__version__} cannot open {path}"
        if problem:
            raise HostError(f"{failure}: {problem}; {INSTALL}") from error
        raise BuildFailed(f"{failure}: {error}") from error
    require_in_use(providers, session.get_providers())
    return session
