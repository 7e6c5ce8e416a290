"""The most memory that a cell of the matrix needed."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

MIB = 1 << 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# proc_pid_clear_refs(5): 5 sets the peak resident size back to the current one.
RESET_PEAK = "5"


class Memory(Protocol):
    """One way to measure it.

    Attributes:
        what: what :meth:`peak_mib` is, in words.
    """

    what: str

    def reset(self) -> None:
        """Begin a cell."""

    def peak_mib(self) -> float:
        """The most since then."""

    def release(self) -> None:
        """Give back what other processes on the device may need."""


class ProcessMemory:
    """The resident size of this process: the model, the libraries, and what allocators keep.

    Freed heap goes back to the system before a cell. Without that a process that ran it before
    needs up to a fifth more, by chance: its heap is in pieces.
    """

    def __init__(self) -> None:
        self.what = (
            "the process's peak resident size while it answered one group, after smaller ones"
        )
        try:
            CLEAR.write_text(RESET_PEAK, encoding="ascii")
        except OSError:  # a kernel or a container without it
            self.what = "the process's peak resident size since its start, loading included"

    def reset(self) -> None:
        """Give freed memory back and forget the peak, where the system lets us."""
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        try:
            CLEAR.write_text(RESET_PEAK, encoding="ascii")
        except OSError:
            return

    def release(self) -> None:
        """Nothing: a heap that is given back is slow to grow again, and the CPU's is large."""

    def peak_mib(self) -> float:
        """VmHWM."""
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return 0.0


class DeviceMemory:
    """What torch's tensors took on the GPU, weights included.

    Args:
        cuda: ``torch.cuda``.
    """

    what = "the peak of all tensors on the GPU, weights included"

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def reset(self) -> None:
        """Forget the peak, and give back what earlier cells left in the allocator."""
        self.release()
        self._cuda.reset_peak_memory_stats()

    def release(self) -> None:
        """Empty the allocator's cache, as large as the largest batch needed."""
        self._cuda.empty_cache()

    def peak_mib(self) -> float:
        """Its peak in MiB."""
        return float(self._cuda.max_memory_allocated() / MIB)


class EngineMemory:
    """What an engine on a GPU asked of it: the same for all cells."""

    what = "one stream's activations, inputs and outputs on the GPU, without the weights"

    def __init__(self, peak_mib: Callable[[], float]) -> None:
        self.peak_mib = peak_mib

    def reset(self) -> None:
        """Nothing to forget."""

    def release(self) -> None:
        """Nothing is kept that it does not need."""
