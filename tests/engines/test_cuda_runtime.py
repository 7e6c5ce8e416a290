"""The wrappers over the CUDA runtime: copies, captures, errors by name, everything freed."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attn_export.engines.cuda_runtime import (
    DeviceBuffer,
    Event,
    Graph,
    PinnedBuffer,
    Stream,
    call,
    require_cuda_runtime,
)
from attn_export.errors import HostError, MissingPackage


@pytest.fixture
def device(cuda_double: Any) -> Any:
    return cuda_double


class Copies:
    """Two page-locked buffers, and device memory between them."""

    def __init__(self, count: int) -> None:
        self.stream = Stream()
        self.source, self.target = PinnedBuffer(4 * count, "a"), PinnedBuffer(4 * count, "b")
        self.memory = DeviceBuffer(4 * count, "c")
        self.bytes = 4 * count
        self.given = self.source.view((count,), np.dtype("int32"))
        self.found = self.target.view((count,), np.dtype("int32"))
        self.given[...] = range(count)
        self.found[...] = -1

    def copy(self) -> None:
        self.stream.upload(self.memory.address, self.source.address, self.bytes)
        self.stream.download(self.target.address, self.memory.address, self.bytes)

    def close(self) -> None:
        for thing in (self.stream, self.source, self.target, self.memory):
            thing.close()


def test_copies_are_done_when_the_stream_is(device: Any) -> None:
    copies = Copies(6)
    copies.copy()
    copies.stream.synchronize()
    assert copies.found.tolist() == [0, 1, 2, 3, 4, 5]
    copies.close()
    copies.close()
    assert device.live == []


def test_a_graph_repeats_its_copies_with_new_content(device: Any) -> None:
    copies = Copies(3)
    graph = copies.stream.capture(copies.copy)
    copies.stream.synchronize()
    assert copies.found.tolist() == [-1, -1, -1]  # recorded, not done
    for content in ([7, 8, 9], [1, 2, 3]):
        copies.given[...] = content
        copies.stream.launch(graph)
        copies.stream.synchronize()
        assert copies.found.tolist() == content
    graph.close()
    graph.close()
    copies.close()
    assert device.live == []


def test_a_view_is_the_buffer_s_own_memory(device: Any) -> None:
    buffer = PinnedBuffer(24, "a")
    flat = buffer.view((6,), np.dtype("float32"))
    square = buffer.view((2, 3), np.dtype("float32"))
    flat[...] = range(6)
    assert square.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert flat.__array_interface__["data"][0] == buffer.address
    buffer.close()


def test_a_stream_goes_its_own_way_beside_the_default_stream(device: Any) -> None:
    """Blocking streams and the default stream wait for each other; TensorRT uses that one too."""
    copies = Copies(2)
    cuda = require_cuda_runtime()
    call(cuda, "cudaMemsetAsync", copies.memory.address, 0, copies.bytes, 0)
    copies.copy()
    call(cuda, "cudaMemsetAsync", copies.memory.address, 0, copies.bytes, 0)
    assert copies.found.tolist() == [-1, -1]
    copies.stream.synchronize()
    assert copies.found.tolist() == [0, 1]
    copies.close()


def test_an_error_in_captured_work_ends_the_capture(device: Any) -> None:
    stream = Stream()

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.capture(fail)
    assert not device.capturing(stream.handle)
    stream.synchronize()
    stream.close()
    assert device.live == []


def test_work_that_cannot_be_captured_is_named_and_the_stream_goes_on(device: Any) -> None:
    stream = Stream()
    with pytest.raises(HostError, match=r"cudaStreamSynchronize: .*StreamCaptureUnsupported"):
        stream.capture(stream.synchronize)
    stream.synchronize()
    assert call(require_cuda_runtime(), "cudaGetLastError") is None
    stream.close()


def test_other_threads_may_allocate_during_a_capture(device: Any) -> None:
    stream = Stream()
    made: list[DeviceBuffer] = []

    def allocate() -> None:
        made.append(DeviceBuffer(16, "b"))

    def work() -> None:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()

    graph = stream.capture(work)
    assert len(made) == 1
    graph.close()
    stream.close()
    made[0].close()
    assert device.live == []


def test_events_measure_milliseconds(device: Any) -> None:
    stream, begin, end = Stream(), Event(), Event()
    stream.record(begin)
    stream.record(end)
    stream.synchronize()
    assert 0 <= end.ms_since(begin) < 10_000
    for thing in (stream, begin, end):
        thing.close()
        thing.close()
    assert device.live == []


@pytest.mark.parametrize(
    ("size", "said"), [(5 << 20, r"no room for 5\.0 MiB"), (1 << 19, r"no room for 0\.5 MiB")]
)
def test_memory_that_is_not_there_is_said_in_mib(device: Any, size: int, said: str) -> None:
    device.total_bytes = size - 1
    with pytest.raises(HostError, match=f"{said} of device memory for activations; use fewer str"):
        DeviceBuffer(size, "activations")
    # The failure is over: TensorRT would take a kept error for its own.
    assert device.last_error == "cudaSuccess"


def test_a_failing_call_is_named_with_its_error(device: Any) -> None:
    with pytest.raises(HostError, match=r"CUDA failed in cudaSetDevice: .*cudaErrorInvalidDevice"):
        call(require_cuda_runtime(), "cudaSetDevice", 3)


@pytest.mark.parametrize(
    ("function", "do"),
    [
        ("cudaMalloc", lambda copies, graph, event: DeviceBuffer(16, "a")),
        ("cudaHostAlloc", lambda copies, graph, event: PinnedBuffer(16, "a")),
        ("cudaStreamCreateWithFlags", lambda copies, graph, event: Stream()),
        ("cudaEventCreate", lambda copies, graph, event: Event()),
        ("cudaMemcpyAsync", lambda copies, graph, event: copies.stream.upload(1, 1, 1)),
        ("cudaMemcpyAsync", lambda copies, graph, event: copies.stream.download(1, 1, 1)),
        ("cudaGraphLaunch", lambda copies, graph, event: copies.stream.launch(graph)),
        ("cudaEventRecord", lambda copies, graph, event: copies.stream.record(event)),
        ("cudaEventElapsedTime", lambda copies, graph, event: event.ms_since(event)),
        ("cudaStreamBeginCapture", lambda copies, graph, event: copies.stream.capture(copies.copy)),
        ("cudaStreamSynchronize", lambda copies, graph, event: copies.stream.synchronize()),
    ],
)
def test_whatever_fails_on_a_broken_device_is_named(
    device: Any, function: str, do: Callable[[Copies, Graph, Event], Any]
) -> None:
    copies, event = Copies(2), Event()
    graph = copies.stream.capture(copies.copy)
    device.sticky_error = "cudaErrorIllegalAddress"
    with pytest.raises(HostError, match=rf"CUDA failed in {function}: .*\(cudaErrorIllegalAddress"):
        do(copies, graph, event)
    device.reset()


def test_freeing_is_silent_after_the_device_failed(device: Any) -> None:
    buffer, stream = DeviceBuffer(16, "a"), Stream()
    device.sticky_error = "cudaErrorIllegalAddress"
    with pytest.raises(HostError, match="cudaErrorIllegalAddress"):
        stream.synchronize()
    buffer.close()
    stream.close()
    device.reset()


@pytest.mark.parametrize("absent", ["cuda", "cuda.bindings", "cuda.bindings.runtime"])
def test_a_missing_package_names_its_extra(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingPackage, match=r"cuda.bindings is not .*'attn-export\[tensorrt\]'"):
        require_cuda_runtime()


def test_a_broken_package_keeps_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        require_cuda_runtime()
