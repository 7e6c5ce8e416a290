"""The CUDA runtime's functions on the device in host memory.

Each takes the real function's arguments and returns the name of an error, then its results.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from .device_double import DEVICE, Event, Stream

Result = tuple[Any, ...]
OK = "cudaSuccess"
INVALID = "cudaErrorInvalidValue"
HANDLE = "cudaErrorInvalidResourceHandle"
CAPTURE = "cudaErrorStreamCaptureUnsupported"
DISABLE_TIMING = 2  # cudaEventDisableTiming
NON_BLOCKING = 1  # cudaStreamNonBlocking
SIDES = {
    "cudaMemcpyHostToHost": ("host", "host"),
    "cudaMemcpyHostToDevice": ("device", "host"),
    "cudaMemcpyDeviceToHost": ("host", "device"),
    "cudaMemcpyDeviceToDevice": ("device", "device"),
}


def _allocate(size: int, kind: str) -> Result:
    if DEVICE.forbids_allocation():
        return (CAPTURE,)
    address = DEVICE.allocate(size, kind)
    return ("cudaErrorMemoryAllocation",) if address is None else (OK, address)


def _free(address: int, kind: str) -> Result:
    if address == 0:
        return (OK,)
    if DEVICE.forbids_allocation():
        return (CAPTURE,)
    return (OK if DEVICE.free(int(address), kind) else INVALID,)


def cudaMalloc(size: int) -> Result:
    return _allocate(size, "device")


def cudaFree(address: int) -> Result:
    return _free(address, "device")


def cudaMallocHost(size: int) -> Result:
    return _allocate(size, "host")


def cudaHostAlloc(size: int, flags: int) -> Result:
    return _allocate(size, "host")


def cudaFreeHost(address: int) -> Result:
    return _free(address, "host")


def cudaMemGetInfo() -> Result:
    return OK, DEVICE.free_bytes(), DEVICE.total_bytes


def _reaches(address: int, size: int, side: str) -> bool:
    """Whether a copy may touch these bytes. Memory that CUDA does not know is taken as pageable."""
    if side == "device" or DEVICE.find(address):
        return DEVICE.holds(address, size, side)
    return address != 0


def cudaMemcpyAsync(dst: int, src: int, count: int, kind: Any, stream: Any) -> Result:
    handle = int(stream)
    if not DEVICE.has_stream(handle):
        return (HANDLE,)
    sides = SIDES.get(kind.name)
    if sides is None:
        return ("cudaErrorInvalidMemcpyDirection",)

    def allowed() -> bool:
        return _reaches(dst, count, sides[0]) and _reaches(src, count, sides[1])

    if not allowed():
        return (INVALID,)
    # Pageable memory is read before the call returns, page-locked memory when the copy runs.
    pageable = sides[1] == "host" and DEVICE.find(src) is None
    staged = ctypes.string_at(src, count) if pageable else None

    def copy() -> str | None:
        if not allowed():
            return "cudaErrorIllegalAddress"
        ctypes.memmove(dst, src if staged is None else staged, count)
        return None

    problem = DEVICE.enqueue(handle, copy)
    if sides[0] == "host" and DEVICE.find(dst) is None and not DEVICE.capturing(handle):
        problem = problem or DEVICE.synchronize(handle)  # a copy to pageable memory waits
    return (problem or OK,)


def cudaMemcpy(dst: int, src: int, count: int, kind: Any) -> Result:
    return cudaMemcpyAsync(dst, src, count, kind, 0)


def cudaMemsetAsync(address: int, value: int, count: int, stream: Any) -> Result:
    if not DEVICE.holds(address, count):
        return (INVALID,)

    def fill() -> str | None:
        if not DEVICE.holds(address, count):
            return "cudaErrorIllegalAddress"
        ctypes.memset(address, value, count)
        return None

    return (DEVICE.enqueue(int(stream), fill) or OK,)


def cudaStreamCreateWithFlags(flags: int) -> Result:
    handle = DEVICE.new_handle()
    DEVICE.streams[handle] = Stream(blocking=not flags & NON_BLOCKING)
    return OK, handle


def cudaStreamCreate() -> Result:
    return cudaStreamCreateWithFlags(0)


def cudaStreamDestroy(stream: Any) -> Result:
    handle = int(stream)
    if handle == 0 or not DEVICE.has_stream(handle):
        return (HANDLE,)
    if not DEVICE.capturing(handle):
        DEVICE.synchronize(handle)
    del DEVICE.streams[handle]
    return (OK,)


def cudaStreamSynchronize(stream: Any) -> Result:
    if not DEVICE.has_stream(int(stream)):
        return (HANDLE,)
    return (DEVICE.synchronize(int(stream)) or OK,)


def cudaStreamQuery(stream: Any) -> Result:
    """Not ready the first time that there is work, which is then done."""
    if not DEVICE.has_stream(int(stream)):
        return (HANDLE,)
    busy = bool(DEVICE.streams[int(stream)].waiting)
    problem = DEVICE.synchronize(int(stream))
    return (problem or ("cudaErrorNotReady" if busy else OK),)


def cudaStreamWaitEvent(stream: Any, event: Any, flags: int) -> Result:
    found = DEVICE.events.get(int(event))
    if found is None:
        return (HANDLE,)

    def wait() -> str | None:
        late = found.passed_s is None and found.stream is not None
        return DEVICE.synchronize(found.stream) if late and found.stream is not None else None

    return (DEVICE.enqueue(int(stream), wait) or OK,)


def cudaDeviceSynchronize() -> Result:
    return (DEVICE.synchronize_all() or OK,)


def cudaEventCreateWithFlags(flags: int) -> Result:
    handle = DEVICE.new_handle()
    DEVICE.events[handle] = Event(timed=not flags & DISABLE_TIMING)
    return OK, handle


def cudaEventCreate() -> Result:
    return cudaEventCreateWithFlags(0)


def cudaEventDestroy(event: Any) -> Result:
    return (HANDLE if DEVICE.events.pop(int(event), None) is None else OK,)


def cudaEventRecord(event: Any, stream: Any) -> Result:
    found = DEVICE.events.get(int(event))
    if found is None:
        return (HANDLE,)
    found.stream, found.passed_s = int(stream), None
    return (DEVICE.enqueue(int(stream), DEVICE.pass_event(int(event))) or OK,)


def cudaEventSynchronize(event: Any) -> Result:
    found = DEVICE.events.get(int(event))
    if found is None:
        return (HANDLE,)
    if found.stream is None or found.passed_s is not None:
        return (OK,)
    return cudaStreamSynchronize(found.stream)


def cudaEventQuery(event: Any) -> Result:
    found = DEVICE.events.get(int(event))
    if found is None:
        return (HANDLE,)
    if found.stream is None or found.passed_s is not None:
        return (OK,)
    return (DEVICE.synchronize(found.stream) or "cudaErrorNotReady",)


def cudaEventElapsedTime(start: Any, end: Any) -> Result:
    first, last = DEVICE.events.get(int(start)), DEVICE.events.get(int(end))
    for event in (first, last):
        if event is None or not event.timed or event.stream is None:
            return (HANDLE,)
        if event.passed_s is None:
            return ("cudaErrorNotReady",)
    return OK, (last.passed_s - first.passed_s) * 1000  # type: ignore[operator, union-attr]


def cudaStreamBeginCapture(stream: Any, mode: Any) -> Result:
    found = DEVICE.streams.get(int(stream))
    if found is None or int(stream) == 0:
        return (CAPTURE,)
    if found.captured is not None:
        return ("cudaErrorIllegalState",)
    found.captured, found.capture_broken = [], False
    found.capture_mode, found.capture_thread = mode.name, threading.get_ident()
    return (OK,)


def cudaStreamIsCapturing(stream: Any) -> Result:
    name = "Active" if DEVICE.capturing(int(stream)) else "None"
    return OK, f"cudaStreamCaptureStatus{name}"


def cudaStreamEndCapture(stream: Any) -> Result:
    found = DEVICE.streams.get(int(stream))
    if found is None or found.captured is None:
        return ("cudaErrorIllegalState",)
    if found.capture_thread != threading.get_ident() and "Relaxed" not in found.capture_mode:
        return ("cudaErrorStreamCaptureWrongThread",)
    work, found.captured = found.captured, None
    if found.capture_broken:
        return ("cudaErrorStreamCaptureInvalidated",)
    handle = DEVICE.new_handle()
    DEVICE.graphs[handle] = work
    return OK, handle


def cudaGraphInstantiate(graph: Any, flags: int) -> Result:
    work = DEVICE.graphs.get(int(graph))
    if work is None:
        return (INVALID,)
    handle = DEVICE.new_handle()
    DEVICE.executables[handle] = list(work)
    return OK, handle


def cudaGraphLaunch(graph: Any, stream: Any) -> Result:
    work = DEVICE.executables.get(int(graph))
    if work is None or not DEVICE.has_stream(int(stream)):
        return (INVALID,)
    DEVICE.launches += 1
    problems = [DEVICE.enqueue(int(stream), item) for item in work]
    return (next(filter(None, problems), OK),)


def cudaGraphUpload(graph: Any, stream: Any) -> Result:
    return (OK if int(graph) in DEVICE.executables else INVALID,)


def cudaGraphDestroy(graph: Any) -> Result:
    return (INVALID if DEVICE.graphs.pop(int(graph), None) is None else OK,)


def cudaGraphExecDestroy(graph: Any) -> Result:
    return (INVALID if DEVICE.executables.pop(int(graph), None) is None else OK,)


def cudaGetDeviceCount() -> Result:
    return OK, 1


def cudaGetDevice() -> Result:
    return OK, 0


def cudaSetDevice(device: int) -> Result:
    return (OK if device == 0 else "cudaErrorInvalidDevice",)


def cudaDriverGetVersion() -> Result:
    return OK, 12080


def cudaRuntimeGetVersion() -> Result:
    return OK, 12090


def cudaGetLastError() -> Result:
    found, DEVICE.last_error = DEVICE.last_error, DEVICE.sticky_error
    return (found,)


def cudaPeekAtLastError() -> Result:
    return (DEVICE.last_error,)
