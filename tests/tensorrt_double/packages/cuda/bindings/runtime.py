"""``cuda.bindings.runtime`` on the double: names, enums and arguments are the real module's.

The real module is loaded, which needs no driver; only its functions are replaced. A function that
is not played raises NotImplementedError.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from . import calls_double
from .device_double import DEVICE

# What the first result of a function is, where it is no plain number.
HANDLES = {
    "cudaStreamCreate": "cudaStream_t",
    "cudaStreamCreateWithFlags": "cudaStream_t",
    "cudaEventCreate": "cudaEvent_t",
    "cudaEventCreateWithFlags": "cudaEvent_t",
    "cudaStreamEndCapture": "cudaGraph_t",
    "cudaGraphInstantiate": "cudaGraphExec_t",
    "cudaStreamIsCapturing": "cudaStreamCaptureStatus",
}
REAL_FUNCTIONS = ("cudaGetErrorName", "cudaGetErrorString")


def _load_real() -> Any:
    """The real module, found on the package's extended path behind this file."""
    package = sys.modules[__package__]
    folders = [path for path in package.__path__ if Path(path) != Path(__file__).parent]
    spec = importlib.machinery.PathFinder.find_spec(__name__, folders)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _replace(real: Any, function: Any) -> Any:
    name = function.__name__
    signature = inspect.signature(function)
    integers = [
        part.split()[-1].strip("),")
        for part in (function.__doc__ or "").splitlines()[0].partition("(")[2].split(",")
        if "int " in part or "size_t " in part or "long " in part
    ]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for key, value in bound.arguments.items():
            if key in integers and not hasattr(value, "__index__"):
                raise TypeError(f"{name}(): an integer is required for {key}, got {value!r}")
            kind = signature.parameters[key].annotation
            if isinstance(kind, str) and not isinstance(value, getattr(real, kind)):
                raise TypeError(f"Argument {key!r} is not instance of type {kind}, got {value!r}")
        played = getattr(calls_double, name, None)
        if played is None:
            raise NotImplementedError(f"the double does not play {name}")
        with DEVICE.lock:
            if DEVICE.sticky_error != "cudaSuccess" and "Error" not in name:
                return _answer(real, name, (DEVICE.sticky_error,))
            return _answer(real, name, played(*bound.arguments.values()))

    return call


def _answer(real: Any, name: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The real enums and handles; a failed call returns None beside its error, if it returns."""
    if result[0] not in ("cudaSuccess", "cudaErrorNotReady") and "LastError" not in name:
        DEVICE.last_error = result[0]
    status = getattr(real.cudaError_t, result[0])
    values = list(result[1:])
    if name in HANDLES and values:
        kind = getattr(real, HANDLES[name])
        values[0] = getattr(kind, values[0]) if isinstance(values[0], str) else kind(values[0])
    if result[0] != "cudaSuccess" and not values and name in RETURNING:
        values = [None] * RETURNING[name]
    return status, *values


# How many values a function returns beside its status.
RETURNING = dict.fromkeys(HANDLES, 1) | {
    "cudaMalloc": 1,
    "cudaMallocHost": 1,
    "cudaHostAlloc": 1,
    "cudaEventElapsedTime": 1,
    "cudaGetDeviceCount": 1,
    "cudaGetDevice": 1,
    "cudaMemGetInfo": 2,
    "cudaGetDeviceProperties": 1,
}


def _fill(namespace: dict[str, Any]) -> None:
    real = _load_real()
    for name, value in vars(real).items():
        if name.startswith("__"):
            continue
        is_call = type(value).__name__ == "cython_function_or_method" and name.startswith("cuda")
        namespace[name] = _replace(real, value) if is_call and name not in REAL_FUNCTIONS else value
    namespace["cudaGetDeviceProperties"] = functools.partial(_properties, real)
    namespace["double"] = DEVICE


def _properties(real: Any, device: int) -> tuple[Any, Any]:
    if device != 0:
        return real.cudaError_t.cudaErrorInvalidDevice, None
    found = real.cudaDeviceProp()
    found.name = DEVICE.name.encode().ljust(256, b"\0")
    found.major, found.minor = DEVICE.compute_capability
    found.totalGlobalMem = DEVICE.total_bytes
    found.multiProcessorCount = 40
    return real.cudaError_t.cudaSuccess, found


_fill(globals())
