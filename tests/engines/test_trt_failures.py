"""What a failed build says, from lines that TensorRT has written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from attn_export.engines.session import CompileOptions
from attn_export.engines.trt_api import BuildLog
from attn_export.engines.trt_failures import is_precision_conflict, no_engine
from attn_export.errors import BuildFailed, HostError

# Lines of 8.2 to 10, as users posted them (github.com/NVIDIA/TensorRT: 2035, 3566).
NO_KERNEL = (
    "10: [optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error (Could not find any "
    "implementation for node {ForeignNode[onnx::Gather_72...ScatterND_170]}.)"
)
NOT_ALLOCATED = "Requested amount of GPU memory (57662592 bytes) could not be allocated."
OUT_OF_MEMORY = "2: [virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory"
CACHE = "4: The timing cache will not be used!"


def a_log(*errors: str, warnings: tuple[str, ...] = ()) -> BuildLog:
    log = BuildLog(None)
    for text in warnings:
        log.log(SimpleNamespace(name="WARNING"), text)
    for text in errors:
        log.log(SimpleNamespace(name="ERROR"), text)
    return log


@pytest.mark.parametrize(
    "log",
    [
        a_log(OUT_OF_MEMORY),
        a_log("1: [defaultAllocator.cpp] Error Code 1: Cuda Runtime (out of memory)"),
        a_log("CUDA error cudaErrorMemoryAllocation"),
        a_log(NO_KERNEL, warnings=(NOT_ALLOCATED,)),
    ],
)
def test_too_little_gpu_memory_is_the_hosts_fault(log: BuildLog) -> None:
    error = no_engine("building fp16", log, CompileOptions())
    assert isinstance(error, HostError)
    assert log.errors()[0] in str(error)
    assert "lower --workspace or the profiles' batch (-b), or free the GPU" in str(error)


def test_a_failed_allocation_in_an_exceptions_text_counts_too() -> None:
    error = no_engine("building", a_log(), CompileOptions(), "cudaErrorMemoryAllocation: 2")
    assert isinstance(error, HostError)


def test_an_allocation_that_only_cost_a_tactic_is_not_the_reason() -> None:
    log = a_log("Error Code 4: Network has no output", warnings=(NOT_ALLOCATED,))
    error = no_engine("building fp16", log, CompileOptions())
    assert isinstance(error, BuildFailed)
    assert str(error) == "building fp16 failed:\n  Error Code 4: Network has no output"


@pytest.mark.parametrize(("workspace", "advised"), [(64, True), (None, False)])
def test_a_missing_kernel_with_a_bounded_workspace_names_it(
    workspace: int | None, advised: bool
) -> None:
    error = no_engine("building", a_log(NO_KERNEL), CompileOptions(workspace_mib=workspace))
    assert isinstance(error, BuildFailed)
    assert NO_KERNEL in str(error)
    assert ("--workspace 64 may be too little" in str(error)) == advised


def test_silence_is_said_to_be_silence() -> None:
    assert "TensorRT gave no reason" in str(no_engine("building", a_log(), CompileOptions()))


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((NO_KERNEL,), True),
        (("No implementation of layer 417 obeys the requested constraints in strict mode.",), True),
        ((NO_KERNEL, OUT_OF_MEMORY), False),
        (("Error Code 4: Network has no output",), False),
        ((CACHE,), False),
        ((), False),
    ],
)
def test_a_conflict_of_precisions_is_told_from_other_failures(
    errors: tuple[str, ...], expected: bool
) -> None:
    assert is_precision_conflict(a_log(*errors)) is expected
