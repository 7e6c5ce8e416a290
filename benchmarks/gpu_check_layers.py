"""GPU check, step layers: TensorRT's own time of each layer, by the precision it computes in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from attn_export.bundle import Bundle
from attn_export.engines.cuda_runtime import DeviceBuffer, Stream
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.inspector import Layer, read_layers
from attn_export.engines.profiles import Profile
from attn_export.engines.trt_api import require_tensorrt
from attn_export.engines.trt_buffers import TensorBuffers
from attn_export.engines.trt_engine import PlanEngine, sized
from attn_export.errors import HostError
from attn_export.manifest import EngineRecord

from .gpu_check_cases import plans
from .gpu_check_child import Answer, answer, say

RUNS = 50
WARM_UP = 5
SLOWEST = 10
UNKNOWN = "unknown"

_PROFILE = re.compile(r"\s*\[profile +\d+\]")


def work(settings: dict[str, Any]) -> Answer:
    """Profile both engines of ``bundle`` at the last bucket's optimal shape.

    Raises:
        HostError: if TensorRT reports no layer.
    """
    bundle = Bundle.open(settings["bundle"])
    rows = []
    for name, record in plans(bundle).items():
        say(name)
        profiles = [Profile.from_json(profile) for profile in record.profiles]
        index = max(range(len(profiles)), key=lambda i: profiles[i].sequence[2])
        times = _layer_times(bundle, record, profiles, index)
        if not times:
            raise HostError(f"TensorRT reported the time of no layer of {name}")
        known = _layers(bundle, record, index)
        shape = {"batch": profiles[index].batch[1], "length": profiles[index].sequence[1]}
        rows.append({"engine": name, **shape, "runs": RUNS, **summarise(times, known)})
    return {"numbers": {"engines": rows}}


def summarise(times: Mapping[str, float], layers: Sequence[Layer]) -> dict[str, Any]:
    """Shares of the time by precision, and the slowest layers.

    Args:
        times: milliseconds of one run, by layer as TensorRT's profiler names it.
        layers: as the inspector has them.
    """
    precisions = {layer.name: layer.precision or UNKNOWN for layer in layers}
    named = {_PROFILE.sub("", name): ms for name, ms in times.items()}
    total = sum(named.values())
    shares: defaultdict[str, float] = defaultdict(float)
    for name, ms in named.items():
        shares[precisions.get(name, UNKNOWN)] += ms / total
    slowest = sorted(named, key=lambda name: -named[name])[:SLOWEST]
    return {
        "total_ms": total,
        "shares": dict(sorted(shares.items(), key=lambda item: -item[1])),
        "slowest": [
            {"layer": name, "ms": named[name], "precision": precisions.get(name, UNKNOWN)}
            for name in slowest
        ],
    }


def _layers(bundle: Bundle, record: EngineRecord, profile: int) -> list[Layer]:
    """The inspector's layers of one profile; none where it lists names alone."""
    for file in record.files:
        if file.file.endswith(".inspector.json"):
            text = bundle.verify(file).read_text(encoding="utf-8")
            layers = read_layers(text) or []
            return [layer for layer in layers if layer.profile == profile]
    return []


def _layer_times(
    bundle: Bundle, record: EngineRecord, profiles: Sequence[Profile], index: int
) -> dict[str, float]:
    """Milliseconds of one run by layer, the mean of many."""
    trt = require_tensorrt()
    graph = bundle.graph(record.graph)
    inputs = [graph.typed(spec) for spec in bundle.manifest.inputs]
    outputs = [graph.typed(spec) for spec in bundle.manifest.outputs]
    plan = bundle.verify(bundle.manifest.shipped(record)).read_bytes()
    batch, length = profiles[index].batch[1], profiles[index].sequence[1]
    feeds = seeded_feeds(inputs, batch, length)
    with ExitStack() as stack:
        engine = PlanEngine(
            trt,
            plan,
            inputs=inputs,
            outputs=outputs,
            profiles=profiles,
            captures=False,
            host_code=False,
        )
        stack.callback(engine.close)
        stream = Stream()
        stack.callback(stream.close)
        memory = DeviceBuffer(engine.activation_bytes, "activations")
        stack.callback(memory.close)
        buffers = TensorBuffers((*inputs, *outputs), profiles)
        stack.callback(buffers.close)
        for spec in inputs:
            transfer = buffers.transfer(spec, batch, length)
            transfer.view[...] = feeds[spec.name]
            stream.upload(transfer.device, transfer.host, transfer.bytes)
        context = engine.new_context(index, stream, memory)
        try:
            for name, address in buffers.addresses.items():
                context.set_tensor_address(name, address)
            for spec in inputs:
                context.set_input_shape(spec.name, sized(spec, batch, length))
            return _profiled(trt, engine, context, stream)
        finally:
            del context  # before what it uses


def _profiled(trt: Any, engine: PlanEngine, context: Any, stream: Stream) -> dict[str, float]:
    for _ in range(WARM_UP):
        _execute(engine, context, stream)
    profiler = make_profiler(trt)
    context.profiler = profiler
    for _ in range(RUNS):
        _execute(engine, context, stream)
    return {name: ms / RUNS for name, ms in profiler.times.items()}


def _execute(engine: PlanEngine, context: Any, stream: Stream) -> None:
    if not context.execute_async_v3(stream.handle):
        raise engine.failure("failed while its layers were timed")
    stream.synchronize()


def make_profiler(trt: Any) -> Any:
    """An IProfiler of this TensorRT that adds up ``times`` by layer, in milliseconds."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.times: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """TensorRT's own name for it."""
            self.times[layer_name] = self.times.get(layer_name, 0.0) + ms

    return Profiler()


if __name__ == "__main__":
    answer(work)
