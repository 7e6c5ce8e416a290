"""The real bindings that the doubles are made from, and the stand-in libraries they load with.

PyPI carries NVIDIA's bindings (1.3 MB) apart from the libraries (gigabytes). ``make test`` puts
each version into its own folder below ``ATTN_EXPORT_BINDINGS`` (default: beside the packages of
this environment). A child interpreter imports one and describes it; nothing of it is run.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
LEAN = "lean-10.16.1.11"
CUDA = "cuda-12.9"
FUNCTIONS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
]
FUNCTIONS_OF_8 = [  # the Caffe and UFF parsers in libnvparsers.so.8
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
]


def bindings_folder() -> Path:
    """Where the bindings are."""
    return Path(os.environ.get("ATTN_EXPORT_BINDINGS") or Path(sys.prefix) / "bindings")


def before(variable: str, *folders: Path) -> str:
    """A search path of the environment with these folders in front."""
    old = os.environ.get(variable)
    return os.pathsep.join([*map(str, folders), *([old] if old else [])])


def find_bindings(name: str) -> Path:
    """The folder of one of the bindings; skips the test where it is not installed."""
    found = bindings_folder() / name
    if not found.is_dir():
        if name == "8.6.1" and sys.version_info >= (3, 12):
            pytest.skip("tensorrt-bindings 8.6.1 exists for Python 3.10 and 3.11 only")
        pytest.skip(f"no bindings in {found}; `make test` downloads them")
    return found


def find_cuda_bindings() -> Path:
    """The folder of cuda-bindings; skips the test where this Python cannot load them."""
    found = find_bindings(CUDA)
    if not any((found / "cuda/bindings" / f"runtime{end}").exists() for end in EXTENSION_SUFFIXES):
        pytest.skip(f"{found} was installed for another Python")
    return found


@functools.cache
def compiler() -> str | None:
    """The C compiler."""
    return shutil.which("cc")


def compile_library(target: Path, source: str) -> None:
    """Make a shared library; skips the test without a compiler."""
    cc = compiler()
    if cc is None:
        pytest.skip("no C compiler to make stand-in libraries with")
    options = ["-shared", "-fPIC", f"-Wl,-soname,{target.name}", "-o", str(target)]
    subprocess.run([cc, "-x", "c", "-", *options], input=source, text=True, check=True)


def make_surface(name: str, folder: Path) -> Path:
    """Describe one version in a JSON file; ``name`` is a folder of the bindings."""
    found = find_bindings(name)
    lean = name.startswith("lean-")
    major = name.removeprefix("lean-").partition(".")[0]
    libraries = folder / f"libraries-{name}"
    libraries.mkdir()
    plain = ["libnvinfer_lean"] if lean else ["libnvinfer", "libnvonnxparser", "libnvinfer_plugin"]
    functions = FUNCTIONS + (FUNCTIONS_OF_8 if major == "8" else [])
    source = "".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions)
    for library in plain + ["libnvparsers"] * (major == "8"):
        compile_library(libraries / f"{library}.so.{major}", source)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", libraries),
        "PYTHONPATH": str(found),
    }
    module = "tensorrt_lean_bindings" if lean else "tensorrt_bindings"
    done = subprocess.run(
        [sys.executable, HERE / "dump_surface.py", module],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "Python version mismatch" in done.stderr or "undefined symbol: Py" in done.stderr:
        pytest.skip(f"{found} was installed for another Python")
    assert done.returncode == 0, done.stderr
    surface = folder / f"{name}.json"
    surface.write_text(done.stdout)
    return surface
