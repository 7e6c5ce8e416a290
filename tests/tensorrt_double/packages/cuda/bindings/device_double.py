"""A GPU in host memory: allocations with bounds, streams that run late, graphs that replay.

Work on a stream waits until something synchronises with it, so that a result that is read too
early is still the old one.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Work = Callable[[], "str | None"]  # returns the name of the CUDA error that it ran into
ALIGNMENT = 256  # bytes, as cudaMalloc's
POISON_UP_TO = 64 << 20  # bytes; new memory holds no zeros


@dataclass
class Allocation:
    """One piece of memory; ``kind`` is "device" or "host" (page-locked)."""

    address: int
    size: int
    kind: str
    buffer: Any


@dataclass
class Stream:
    """Queued work; ``captured`` is a list while the stream captures.

    Work on the default stream waits for that of the others, but for those that are not blocking.
    """

    blocking: bool = True
    waiting: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    capture_thread: int = 0
    capture_mode: str = ""
    capture_broken: bool = False


@dataclass
class Event:
    """When it passed, in seconds; None before."""

    timed: bool
    stream: int | None = None
    passed_s: float | None = None


class Device:
    """One GPU. All calls may come from several threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.dead: deque[Allocation] = deque(maxlen=64)  # so that a stale pointer reads 0xDD
        self.numbers = itertools.count(0x7000)
        self.reset()

    def reset(self) -> None:
        """Forget everything, and be the GPU that ``ATTN_EXPORT_DOUBLE_GPU`` describes."""
        gpu = os.environ.get("ATTN_EXPORT_DOUBLE_GPU", "Tesla T4;7.5;15109").split(";")
        self.name = gpu[0]
        self.compute_capability = tuple(map(int, gpu[1].split(".")))
        self.total_bytes = int(gpu[2]) << 20
        self.allocations: dict[int, Allocation] = {}
        self.streams: dict[int, Stream] = {0: Stream()}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.last_error = self.sticky_error = "cudaSuccess"
        self.launches = 0

    @property
    def live(self) -> list[str]:
        """What is still open, in words; empty after a clean close."""
        with self.lock:
            memory = [f"{a.kind} memory, {a.size} bytes" for a in self.allocations.values()]
            names = {
                "stream": set(self.streams) - {0},
                "event": self.events,
                "graph": self.graphs,
                "executable graph": self.executables,
            }
            return memory + [name for name, handles in names.items() for _ in handles]

    def new_handle(self) -> int:
        """A number that no other object has had."""
        return next(self.numbers) * 16

    def free_bytes(self) -> int:
        """Device memory that is left."""
        used = sum(a.size for a in self.allocations.values() if a.kind == "device")
        return self.total_bytes - used

    def allocate(self, size: int, kind: str) -> int | None:
        """The address of new memory; None where there is no room."""
        if kind == "device" and size > self.free_bytes():
            return None
        buffer = ctypes.create_string_buffer(size + ALIGNMENT)
        start = ctypes.addressof(buffer)
        address = start + -start % ALIGNMENT
        if size <= POISON_UP_TO:
            ctypes.memset(address, 0xCD, size)
        self.allocations[address] = Allocation(address, size, kind, buffer)
        return address

    def free(self, address: int, kind: str) -> bool:
        """Whether there was such memory to free; queued work is done first, as cudaFree does."""
        found = self.allocations.get(address)
        if found is None or found.kind != kind:
            return False
        self.synchronize_all()
        del self.allocations[address]
        ctypes.memset(address, 0xDD, min(found.size, POISON_UP_TO))
        self.dead.append(found)
        return True

    def find(self, address: int) -> Allocation | None:
        """The allocation that an address lies in."""
        for found in list(self.allocations.values()):
            if found.address <= address < found.address + found.size:
                return found
        return None

    def holds(self, address: int, size: int, kind: str = "device") -> bool:
        """Whether ``size`` bytes from ``address`` lie in one live allocation of this kind."""
        with self.lock:
            found = self.find(address)
            end = address + size
            return found is not None and found.kind == kind and end <= found.address + found.size

    def view(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """The bytes at an address, for a test to read or write."""
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(memoryview(memory), np.uint8)

    @property
    def runtime(self) -> Any:
        """The module ``cuda.bindings.runtime`` that works on this device."""
        return importlib.import_module("cuda.bindings.runtime")

    def has_stream(self, handle: int) -> bool:
        """Whether the stream exists."""
        return handle in self.streams

    def capturing(self, handle: int) -> bool:
        """Whether the stream captures."""
        return handle in self.streams and self.streams[handle].captured is not None

    def break_captures(self) -> bool:
        """What synchronising the device does to captures in all threads; whether there were any."""
        with self.lock:
            capturing = [stream for stream in self.streams.values() if stream.captured is not None]
            for stream in capturing:
                stream.capture_broken = True
            return bool(capturing)

    def enqueue(self, handle: int, work: Work) -> str | None:
        """Queue work, or capture it; the name of an error, or None."""
        with self.lock:
            stream = self.streams.get(handle)
            if stream is None:
                return "cudaErrorInvalidResourceHandle"
            target = stream.waiting if stream.captured is None else stream.captured
            target.append(work)
            if handle == 0:
                return self._synchronize_all(
                    [number for number, other in self.streams.items() if other.blocking]
                )
            return None

    def synchronize(self, handle: int) -> str | None:
        """Do a stream's work; the name of the first error, which then stays."""
        with self.lock:
            stream = self.streams[handle]
            if stream.captured is not None:
                stream.capture_broken = True
                return "cudaErrorStreamCaptureUnsupported"
            while stream.waiting:
                problem = stream.waiting.pop(0)()
                if problem and self.sticky_error == "cudaSuccess":
                    self.sticky_error = problem
            return None if self.sticky_error == "cudaSuccess" else self.sticky_error

    def synchronize_all(self) -> str | None:
        """Do all work that is not being captured."""
        return self._synchronize_all(list(self.streams))

    def _synchronize_all(self, handles: list[int]) -> str | None:
        problems = [self.synchronize(handle) for handle in handles if not self.capturing(handle)]
        return next(filter(None, problems), None)

    def forbids_allocation(self) -> bool:
        """Whether a capture in its mode forbids this thread to allocate or free."""
        return any(
            stream.captured is not None
            and (
                stream.capture_mode.endswith("Global")
                or (
                    stream.capture_mode.endswith("ThreadLocal")
                    and stream.capture_thread == threading.get_ident()
                )
            )
            for stream in self.streams.values()
        )

    def pass_event(self, handle: int) -> Work:
        """Work that lets an event pass."""

        def work() -> None:
            if handle in self.events:
                self.events[handle].passed_s = time.perf_counter()

        return work


DEVICE = Device()
