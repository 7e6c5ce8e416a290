"""The seam: what a backend must do, and how one is found.

A session is a protocol and not a base class: a backend shares no code with another, only this
shape. A backend is one module with two functions:

* ``compile(bundle, precision) -> EngineRecord``: make what ``load`` needs, run every bucket once;
* ``load(bundle, record, threads) -> Session``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from attn_export.errors import UsageError
from attn_export.spec import TensorSpec

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Outputs = dict[str, np.ndarray[Any, Any]]

# Strings, so that listing the backends imports none of them.
BACKENDS = {"onnxruntime": "attn_export.engines.onnxruntime"}
ENTRY_POINTS = "attn_export.backends"


class Session(Protocol):
    """One loaded engine. Safe to share between threads.

    Attributes:
        pads_to_edge: True where every batch must be padded to its bucket's edge (fixed shapes);
            False where a batch may stop at its own longest sequence.
        batch_tokens: how many tokens (padding included) fill one batch of :meth:`run_all`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buckets: tuple[int, ...]
    pads_to_edge: bool
    batch_tokens: int

    def run(self, feeds: Feeds) -> Outputs:
        """One batch, as fast as one batch can be."""

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        """Many independent batches, as many a second as the device can; results in order."""

    def close(self) -> None:
        """Free the engine; later calls are errors."""


def backend_names() -> list[str]:
    """All backends that are installed, built-in ones first."""
    plugins = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return [*BACKENDS, *sorted(plugins - set(BACKENDS))]


def backend(name: str) -> ModuleType:
    """The module of one backend.

    Raises:
        UsageError: if no backend has this name.
    """
    if name in BACKENDS:
        return importlib.import_module(BACKENDS[name])
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            module: ModuleType = point.load()
            return module
    raise UsageError(f"unknown backend {name!r}; there are: {', '.join(backend_names())}")
