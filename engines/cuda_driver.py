"""The NVIDIA driver and its GPUs, asked through libcuda alone.

TensorRT may crash the process on a machine without a GPU, so the driver is asked first.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that the driver shows; ``compute_capability`` as in ``"7.5"``."""

    name: str
    compute_capability: str
    memory_mib: int


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """The NVIDIA driver.

    Args:
        version: the newest CUDA that the driver supports, ``"12.8"``; None without a driver.
        problem: why there is no GPU to use; None when there is one.
    """

    version: str | None
    gpus: tuple[Gpu, ...]
    problem: str | None


def probe(library: str = "libcuda.so.1") -> Cuda:
    """Ask the NVIDIA driver for its GPUs; the process then holds no GPU memory."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return Cuda(version=None, gpus=(), problem=f"no NVIDIA driver ({library} was not found)")
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    status = driver.cuInit(0)
    if status:
        reason = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(reason))
        text = (reason.value or b"unknown error").decode()
        return Cuda(version=version, gpus=(), problem=f"the driver found no GPU: {text} ({status})")
    driver.cuDeviceGetCount(ctypes.byref(number))
    gpus = tuple(_gpu(driver, index) for index in range(number.value))
    return Cuda(version=version, gpus=gpus, problem=None if gpus else "the driver shows no GPU")


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, number = ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    return Gpu(
        name=name.value.decode(),
        compute_capability=".".join(capability),
        memory_mib=memory.value >> 20,
    )
