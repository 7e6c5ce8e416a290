"""One stream of a TensorRT engine: its memory, its execution contexts, its CUDA graphs.

A lane works on one batch at a time and may be used by one thread at a time.

A captured graph holds the shape, the addresses and inner state of the execution context, which the
next set_input_shape changes. So a graph has a context of its own, kept as long as the graph, and
all contexts of a lane share one activation buffer, since only one of them runs at a time (the
TensorRT developer guide on CUDA graphs: "use one execution context per captured graph, and share
memory across the contexts", quoted by NVIDIA in github.com/NVIDIA/TensorRT, number 3798). A context
must have run once at its shape before a capture, which flushes what set_input_shape put off.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from attn_export.errors import BundleError, HostError, InputError
from attn_export.spec import TensorSpec

from .cuda_runtime import DeviceBuffer, Event, Graph, Stream
from .profiles import Profile
from .session import Feeds, Outputs
from .trt_buffers import TensorBuffers, Transfer
from .trt_engine import PlanEngine, sized

# Shapes that a lane remembers. Each may hold a graph and an execution context, which have no
# activation memory of their own; an encoder of 12 layers needs a few MiB for them.
MAX_SHAPES = 64

log = logging.getLogger("attn_export")


class Shape(NamedTuple):
    """The shape of one batch, and the optimization profile that takes it."""

    batch: int
    length: int
    profile: int


@dataclass
class _Prepared:
    """What a lane remembers of a shape.

    Args:
        ran: it ran here before.
        context: the context of its graph; it must live as long as the graph.
    """

    shape: Shape
    inputs: list[Transfer]
    outputs: list[Transfer]
    ran: bool = False
    context: Any = None
    graph: Graph | None = None


class Lane:
    """Runs batches on one stream: :meth:`start`, then :meth:`finish`.

    Attributes:
        broken: CUDA failed so that the stream cannot go on.

    Raises:
        HostError: if there is no room for its memory.
    """

    def __init__(
        self,
        engine: PlanEngine,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        profiles: Sequence[Profile],
    ) -> None:
        self.broken = False
        self._engine = engine
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._prepared: OrderedDict[Shape, _Prepared] = OrderedDict()
        self._running: _Prepared | None = None
        # The shape that each profile's context is set to.
        self._set: dict[int, Shape] = {}
        with contextlib.ExitStack() as undo:
            self._stream = Stream()
            undo.callback(self._stream.close)
            self._begin, self._end = Event(), Event()
            undo.callback(self._begin.close)
            undo.callback(self._end.close)
            self._activations = DeviceBuffer(engine.activation_bytes, "activations")
            undo.callback(self._activations.close)
            self._buffers = TensorBuffers((*inputs, *outputs), profiles)
            undo.callback(self._buffers.close)
            self._contexts = [self._context(index) for index in range(len(profiles))]
            self._free = undo.pop_all()

    @property
    def device_bytes(self) -> int:
        """Device memory of this lane: activations, inputs and outputs."""
        return self._activations.size + self._buffers.device_bytes

    @property
    def graphs(self) -> int:
        """How many CUDA graphs it holds."""
        return sum(prepared.graph is not None for prepared in self._prepared.values())

    def start(self, feeds: Feeds, shape: Shape, *, timed: bool = False) -> None:
        """Copy the feeds in and start a batch; the feeds may change as soon as this returns.

        Raises:
            InputError: if the feeds are not of the shape and the dtypes of the inputs.
            HostError: if CUDA or TensorRT fails.
        """
        try:
            prepared = self._prepared.get(shape) or self._prepare(shape)
            self._prepared.move_to_end(shape)
            _copy_in(feeds, prepared.inputs)
            if timed:
                self._stream.record(self._begin)
            if prepared.graph is not None:
                self._stream.launch(prepared.graph)
            else:
                self._enqueue(prepared, self._context_for(prepared))
            if timed:
                self._stream.record(self._end)
        except HostError:
            self._drain()
            raise
        self._running = prepared

    def finish(self) -> Outputs:
        """Wait for the batch that was started; its outputs, in arrays of their own.

        Raises:
            HostError: if it failed.
        """
        prepared, self._running = self._running, None
        assert prepared is not None
        try:
            self._stream.synchronize()
        except HostError:
            self.broken = True
            raise
        outputs: Outputs = {transfer.name: transfer.view.copy() for transfer in prepared.outputs}
        if prepared.graph is None:
            prepared.ran = True
            if prepared.context is not None:
                self._capture(prepared)
        return outputs

    def elapsed_ms(self) -> float:
        """Device milliseconds of the last batch, copies included, if it was started as timed."""
        return self._end.ms_since(self._begin)

    def inspector_json(self, shape: Shape) -> str | None:
        """What TensorRT says of the layers at one shape, if it can."""
        return self._engine.inspector_json(self._shared_context(shape))

    def close(self) -> None:
        """Free it: graphs and contexts before what they use."""
        self._drain()
        for prepared in self._prepared.values():
            _release(prepared)
        self._prepared.clear()
        self._contexts.clear()
        self._free.close()

    def _prepare(self, shape: Shape) -> _Prepared:
        if len(self._prepared) >= MAX_SHAPES:
            _release(self._prepared.popitem(last=False)[1])
        sizes = shape.batch, shape.length
        prepared = _Prepared(
            shape=shape,
            inputs=[self._buffers.transfer(spec, *sizes) for spec in self._inputs],
            outputs=[self._buffers.transfer(spec, *sizes) for spec in self._outputs],
        )
        self._prepared[shape] = prepared
        return prepared

    def _context(self, profile: int) -> Any:
        """A context of one profile, bound to this lane's buffers."""
        with self._engine.setting_up:
            context = self._engine.new_context(profile, self._stream, self._activations)
        for name, address in self._buffers.addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._engine.failure(f"did not take an address for {name}")
        return context

    def _context_for(self, prepared: _Prepared) -> Any:
        """The context that runs a shape without a graph: the second time, the graph's own one."""
        shape = prepared.shape
        prepared.context = None
        if prepared.ran and self._engine.captures:
            try:
                context = self._context(shape.profile)
                self._set_shape(context, shape)
            except HostError as error:
                self._stop_captures(error)
            else:
                prepared.context = context
                return context
        return self._shared_context(shape)

    def _shared_context(self, shape: Shape) -> Any:
        """The context of a profile, set to a shape."""
        context = self._contexts[shape.profile]
        if self._set.get(shape.profile) != shape:
            self._set.pop(shape.profile, None)
            self._set_shape(context, shape)
            self._set[shape.profile] = shape
        return context

    def _set_shape(self, context: Any, shape: Shape) -> None:
        for spec in self._inputs:
            wanted = sized(spec, shape.batch, shape.length)
            if not context.set_input_shape(spec.name, wanted):
                raise self._engine.failure(f"did not take {spec.name} of shape {list(wanted)}")
        for spec in self._outputs:
            wanted = sized(spec, shape.batch, shape.length)
            found = tuple(context.get_tensor_shape(spec.name))
            if found != wanted:
                raise BundleError(
                    f"the plan gives {spec.name} as {list(found)} where the manifest says "
                    f"{list(wanted)}: they are not of one build; run 'attn-export compile DIR' here"
                )

    def _enqueue(self, prepared: _Prepared, context: Any) -> None:
        stream = self._stream
        for transfer in prepared.inputs:
            stream.upload(transfer.device, transfer.host, transfer.bytes)
        if not context.execute_async_v3(stream.handle):
            sizes = f"a batch of {prepared.shape.batch} with {prepared.shape.length} tokens"
            raise self._engine.failure(f"failed on {sizes}")
        for transfer in prepared.outputs:
            stream.download(transfer.host, transfer.device, transfer.bytes)

    def _capture(self, prepared: _Prepared) -> None:
        try:
            with self._engine.setting_up:
                prepared.graph = self._stream.capture(
                    lambda: self._enqueue(prepared, prepared.context)
                )
        except HostError as error:
            prepared.context = None
            self._stop_captures(error)
            self._drain()

    def _stop_captures(self, error: HostError) -> None:
        self._engine.captures = False
        log.warning("this engine goes on without new CUDA graphs: %s", error)

    def _drain(self) -> None:
        """Wait for what was started before a failure; a stream that cannot is broken."""
        try:
            self._stream.synchronize()
        except HostError:
            self.broken = True


def _release(prepared: _Prepared) -> None:
    if prepared.graph is not None:
        prepared.graph.close()
    prepared.graph = prepared.context = None


def _copy_in(feeds: Feeds, inputs: list[Transfer]) -> None:
    for transfer in inputs:
        array, view = feeds.get(transfer.name), transfer.view
        if array is None or array.shape != view.shape or array.dtype != view.dtype:
            found = "missing" if array is None else f"{array.dtype} of shape {list(array.shape)}"
            raise InputError(
                f"{transfer.name} is {found}; the engine takes {view.dtype} of shape "
                f"{list(view.shape)} in this batch"
            )
        view[...] = array
