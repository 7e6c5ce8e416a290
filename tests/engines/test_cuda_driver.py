"""Asking the NVIDIA driver, with a stand-in compiled from C where there is none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_export.engines.cuda_driver import Cuda, Gpu, probe

# The entry points of cuda.h that are used, with their real signatures.
DRIVER = """
#include <stddef.h>
#include <string.h>
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuInit(unsigned flags) { return STATUS; }
int cuGetErrorString(int status, const char **text) { *text = TEXT; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 10 + ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 10 ? "Tesla T4" : "NVIDIA L4", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = (size_t)(device == 10 ? 15109 : 22593) << 20;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int major = device == 10 ? 7 : 8, minor = device == 10 ? 5 : 9;
    *value = attribute == 75 ? major : attribute == 76 ? minor : -1;
    return 0;
}
"""

BuildDriver = Callable[..., str]


@pytest.fixture
def build_driver(tmp_path: Path) -> BuildDriver:
    """Compile a driver with a number of GPUs, or one whose cuInit fails."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a stand-in driver with")

    def build(*, count: int = 0, status: int = 0, text: str = "0") -> str:
        source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
        source.write_text(DRIVER)
        defines = [f"-DSTATUS={status}", f"-DTEXT={text}", f"-DCOUNT={count}"]
        subprocess.run([compiler, "-shared", "-fPIC", *defines, "-o", library, source], check=True)
        return str(library)

    return build


def test_each_gpu_is_named_with_its_capability_and_memory(build_driver: BuildDriver) -> None:
    assert probe(build_driver(count=2)) == Cuda(
        version="12.8",
        gpus=(
            Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15109),
            Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=22593),
        ),
        problem=None,
    )


def test_a_driver_that_shows_no_gpu(build_driver: BuildDriver) -> None:
    assert probe(build_driver(count=0)) == Cuda(
        version="12.8", gpus=(), problem="the driver shows no GPU"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"no CUDA-capable device is detected"', "no CUDA-capable device is detected (100)"),
        ("0", "unknown error (100)"),
    ],
)
def test_a_driver_that_refuses_says_why(
    build_driver: BuildDriver, text: str, expected: str
) -> None:
    found = probe(build_driver(status=100, text=text))
    assert found.gpus == ()
    assert found.problem == f"the driver found no GPU: {expected}"


def test_without_a_driver_there_is_a_reason_and_no_crash() -> None:
    assert probe("libcuda-that-is-not-there.so.1") == Cuda(
        version=None,
        gpus=(),
        problem="no NVIDIA driver (libcuda-that-is-not-there.so.1 was not found)",
    )


@pytest.mark.gpu
def test_the_real_driver_shows_a_gpu() -> None:
    found = probe()
    assert found.problem is None
    assert all(gpu.name and gpu.memory_mib > 0 for gpu in found.gpus)
    assert float(found.gpus[0].compute_capability) >= 5
