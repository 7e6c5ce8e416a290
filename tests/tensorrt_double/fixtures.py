"""The fixtures that put the doubles in the place of TensorRT, CUDA and the driver."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attn_export import engines
from attn_export.engines import cuda_driver

from .bindings import (
    HERE,
    LEAN,
    VERSIONS,
    before,
    compile_library,
    find_cuda_bindings,
    make_surface,
)

PACKAGES = HERE / "packages"
DOUBLED = ("tensorrt", "tensorrt_lean", "inside_tensorrt", "cuda")
PROBE = cuda_driver.probe
T4 = "Tesla T4;7.5;15109"
Surface = Callable[[str], Path]
TensorrtDouble = Callable[[str], Any]
ChildEnvironment = Callable[..., dict[str, str]]
DRIVER = """
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* ATTN_EXPORT_DOUBLE_GPU is "NAME;MAJOR.MINOR;MIB". */
static char name[256];
static int major, minor;
static unsigned long mib;
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuInit(unsigned flags) {
    const char *gpu = getenv("ATTN_EXPORT_DOUBLE_GPU");
    return gpu && sscanf(gpu, "%255[^;];%d.%d;%lu", name, &major, &minor, &mib) == 4 ? 0 : 100;
}
int cuGetErrorString(int status, const char **text) { *text = "no device"; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
int cuDeviceGetName(char *text, int length, int device) { strncpy(text, name, length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)mib << 20; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? major : attribute == 76 ? minor : -1;
    return 0;
}
"""


@pytest.fixture(params=VERSIONS)
def tensorrt_version(request: pytest.FixtureRequest) -> str:
    """Each TensorRT that the doubles can be, in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def surface(tmp_path_factory: pytest.TempPathFactory) -> Surface:
    """The JSON of a real version, made once for all tests."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = make_surface(name, tmp_path_factory.mktemp("surface"))
        return made[name]

    return find


def show_gpu(monkeypatch: pytest.MonkeyPatch, gpu: str = T4) -> None:
    """Let the driver's probe find this GPU (``"NAME;MAJOR.MINOR;MIB"``) in this process."""
    label, capability, mib = gpu.split(";")
    found = cuda_driver.Cuda(
        version="12.8",
        gpus=(cuda_driver.Gpu(name=label, compute_capability=capability, memory_mib=int(mib)),),
        problem=None,
    )
    monkeypatch.setenv("ATTN_EXPORT_DOUBLE_GPU", gpu)
    # All modules are imported first: one that came later would keep this probe for good.
    for _, name, _ in pkgutil.iter_modules(engines.__path__, "attn_export.engines."):
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if name.startswith("attn_export.") and getattr(module, "probe", None) is PROBE:
            monkeypatch.setattr(module, "probe", lambda *_: found)


def _import_double(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """Import a module of the doubles; everything is as before after the test."""
    if str(PACKAGES) not in sys.path:
        for loaded in list(sys.modules):
            if loaded.partition(".")[0] in DOUBLED:
                monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.syspath_prepend(str(PACKAGES))
    module = importlib.import_module(name)
    for loaded in list(sys.modules):
        if loaded.partition(".")[0] in DOUBLED:
            # Set by monkeypatch, so that it also takes it away again.
            monkeypatch.setitem(sys.modules, loaded, sys.modules.pop(loaded))
    return module


@pytest.fixture
def tensorrt_double(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> TensorrtDouble:
    """Put a version's double in the place of ``tensorrt`` in this process; a T4 is shown.

    The module's ``double`` holds its knobs. Ask for ``cuda_double`` too where an engine runs.
    """

    def install(version: str) -> Any:
        monkeypatch.setenv("ATTN_EXPORT_DOUBLE_SURFACE", str(surface(version)))
        show_gpu(monkeypatch)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        return _import_double(monkeypatch, "tensorrt")

    return install


@pytest.fixture
def lean_double(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put TensorRT's lean runtime 10.16.1 in the place of ``tensorrt_lean``; a T4 is shown."""
    monkeypatch.setenv("ATTN_EXPORT_DOUBLE_LEAN_SURFACE", str(surface(LEAN)))
    show_gpu(monkeypatch)
    return _import_double(monkeypatch, "tensorrt_lean")


@pytest.fixture
def cuda_double(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a GPU in host memory in the place of ``cuda.bindings.runtime``; returns that GPU.

    ``live`` lists what is still allocated or open; ``total_bytes`` may be set to run out of memory.
    """
    monkeypatch.setenv("ATTN_EXPORT_DOUBLE_CUDA", str(find_cuda_bindings()))
    show_gpu(monkeypatch)
    device = _import_double(monkeypatch, "cuda.bindings.runtime").double
    device.reset()
    return device


@pytest.fixture
def child_environment(surface: Surface, tmp_path: Path) -> ChildEnvironment:
    """The environment in which ``python -m attn_export`` runs on the doubles alone.

    ``child_environment(version, gpu="Tesla T4;7.5;15109", **knobs)``; the knobs are those of
    ``tensorrt.double``.
    """

    def make(version: str, gpu: str = T4, **knobs: Any) -> dict[str, str]:
        library = tmp_path / "driver" / "libcuda.so.1"
        if not library.exists():
            library.parent.mkdir()
            compile_library(library, DRIVER)
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PACKAGES), str(HERE.parent.parent / "src")]),
            "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", library.parent),
            "ATTN_EXPORT_DOUBLE_SURFACE": str(surface(version)),
            "ATTN_EXPORT_DOUBLE_CUDA": str(find_cuda_bindings()),
            "ATTN_EXPORT_DOUBLE_GPU": gpu,
            "ATTN_EXPORT_DOUBLE": json.dumps(knobs),
        }

    return make
