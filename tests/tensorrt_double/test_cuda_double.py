"""The double of the CUDA runtime keeps bounds, order and handles."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attn_export.engines import cuda_driver, targets
from attn_export.engines.cuda_driver import Cuda, Gpu


@pytest.fixture
def cuda(cuda_double: Any) -> Any:
    """The module that stands for ``cuda.bindings.runtime``."""
    return cuda_double.runtime


@pytest.fixture
def stream(cuda: Any) -> Any:
    return made(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))


def made(result: tuple[Any, ...]) -> Any:
    """The one value of a call that went well."""
    status, value = result
    assert not status, status
    return value


def status_of(result: tuple[Any, ...]) -> str:
    return str(result[0].name)


class Copy:
    """Copies on the stream; gives the name of the status."""

    def __init__(self, cuda: Any, stream: Any) -> None:
        self.cuda, self.stream = cuda, stream

    def __call__(self, target: int, source: int, size: int, kind: str) -> str:
        direction = getattr(self.cuda.cudaMemcpyKind, f"cudaMemcpy{kind}")
        result = self.cuda.cudaMemcpyAsync(target, source, size, direction, self.stream)
        return status_of(result)


@pytest.fixture
def copy(cuda: Any, stream: Any) -> Copy:
    return Copy(cuda, stream)


def test_bytes_go_to_the_device_and_back_when_waited_for(
    cuda: Any, cuda_double: Any, stream: Any, copy: Copy
) -> None:
    device, host = made(cuda.cudaMalloc(64)), made(cuda.cudaHostAlloc(64, 0))
    view = cuda_double.view(host, 64)
    view[...] = np.arange(64)
    assert copy(device, host, 64, "HostToDevice") == "cudaSuccess"
    view_after = made(cuda.cudaHostAlloc(64, 0))
    assert copy(view_after, device, 64, "DeviceToHost") == "cudaSuccess"
    assert set(cuda_double.view(view_after, 64)) == {0xCD}  # new memory, not yet written
    assert status_of(cuda.cudaStreamQuery(stream)) == "cudaErrorNotReady"
    assert status_of(cuda.cudaStreamQuery(stream)) == "cudaSuccess"
    np.testing.assert_array_equal(cuda_double.view(view_after, 64), np.arange(64))


@pytest.mark.parametrize(
    ("sides", "size", "kind"),
    [
        (("device", "host"), 65, "HostToDevice"),
        (("device", "host"), 64, "DeviceToHost"),
        (("host", "device"), 65, "DeviceToHost"),
        (("host", "device"), 64, "HostToDevice"),
    ],
)
def test_a_copy_beyond_its_memory_or_in_the_wrong_direction_is_refused(
    cuda: Any, copy: Copy, sides: tuple[str, str], size: int, kind: str
) -> None:
    memory = {"device": made(cuda.cudaMalloc(64)), "host": made(cuda.cudaMallocHost(64))}
    found = copy(memory[sides[0]], memory[sides[1]], size, kind)
    assert found == "cudaErrorInvalidValue"
    assert status_of(cuda.cudaGetLastError()) == "cudaErrorInvalidValue"
    assert status_of(cuda.cudaGetLastError()) == "cudaSuccess"


def test_freed_memory_is_gone_and_is_freed_once(cuda: Any, cuda_double: Any, copy: Copy) -> None:
    device, host = made(cuda.cudaMalloc(64)), made(cuda.cudaMallocHost(64))
    assert status_of(cuda.cudaFree(device)) == "cudaSuccess"
    assert copy(device, host, 64, "HostToDevice") == "cudaErrorInvalidValue"
    assert status_of(cuda.cudaFree(device)) == "cudaErrorInvalidValue"
    assert status_of(cuda.cudaFree(host)) == "cudaErrorInvalidValue"
    assert status_of(cuda.cudaFreeHost(host)) == "cudaSuccess"
    assert cuda_double.live == ["stream"]


def test_a_destroyed_stream_or_event_is_an_error(cuda: Any, cuda_double: Any, stream: Any) -> None:
    event = made(cuda.cudaEventCreate())
    assert status_of(cuda.cudaEventDestroy(event)) == "cudaSuccess"
    assert status_of(cuda.cudaEventRecord(event, stream)) == "cudaErrorInvalidResourceHandle"
    assert status_of(cuda.cudaStreamDestroy(stream)) == "cudaSuccess"
    assert status_of(cuda.cudaStreamSynchronize(stream)) == "cudaErrorInvalidResourceHandle"
    assert cuda_double.live == []


def test_memory_runs_out_at_the_size_of_the_gpu(cuda: Any, cuda_double: Any) -> None:
    cuda_double.total_bytes = 1000
    first = made(cuda.cudaMalloc(600))
    assert cuda.cudaMemGetInfo()[1:] == (400, 1000)
    assert cuda.cudaMalloc(401) == (cuda.cudaError_t.cudaErrorMemoryAllocation, None)
    cuda.cudaFree(first)
    assert made(cuda.cudaMalloc(1000))


def test_events_give_the_time_between_them_when_both_have_passed(cuda: Any, stream: Any) -> None:
    start, end = made(cuda.cudaEventCreate()), made(cuda.cudaEventCreate())
    untimed = made(cuda.cudaEventCreateWithFlags(cuda.cudaEventDisableTiming))
    cuda.cudaEventRecord(start, stream)
    cuda.cudaEventRecord(end, stream)
    assert status_of(cuda.cudaEventElapsedTime(start, end)) == "cudaErrorNotReady"
    assert status_of(cuda.cudaEventSynchronize(end)) == "cudaSuccess"
    assert made(cuda.cudaEventElapsedTime(start, end)) > 0
    cuda.cudaEventRecord(untimed, stream)
    cuda.cudaStreamSynchronize(stream)
    found = status_of(cuda.cudaEventElapsedTime(start, untimed))
    assert found == "cudaErrorInvalidResourceHandle"


def test_a_graph_does_the_captured_copies_at_each_launch(
    cuda: Any, cuda_double: Any, stream: Any, copy: Copy
) -> None:
    device, host = made(cuda.cudaMalloc(4)), made(cuda.cudaMallocHost(4))
    back = made(cuda.cudaMallocHost(4))
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    assert status_of(cuda.cudaStreamBeginCapture(stream, mode)) == "cudaSuccess"
    assert status_of(cuda.cudaMalloc(4)) == "cudaErrorStreamCaptureUnsupported"
    copy(device, host, 4, "HostToDevice")
    copy(back, device, 4, "DeviceToHost")
    graph = made(cuda.cudaStreamEndCapture(stream))
    executable = made(cuda.cudaGraphInstantiate(graph, 0))
    cuda.cudaStreamSynchronize(stream)
    assert set(cuda_double.view(back, 4)) == {0xCD}  # capturing does nothing
    for value in (1, 2):
        cuda_double.view(host, 4)[...] = value
        assert status_of(cuda.cudaGraphLaunch(executable, stream)) == "cudaSuccess"
        cuda.cudaStreamSynchronize(stream)
        assert set(cuda_double.view(back, 4)) == {value}
    cuda.cudaGraphDestroy(graph)
    assert "graph" not in cuda_double.live
    assert "executable graph" in cuda_double.live
    assert status_of(cuda.cudaGraphExecDestroy(executable)) == "cudaSuccess"
    assert status_of(cuda.cudaGraphLaunch(executable, stream)) == "cudaErrorInvalidValue"


def test_waiting_breaks_a_capture(cuda: Any, stream: Any) -> None:
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
    cuda.cudaStreamBeginCapture(stream, mode)
    found = status_of(cuda.cudaStreamSynchronize(stream))
    assert found == "cudaErrorStreamCaptureUnsupported"
    found = status_of(cuda.cudaStreamEndCapture(stream))
    assert found == "cudaErrorStreamCaptureInvalidated"
    assert status_of(cuda.cudaStreamSynchronize(stream)) == "cudaSuccess"


def test_another_thread_may_allocate_during_a_thread_local_capture(cuda: Any, stream: Any) -> None:
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda.cudaStreamBeginCapture(stream, mode)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(status_of(cuda.cudaMalloc(4))))
    thread.start()
    thread.join()
    assert found == ["cudaSuccess"]
    assert status_of(cuda.cudaMalloc(4)) == "cudaErrorStreamCaptureUnsupported"


@pytest.mark.parametrize(
    "call",
    [
        lambda cuda: cuda.cudaMalloc("4"),
        lambda cuda: cuda.cudaMalloc(bytes=4),
        lambda cuda: cuda.cudaMalloc(),
        lambda cuda: cuda.cudaMemcpy(1, 2, 3, 1),
        lambda cuda: cuda.cudaStreamBeginCapture(0, 1),
    ],
)
def test_a_call_that_the_real_function_does_not_take_is_refused(
    cuda: Any, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError):
        call(cuda)


def test_names_are_those_of_the_real_module(cuda: Any) -> None:
    assert not hasattr(cuda, "cudaMadeUp")
    assert cuda.cudaGetErrorName(cuda.cudaError_t(2))[1] == b"cudaErrorMemoryAllocation"
    with pytest.raises(NotImplementedError, match="does not play cudaMallocPitch"):
        cuda.cudaMallocPitch(4, 4)


def test_device_properties_are_those_of_the_card(cuda: Any) -> None:
    found = made(cuda.cudaGetDeviceProperties(0))
    assert found.name.rstrip(b"\0") == b"Tesla T4"
    assert (found.major, found.minor) == (7, 5)
    assert found.totalGlobalMem == 15109 << 20


def test_the_drivers_probe_finds_the_card_in_this_process(cuda: Any) -> None:
    assert cuda_driver.probe().gpus[0].name == "Tesla T4"
    assert vars(targets)["probe"]().gpus[0].compute_capability == "7.5"


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (
            "Tesla T4;7.5;15109",
            Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15109),
        ),
        ("NVIDIA L4;8.9;22593", Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=22593)),
    ],
)
def test_a_child_process_sees_the_card_and_the_knobs(
    child_environment: Callable[..., dict[str, str]], gpu: str, expected: Gpu
) -> None:
    code = (
        "import tensorrt, cuda.bindings.runtime as runtime;"
        "from attn_export.engines.cuda_driver import probe;"
        "print(repr(probe()));"
        "print(tensorrt.__version__, tensorrt.double.fail_build);"
        "print(tensorrt.double.compute_capability, runtime.double.name)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=child_environment("10.16.1.11", gpu, fail_build="tactic"),
        capture_output=True,
        text=True,
        check=True,
    )
    found, versions, card = done.stdout.splitlines()
    assert found == repr(Cuda(version="12.8", gpus=(expected,), problem=None))
    assert versions == "10.16.1.11 tactic"
    assert card == f"{expected.compute_capability} {expected.name}"
