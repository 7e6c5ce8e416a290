"""An ONNX graph open in OpenVINO on the CPU.

Many batches are fastest with one stream (a thread of its own) for each CPU, one batch with all
threads. OpenVINO fixes both when a graph is compiled, so a session compiles the graph once for each
way it is used, at the first use.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_export.errors import HostError, InputError, UsageError
from attn_export.spec import TensorSpec

from .feeds import check_feeds
from .openvino_library import Computes, compile_graph, library, one_line, read_graph, settings
from .openvino_unpadded import is_unpadded, without_mask
from .profiles import Profile
from .session import Feeds, Goal, Outputs
from .unchanged_file import UnchangedFile

# The same as for ONNX Runtime: a batch's activations stay in the core's L2 cache.
BATCH_TOKENS = 384
# From here on a batch of one length, without its mask, gains more than a fuller one.
UNPADDED_TOKENS = 192


class OpenVinoSession:
    """An open graph; it takes batches of any shape.

    Args:
        computes: what products that are not quantized are computed in.
        skip_masks: batches without padding run on a graph that adds no mask.
        threads: CPU threads in all.
        goal: ``"throughput"``: :meth:`run_all` has one stream for each thread; ``"latency"``: it
            runs one batch after the other, each on all threads.

    Attributes:
        threads: CPU threads in all.
        streams: how many batches :meth:`run_all` runs at a time.
        unpadded_tokens: from how many tokens on a batch of one length should stay one; or None.
    """

    def __init__(
        self,
        path: Path,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        buckets: Sequence[int],
        threads: int,
        computes: Computes,
        skip_masks: bool = False,
        goal: Goal = "throughput",
    ) -> None:
        library()
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.buckets = tuple(buckets)
        self.profiles: tuple[Profile, ...] = ()
        self.batch_tokens = BATCH_TOKENS
        self.threads = threads
        self.streams = threads if goal == "throughput" else 1
        self._masks = [spec.name for spec in inputs if spec.role == "mask"] if skip_masks else []
        self.unpadded_tokens = UNPADDED_TOKENS if self._masks else None
        self._computes = computes
        self._file = UnchangedFile(path)
        self._lock = threading.Lock()
        self._graphs: dict[tuple[int, bool], _Graph] = {}
        self._closed = False

    def run(self, feeds: Feeds) -> Outputs:
        """One batch on all threads.

        Ids outside the vocabulary are refused: OpenVINO would read zeros for them.

        Raises:
            InputError: if the feeds do not fit the inputs.
            HostError: if OpenVINO fails while it runs them.
            BuildFailed: if it cannot open the graph.
            BundleError: if the graph was replaced since this session was made.
            UsageError: after :meth:`close`.
        """
        return self._start(1, feeds).finish()

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        """Many batches, ``streams`` of them at a time; results in order, few batches in flight.

        Raises:
            AttnExportError: as :meth:`run` does; the first error ends the iteration.
        """
        self._graph(self.streams, unpadded=False)  # what is wrong with it shows now
        return self._stream(batches)

    def settings(self) -> dict[str, Any]:
        """What :meth:`run_all` runs with, as OpenVINO says it.

        Raises:
            AttnExportError: as :meth:`run` does.
        """
        return settings(self._graph(self.streams, unpadded=False).compiled)

    def close(self) -> None:
        """Free the graph once the runs in flight have ended; later runs are errors."""
        with self._lock:
            self._closed = True
            self._graphs.clear()

    def _stream(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        # One more a stream than it works on, so that none waits for the caller.
        most = 2 * self.streams if self.streams > 1 else 1
        running: deque[_Running] = deque()
        try:
            for feeds in batches:
                running.append(self._start(self.streams, feeds))
                if len(running) >= most:
                    yield running.popleft().finish()
            while running:
                yield running.popleft().finish()
        finally:
            for left in running:
                left.abandon()

    def _start(self, streams: int, feeds: Feeds) -> _Running:
        with self._lock:
            self._refuse_if_closed()
        checked = check_feeds(feeds, self.inputs, buckets=self.buckets, check_ids=True)
        unpadded = bool(self._masks) and is_unpadded(checked, self._masks)
        return self._graph(streams, unpadded=unpadded).start(checked)

    def _graph(self, streams: int, *, unpadded: bool) -> _Graph:
        with self._lock:
            self._refuse_if_closed()
            key = (streams, unpadded)
            if key not in self._graphs:
                self._graphs[key] = self._opened(streams, unpadded=unpadded)
            return self._graphs[key]

    def _opened(self, streams: int, *, unpadded: bool) -> _Graph:
        model = read_graph(self._file.path())
        if unpadded:
            model = without_mask(model, self.inputs) or model
        compiled = compile_graph(
            model, computes=self._computes, streams=streams, threads=self.threads
        )
        return _Graph(compiled, [spec.name for spec in self.outputs])

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("the engine is closed; load the bundle again")


@dataclass(frozen=True, eq=False)
class _Running:
    """A batch under way. OpenVINO reads the feeds in place, so they live as long."""

    graph: _Graph
    request: Any
    feeds: Feeds

    def finish(self) -> Outputs:
        """Wait for the batch and copy its outputs, which the next batch overwrites.

        Raises:
            HostError: if OpenVINO failed on it.
        """
        try:
            self.request.wait()
            names = self.graph.outputs
            found = {name: self.request.get_tensor(name).data.copy() for name in names}
        except Exception as error:
            raise HostError(
                f"OpenVINO failed on the feeds {_shapes(self.feeds)}: {one_line(error)}"
            ) from error
        self.graph.free.append(self.request)
        return found

    def abandon(self) -> None:
        """Wait for a batch that nobody asks for any more."""
        self.request.wait()
        self.graph.free.append(self.request)


class _Graph:
    """A compiled graph and its free infer requests, each of which holds one batch at a time."""

    def __init__(self, compiled: Any, outputs: Sequence[str]) -> None:
        self.compiled = compiled
        self.outputs = outputs
        self.free: deque[Any] = deque()  # its append and pop are atomic

    def start(self, feeds: Feeds) -> _Running:
        """Hand a batch to the next free stream.

        Raises:
            InputError: if OpenVINO refuses it.
        """
        try:
            request = self.free.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        try:
            request.start_async(dict(feeds), share_inputs=True)
        except Exception as error:
            message = f"OpenVINO refused the feeds {_shapes(feeds)}: {one_line(error)}"
            raise InputError(message) from error
        return _Running(self, request, feeds)


def _shapes(feeds: Feeds) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
