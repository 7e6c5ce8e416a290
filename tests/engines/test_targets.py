"""The table of GPUs, and what is said where the right one is not here."""

from __future__ import annotations

import pytest

from attn_export.engines.cuda_driver import Cuda, Gpu
from attn_export.engines.targets import TARGETS, find_target, require_gpu
from attn_export.errors import HostError, UsageError


def driver(name: str = "Tesla T4", capability: str = "7.5") -> Cuda:
    gpu = Gpu(name=name, compute_capability=capability, memory_mib=15109)
    return Cuda(version="12.8", gpus=(gpu,), problem=None)


@pytest.mark.parametrize(
    ("name", "capability"),
    [("t4", "7.5"), ("l4", "8.9"), ("a10", "8.6"), ("a100", "8.0"), ("h100", "9.0")],
)
def test_each_target_has_its_compute_capability(name: str, capability: str) -> None:
    assert TARGETS[name].compute_capability == capability
    assert find_target(name.upper()) is TARGETS[name]


def test_turing_has_no_bfloat16_tf32_or_fp8() -> None:
    assert TARGETS["t4"].precisions == ("fp16", "int8")


def test_an_unknown_target_is_refused_with_the_table() -> None:
    with pytest.raises(UsageError, match="unknown target 'v100'; there are: t4, l4, a10"):
        require_gpu("v100", driver())


def test_the_gpu_that_is_here_is_taken() -> None:
    assert require_gpu(None, driver()).name == "Tesla T4"
    assert require_gpu("t4", driver()).compute_capability == "7.5"


def test_another_gpu_than_the_target_is_said_with_both() -> None:
    with pytest.raises(HostError) as caught:
        require_gpu("t4", driver("NVIDIA L4", "8.9"))
    assert "the GPU here is NVIDIA L4, compute capability 8.9" in str(caught.value)
    assert "compute capability 7.5 (T4) was asked for" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "asked"), [(None, "an NVIDIA GPU"), ("t4", "of compute capability 7.5 (T4)")]
)
def test_without_a_driver_that_is_what_is_said(target: str | None, asked: str) -> None:
    nothing = Cuda(version=None, gpus=(), problem="no NVIDIA driver (libcuda.so.1 was not found)")
    with pytest.raises(HostError) as caught:
        require_gpu(target, nothing)
    assert "no NVIDIA driver" in str(caught.value)
    assert asked in str(caught.value)


def test_a_gpu_older_than_turing_is_refused() -> None:
    with pytest.raises(HostError, match=r"Tesla V100, compute capability 7\.0; TensorRT needs 7.5"):
        require_gpu(None, driver("Tesla V100", "7.0"))
