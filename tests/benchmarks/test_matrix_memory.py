"""The memory of this process, before and after it needed much."""

from __future__ import annotations

import numpy as np
import pytest

from attn_export.benchmarks.matrix_memory import (
    CLEAR,
    MIB,
    DeviceMemory,
    EngineMemory,
    ProcessMemory,
)


def test_a_cell_that_needs_less_than_the_last_one_says_less() -> None:
    memory = ProcessMemory()
    if "since its start" in memory.what:
        pytest.skip(f"{CLEAR} cannot be written here")
    peaks = []
    for mib in (300, 50):
        memory.reset()
        before = memory.peak_mib()
        np.ones(mib * MIB, np.uint8)
        peaks.append(memory.peak_mib() - before)
    assert peaks == pytest.approx([300, 50], abs=20)


def test_an_engine_on_a_gpu_says_what_its_session_says() -> None:
    memory = EngineMemory(lambda: 12.5)
    memory.reset()
    assert memory.peak_mib() == 12.5
    assert "without the weights" in memory.what


class Cuda:
    """What of ``torch.cuda`` is used; there is no GPU in most tests."""

    def __init__(self) -> None:
        self.peak, self.calls = 7 * MIB, list[str]()

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")

    def reset_peak_memory_stats(self) -> None:
        self.calls.append("reset")
        self.peak = 3 * MIB

    def max_memory_allocated(self) -> int:
        return self.peak


def test_torch_forgets_the_peak_of_the_last_cell() -> None:
    cuda = Cuda()
    memory = DeviceMemory(cuda)
    memory.reset()
    assert memory.peak_mib() == 3.0
    memory.release()
    assert cuda.calls == ["empty_cache", "reset", "empty_cache"]
