"""The two ways of answering a group of requests, in eager PyTorch and in an engine.

Padded batches are made outside of the timing. Bucketed, the timing holds all that a server does:
sorting, cutting, padding, running; the requests of a group have arrived together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from attn_export.bundle import Bundle
from attn_export.calibration.data import read_sequences
from attn_export.engines.buckets import bucket_of
from attn_export.engines.engine import Engine
from attn_export.engines.fitting import run_all_fitted, run_fitted
from attn_export.engines.schedule import PlannedBatch
from attn_export.engines.session import Feeds, LoadOptions, Session, backend

from .candidates import MIB, padded_size
from .devices import GPU, Device
from .matrix_cell import EAGER_AUTOCAST
from .matrix_memory import DeviceMemory, EngineMemory, Memory, ProcessMemory
from .workload import Lengths, Workload

Call = Callable[[], object]


class Runner(Protocol):
    """A loaded model that answers groups of requests.

    Attributes:
        workload: the requests.
        memory: what it needs of it.
    """

    workload: Workload
    memory: Memory

    def padded(self, group: Lengths, length: int) -> Call:
        """What answers these requests, padded to ``length`` tokens."""

    def bucketed(self, group: Lengths) -> Call:
        """What answers these requests in batches of similar length."""

    def remark(self, batch: int) -> str | None:
        """What is special about padded batches of this size."""


class EagerRunner:
    """Eager PyTorch.

    Args:
        edges: the bucket edges by which a group is cut.
    """

    def __init__(
        self,
        run: Callable[[Feeds], object],
        workload: Workload,
        edges: Sequence[int],
        memory: Memory,
    ) -> None:
        self._run, self._edges = run, edges
        self.workload, self.memory = workload, memory

    def padded(self, group: Lengths, length: int) -> Call:
        """One batch."""
        return partial(self._run, self.workload.feeds(PlannedBatch(group, length)))

    def bucketed(self, group: Lengths) -> Call:
        """A batch for each bucket that the group has requests of."""
        return partial(self._bucketed, group)

    def remark(self, batch: int) -> str | None:
        """Nothing is."""
        return None

    def _bucketed(self, group: Lengths) -> None:
        for batch in bucket_batches(self.workload.lengths, group, self._edges):
            self._run(self.workload.feeds(batch))


class EngineRunner:
    """An engine of a bundle."""

    def __init__(
        self, session: Session, engine: Engine, workload: Workload, memory: Memory
    ) -> None:
        self._session, self._engine = session, engine
        self.workload, self.memory = workload, memory

    def padded(self, group: Lengths, length: int) -> Call:
        """One batch, or several where the engine's profiles take no more."""
        size = padded_size(self._session.profiles, len(group))
        parts = [group[start : start + size] for start in range(0, len(group), size)]
        feeds = [self.workload.feeds(PlannedBatch(part, length)) for part in parts]
        if len(feeds) == 1:
            return partial(run_fitted, self._session, feeds[0])
        return lambda: deque(run_all_fitted(self._session, feeds), maxlen=0)

    def bucketed(self, group: Lengths) -> Call:
        """The engine's own scheduling."""
        requests = [self.workload.raw[index] for index in group.tolist()]
        return partial(self._engine.run_many, requests)

    def remark(self, batch: int) -> str | None:
        """Where the engine's profiles take no such batch."""
        size = padded_size(self._session.profiles, batch)
        return None if size == batch else f"in batches of {size}: its profiles take no more"


def bucket_batches(lengths: Lengths, group: Lengths, edges: Sequence[int]) -> list[PlannedBatch]:
    """Requests sorted and cut by the edges; each batch is padded to its own longest, longest first.

    Raises:
        InputError: if a request is longer than the last edge.
    """
    order = group[np.argsort(-lengths[group], kind="stable")]
    buckets = [bucket_of(int(lengths[index]), edges) for index in order]
    cuts = np.flatnonzero(np.diff(buckets)) + 1
    return [PlannedBatch(part, int(lengths[part[0]])) for part in np.split(order, cuts)]


def eager_runner(bundle: Bundle, variant: str, data: Path, device: Device, threads: int) -> Runner:
    """The bundle's own model in eager PyTorch.

    Raises:
        AttnExportError: if it cannot be rebuilt here.
    """
    from .eager import rebuild

    manifest = bundle.manifest
    module = rebuild(manifest).module
    import torch

    from attn_export.exporter.eager import run_eager

    torch.set_num_threads(threads)
    on_gpu = device == GPU
    module = module.to("cuda:0" if on_gpu else "cpu")
    half = torch.float16 if on_gpu else torch.bfloat16
    autocast = variant == EAGER_AUTOCAST

    def run(feeds: Feeds) -> object:
        with torch.autocast("cuda" if on_gpu else "cpu", dtype=half, enabled=autocast):
            return run_eager(module, feeds)

    workload = Workload(manifest.inputs, read_sequences(data))
    memory = DeviceMemory(torch.cuda) if on_gpu else ProcessMemory()
    return EagerRunner(run, workload, manifest.buckets["edges"], memory)


def engine_runner(bundle: Bundle, name: str, data: Path, threads: int, stack: ExitStack) -> Runner:
    """An engine; it is closed when ``stack`` closes.

    Raises:
        AttnExportError: if it cannot be loaded.
    """
    record = bundle.manifest.engines[name]
    session: Session = backend(record.backend).load(bundle, record, LoadOptions(threads=threads))
    stack.callback(session.close)
    workload = Workload(session.inputs, read_sequences(data))
    held: Any = getattr(session, "device_bytes", None)
    memory = ProcessMemory() if held is None else EngineMemory(lambda: held / MIB)
    return EngineRunner(session, Engine(session, record, check_ids=False), workload, memory)
