"""The few calls of the CUDA runtime that an engine needs: memory, streams, events, graphs.

Thin wrappers over ``cuda.bindings.runtime``, which CUDA 12.9 and 13 share. Sizes are in bytes;
what a class holds is freed by ``close``, once, and never by the garbage collector.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from attn_export.errors import HostError, MissingPackage

from .session import Array

MODULE = "cuda.bindings.runtime"
MIB = 1 << 20
LEAST_BYTES = 256


def require_cuda_runtime() -> Any:
    """The module ``cuda.bindings.runtime``.

    Raises:
        MissingPackage: if cuda-bindings is not installed.
    """
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        # Other packages fill the namespace ``cuda`` too, so a part of the name may be there.
        if error.name is None or not f"{MODULE}.".startswith(f"{error.name}."):
            raise
        raise MissingPackage("cuda.bindings", "tensorrt") from error


def call(cuda: Any, function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; its one result, or None where it has none.

    Raises:
        HostError: with the error's name, if it fails.
    """
    return _checked(cuda, function, getattr(cuda, function)(*arguments))


class _Owned:
    """Something that CUDA made, and that one of its functions frees."""

    def __init__(self, cuda: Any, raw: Any, free: str) -> None:
        self._cuda = cuda
        self.raw = raw
        self._free = getattr(cuda, free)

    def close(self) -> None:
        """Free it; does nothing the second time."""
        if self.raw is not None:
            raw, self.raw = self.raw, None
            # This fails where earlier work broke the device, which that work's own call has said.
            self._free(raw)


class DeviceBuffer(_Owned):
    """Memory on the GPU.

    Args:
        what: names it in the error.

    Raises:
        HostError: if it cannot be had; the message says how many MiB were asked for.
    """

    def __init__(self, size: int, what: str) -> None:
        self.size = size
        cuda = require_cuda_runtime()
        # TensorRT does not take a null pointer, not even for nothing.
        result = cuda.cudaMalloc(max(size, LEAST_BYTES))
        self.address = _address(cuda, "cudaMalloc", result, size, f"device memory for {what}")
        super().__init__(cuda, self.address, "cudaFree")


class PinnedBuffer(_Owned):
    """Page-locked memory on the host, which the GPU copies from and to by itself.

    Raises:
        HostError: as for :class:`DeviceBuffer`.
    """

    def __init__(self, size: int, what: str) -> None:
        self.size = max(size, LEAST_BYTES)
        cuda = require_cuda_runtime()
        result = cuda.cudaHostAlloc(self.size, 0)
        what = f"page-locked host memory for {what}"
        self.address = _address(cuda, "cudaHostAlloc", result, size, what)
        super().__init__(cuda, self.address, "cudaFreeHost")

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The beginning of it as an array, without a copy; not to be used after ``close``."""
        memory = (ctypes.c_char * self.size).from_address(self.address)
        return np.ndarray(shape, dtype, memoryview(memory).cast("B"))


class Graph(_Owned):
    """Captured work that is launched at once. Made by :meth:`Stream.capture`."""

    def __init__(self, cuda: Any, graph: Any) -> None:
        super().__init__(cuda, call(cuda, "cudaGraphInstantiate", graph, 0), "cudaGraphExecDestroy")


class Event(_Owned):
    """A point in a stream's work."""

    def __init__(self) -> None:
        cuda = require_cuda_runtime()
        super().__init__(cuda, call(cuda, "cudaEventCreate"), "cudaEventDestroy")

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds of the device's clock between two events that have passed."""
        return float(call(self._cuda, "cudaEventElapsedTime", earlier.raw, self.raw))


class Stream(_Owned):
    """A queue of device work, apart from the default stream.

    Its methods are on the path of every batch.

    Attributes:
        handle: the stream as TensorRT takes it.
    """

    def __init__(self) -> None:
        cuda = require_cuda_runtime()
        raw = call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        super().__init__(cuda, raw, "cudaStreamDestroy")
        self.handle = int(raw)
        self._to_device = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def upload(self, device: int, host: int, size: int) -> None:
        """Copy from page-locked memory to the device."""
        self._check(
            "cudaMemcpyAsync",
            self._cuda.cudaMemcpyAsync(device, host, size, self._to_device, self.raw),
        )

    def download(self, host: int, device: int, size: int) -> None:
        """Copy from the device to page-locked memory."""
        self._check(
            "cudaMemcpyAsync",
            self._cuda.cudaMemcpyAsync(host, device, size, self._to_host, self.raw),
        )

    def launch(self, graph: Graph) -> None:
        """Start a graph."""
        self._check("cudaGraphLaunch", self._cuda.cudaGraphLaunch(graph.raw, self.raw))

    def record(self, event: Event) -> None:
        """Let an event pass when all work up to here is done."""
        self._check("cudaEventRecord", self._cuda.cudaEventRecord(event.raw, self.raw))

    def synchronize(self) -> None:
        """Wait until all its work is done.

        Raises:
            HostError: if any of that work failed.
        """
        self._check("cudaStreamSynchronize", self._cuda.cudaStreamSynchronize(self.raw))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` gives this stream to do, instead of doing it.

        The capture is ended in any case, so that the stream can go on.

        Raises:
            HostError: if it cannot be captured, and what ``work`` raises.
        """
        # ThreadLocal: what other threads allocate or free meanwhile does not break it.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._cuda, "cudaStreamBeginCapture", self.raw, mode)
        try:
            work()
        except BaseException:
            with contextlib.suppress(HostError):
                self._cuda.cudaGraphDestroy(call(self._cuda, "cudaStreamEndCapture", self.raw))
            raise
        graph = call(self._cuda, "cudaStreamEndCapture", self.raw)
        try:
            return Graph(self._cuda, graph)
        finally:
            self._cuda.cudaGraphDestroy(graph)

    def _check(self, function: str, result: tuple[Any, ...]) -> None:
        if result[0]:
            _checked(self._cuda, function, result)


def _address(cuda: Any, function: str, result: tuple[Any, ...], size: int, what: str) -> int:
    if result[0] == cuda.cudaError_t.cudaErrorMemoryAllocation:
        cuda.cudaGetLastError()
        raise HostError(
            f"no room for {size / MIB:.1f} MiB of {what}; use fewer streams, compile with smaller "
            "profiles (-b, -s), or free memory that other processes hold"
        )
    return int(_checked(cuda, function, result))


def _checked(cuda: Any, function: str, result: tuple[Any, ...]) -> Any:
    status = result[0]
    if status:
        # CUDA keeps the error until it is asked for; TensorRT would take it for its own.
        cuda.cudaGetLastError()
        name = cuda.cudaGetErrorName(status)[1].decode()
        text = cuda.cudaGetErrorString(status)[1].decode()
        raise HostError(f"CUDA failed in {function}: {text} ({name})")
    return result[1] if len(result) > 1 else None
