"""A TensorRT plan as a session: batches on a few streams of one GPU, through CUDA graphs."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from attn_export.errors import AttnExportError, InputError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .cuda_runtime import require_cuda_runtime
from .feeds import seeded_feeds
from .profiles import Profile, largest_batches, profile_edges, profile_of
from .session import Feeds, LoadOptions, Outputs
from .trt_api import require_tensorrt
from .trt_engine import PlanEngine
from .trt_lane import Lane, Shape
from .trt_lanes import Flight, LanePool
from .trt_lean import require_lean

# 64 sequences of 128 tokens, the padded batch that others are compared with. A T4's FP16 encoders
# are no faster per token above 512 tokens, so a larger batch would only cost memory.
BATCH_TOKENS = 8192


def open_plan(
    plan: bytes,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    profiles: Sequence[Profile],
    options: LoadOptions,
    lean: bool = False,
    host_code: bool = False,
) -> TensorRTSession:
    """Load a plan onto the GPU and run it once, so that the first batch is as fast as the others.

    The driver must have been probed: TensorRT may crash the process where there is no GPU.

    Args:
        lean: run it with TensorRT's lean runtime, which takes version-compatible plans only.
        host_code: run the code that a version-compatible plan may carry.

    Raises:
        BundleError: if TensorRT refuses the plan, or its tensors or profiles are not as given.
        HostError: if it does not fit into the GPU's memory, or its first run fails.
        MissingPackage: if TensorRT or cuda-bindings is not installed.
        UsageError: if there are fewer than one stream.
    """
    if options.streams < 1:
        raise UsageError(f"streams is {options.streams}; it must be at least 1")
    trt = require_lean() if lean else require_tensorrt()
    require_cuda_runtime()
    engine = PlanEngine(
        trt,
        plan,
        inputs=inputs,
        outputs=outputs,
        profiles=profiles,
        captures=options.cuda_graphs,
        host_code=host_code,
    )
    pool = LanePool(
        lambda: Lane(engine, inputs=inputs, outputs=outputs, profiles=profiles),
        limit=options.streams,
        wait_s=options.wait_s,
        free=engine.close,
    )
    try:
        return TensorRTSession(pool, inputs=inputs, outputs=outputs, profiles=profiles)
    except BaseException:
        pool.close()
        raise


class TensorRTSession:
    """A plan on the GPU. Feeds must already have the dtypes of ``inputs``.

    Attributes:
        batch_tokens: tokens (padding included) of one batch of :meth:`run_all`, as far as the
            profiles go.
        device_bytes: device memory of one stream: activations, inputs and outputs.
    """

    def __init__(
        self,
        pool: LanePool,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        profiles: Sequence[Profile],
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.profiles = tuple(profiles)
        self.buckets = profile_edges(profiles)
        largest = zip(self.buckets, largest_batches(profiles), strict=True)
        self.batch_tokens = min(BATCH_TOKENS, max(edge * batch for edge, batch in largest))
        self._pool = pool
        self._batch_axis = _find_axis(inputs, BATCH)
        self._length_axis = _find_axis(inputs, SEQUENCE)
        self._smallest = _smallest_shape(profiles)
        lane = pool.take()
        try:
            self.device_bytes = lane.device_bytes
            lane.start(
                seeded_feeds(self.inputs, self._smallest.batch, self._smallest.length),
                self._smallest,
            )
            lane.finish()
        finally:
            pool.give(lane)
        # Also at the interpreter's exit, before the modules that TensorRT's objects need are gone.
        self._free = weakref.finalize(self, pool.close)

    def run(self, feeds: Feeds) -> Outputs:
        """One batch.

        Raises:
            InputError: if no profile takes its shape, or the feeds do not fit the inputs.
            HostError: if all streams stay busy for too long, or CUDA or TensorRT fails.
            UsageError: after :meth:`close`.
        """
        shape = self._shape(feeds)
        lane = self._pool.take()
        try:
            lane.start(feeds, shape)
            return lane.finish()
        finally:
            self._pool.give(lane)

    def run_timed(self, feeds: Feeds) -> tuple[Outputs, float]:
        """One batch, and the milliseconds of device time from its first copy to its last.

        Raises:
            AttnExportError: as :meth:`run` does.
        """
        shape = self._shape(feeds)
        lane = self._pool.take()
        try:
            lane.start(feeds, shape, timed=True)
            return lane.finish(), lane.elapsed_ms()
        finally:
            self._pool.give(lane)

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        """Many batches, one on each stream at a time; results in order.

        Raises:
            AttnExportError: as :meth:`run` does; the first error ends the iteration.
        """
        self._pool.refuse_if_closed()
        return self._stream(batches)

    def inspector_json(self) -> str | None:
        """What TensorRT says of its layers, as JSON in its version's schema.

        None from the lean runtime, which has no inspector.

        Raises:
            UsageError: after :meth:`close`.
        """
        lane = self._pool.take()
        try:
            return lane.inspector_json(self._smallest)
        finally:
            self._pool.give(lane)

    def close(self) -> None:
        """Free the engine once the runs in flight have ended; later runs are errors."""
        self._free()

    def _stream(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        # Where the caller stops early, those left are finished by whoever needs their lanes.
        flights: deque[Flight] = deque()
        failed: AttnExportError | None = None
        for feeds in batches:
            # The next batch was made while the device worked on those in flight; start it before
            # the caller gets to work on an older one's outputs.
            done = flights.popleft().outputs() if len(flights) >= self._pool.limit else None
            try:
                flights.append(self._pool.launch(feeds, self._shape(feeds)))
            except AttnExportError as error:
                failed = error
            if done is not None:
                yield done
            if failed:
                break
        while flights:
            yield flights.popleft().outputs()
        if failed:
            raise failed

    def _shape(self, feeds: Feeds) -> Shape:
        try:
            batch = _size(feeds, self._batch_axis)
            length = _size(feeds, self._length_axis)
        except (KeyError, IndexError) as error:
            names = ", ".join(spec.name for spec in self.inputs)
            found = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(f"the feeds are {found}; the engine takes {names}") from error
        return Shape(batch, length, profile_of(self.profiles, batch, length))


def _find_axis(inputs: Sequence[TensorSpec], name: str) -> tuple[str, int] | None:
    """An input that has this axis, and where; None where no input has it."""
    for spec in inputs:
        axis = spec.axis(name)
        if axis is not None:
            return spec.name, axis
    return None


def _size(feeds: Feeds, axis: tuple[str, int] | None) -> int:
    return feeds[axis[0]].shape[axis[1]] if axis else 1


def _smallest_shape(profiles: Sequence[Profile]) -> Shape:
    shapes = [
        Shape(profile.batch[0], profile.sequence[0], index)
        for index, profile in enumerate(profiles)
    ]
    return min(shapes, key=lambda shape: shape.batch * shape.length)
