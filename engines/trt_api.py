"""TensorRT's module: which versions serve, and what it says while it works.

Its parts differ between versions and their numbers move, so a feature is always asked for by name.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from attn_export.errors import HostError, MissingPackage
from attn_export.lazy import require

OLDEST, TOO_NEW = (8, 6), (12, 0)
INSTALL = "pip install 'attn-export[tensorrt]'"
LAST_ERRORS = 10
MOST_WARNINGS = 50


def require_tensorrt() -> Any:
    """The module ``tensorrt``. To import it is harmless; its Builder and Runtime need a GPU.

    Raises:
        MissingPackage: if it is not installed.
        HostError: if its libraries cannot be loaded, or its version is not supported.
    """
    try:
        trt = require("tensorrt", extra="tensorrt")
    except MissingPackage:
        raise
    except (ImportError, OSError) as error:
        raise HostError(
            f"TensorRT is installed and cannot be loaded: {error}; install it again with the CUDA "
            f"libraries it needs: {INSTALL}"
        ) from error
    found = version(trt)
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if not numbers or not OLDEST <= (int(numbers[1]), int(numbers[2])) < TOO_NEW:
        raise HostError(f"TensorRT {found} is installed; 8.6 to 11 are supported: {INSTALL}")
    return trt


def version(trt: Any) -> str:
    """TensorRT's version, ``"10.16.1.11"``."""
    return str(trt.__version__)


def is_strongly_typed(trt: Any) -> bool:
    """Whether a graph can carry its precision (10 and 11), or builder flags must give it (8.6)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


class BuildLog:
    """What TensorRT logs: warnings and errors are kept, INFO lines are passed on.

    TensorRT calls it from its own threads.
    """

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        super().__init__()  # TensorRT's ILogger, where make_log joins the two
        self._on_line = on_line
        self._lock = threading.Lock()
        self._errors: deque[str] = deque(maxlen=LAST_ERRORS)
        self._warnings: dict[str, None] = {}

    def log(self, severity: Any, msg: str) -> None:
        """Keep or pass on one line; the name and arguments are TensorRT's."""
        kind, text = severity.name, msg.strip()
        if kind == "INFO" and self._on_line:
            # An exception may not cross TensorRT's own code.
            with contextlib.suppress(Exception):
                self._on_line(text)
        with self._lock:
            if kind in ("ERROR", "INTERNAL_ERROR"):
                self._errors.append(text)
            elif kind == "WARNING" and len(self._warnings) < MOST_WARNINGS:
                self._warnings[text] = None

    def errors(self) -> list[str]:
        """The last error lines, oldest first."""
        with self._lock:
            return list(self._errors)

    def warnings(self) -> list[str]:
        """The warnings, each once; the first fifty."""
        with self._lock:
            return list(self._warnings)


def make_log(trt: Any, on_line: Callable[[str], None] | None = None) -> Any:
    """A :class:`BuildLog` that is also the ILogger of this TensorRT.

    Args:
        on_line: is given INFO lines, from TensorRT's threads.
    """
    return type("Log", (BuildLog, trt.ILogger), {})(on_line)
