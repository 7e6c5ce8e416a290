"""OpenVINO itself: imported without its telemetry, and asked to compile one graph for the CPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from attn_export.errors import BuildFailed
from attn_export.lazy import require

from .signal_stack import enlarge_signal_stack

Computes = Literal["f32", "bf16"]

TELEMETRY = "openvino_telemetry"
# Where the length is no multiple of 16, the attention that OpenVINO's snippets compile as one is
# slower than its parts: a BF16 or INT8 encoder on texts of all lengths takes 1.2 times as long with
# it, measured. The property is not documented: it may go.
SNIPPETS_OFF = {"SNIPPETS_MODE": "DISABLE"}


def library() -> Any:
    """OpenVINO's module.

    Its import sends an event to Google Analytics and writes an identifier to ``~/intel``. Where
    the package that does so is missing, OpenVINO uses its own stand-in that does nothing: so it is
    missing for as long as this import takes.

    Raises:
        MissingPackage: if OpenVINO is not installed.
    """
    enlarge_signal_stack()
    if "openvino" in sys.modules:
        return require("openvino", extra="openvino")
    with _missing(TELEMETRY):
        return require("openvino", extra="openvino")


@contextlib.contextmanager
def _missing(module: str) -> Iterator[None]:
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]  # as the import system reads it
    try:
        yield
    finally:
        if before is None:
            del sys.modules[module]
        else:
            sys.modules[module] = before


def read_graph(path: Path) -> Any:
    """Read an ONNX file.

    Raises:
        BuildFailed: if OpenVINO cannot.
        MissingPackage: if OpenVINO is not installed.
    """
    # Not Core.read_model: it tries every format in turn, and TensorFlow's reader prints.
    ov = library()
    try:
        frontend = ov.frontend.FrontEndManager().load_by_framework("onnx")
        return frontend.convert(frontend.load(str(path)))
    except Exception as error:  # its frontend's errors share no class
        raise BuildFailed(f"OpenVINO {version()} cannot open {path}: {one_line(error)}") from error


def compile_graph(model: Any, *, computes: Computes, streams: int, threads: int) -> Any:
    """Compile a graph for the CPU.

    Args:
        computes: what products that are not quantized are computed in.
        streams: batches that run at a time; they share the threads.
        threads: CPU threads in all.

    Raises:
        BuildFailed: if OpenVINO cannot compile it.
    """
    properties = {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": computes,
        # Processes that share a machine would all pin their threads to its first CPUs.
        "ENABLE_CPU_PINNING": False,
    }
    core = library().Core()
    try:
        return _compile(core, model, properties)
    except RuntimeError as error:
        name = model.get_friendly_name()
        raise BuildFailed(
            f"OpenVINO {version()} cannot compile {name}: {one_line(error)}"
        ) from error


def _compile(core: Any, model: Any, properties: dict[str, Any]) -> Any:
    try:
        return core.compile_model(model, "CPU", {**properties, **SNIPPETS_OFF})
    except RuntimeError as error:
        if not any(name in str(error) for name in SNIPPETS_OFF):
            raise
    return core.compile_model(model, "CPU", properties)


def version() -> str:
    """The release, without its build number."""
    return str(library().__version__).partition("-")[0]


def settings(compiled: Any) -> dict[str, Any]:
    """What a compiled graph runs with, as OpenVINO says it."""
    return {
        "streams": int(compiled.get_property("NUM_STREAMS")),
        "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        "hint": compiled.get_property("PERFORMANCE_HINT"),
        "pinned": bool(compiled.get_property("ENABLE_CPU_PINNING")),
        "hyper_threading": bool(compiled.get_property("ENABLE_HYPER_THREADING")),
    }


def one_line(error: Exception) -> str:
    """OpenVINO's message, which spans many lines, on one."""
    return " ".join(str(error).split())
