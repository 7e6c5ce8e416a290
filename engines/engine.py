"""What a server holds: one engine of a bundle, chosen, checked and ready to run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.errors import BundleError, UsageError
from attn_export.manifest import EngineRecord
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .feeds import Requests, check_feeds, real_region
from .fitting import run_all_fitted, run_fitted
from .packing_session import PACKED, is_packed
from .ranking import slowness, unsuited
from .schedule import PlannedBatch, are_few, plan_for
from .session import Array, Goal, LoadOptions, Outputs, Session
from .session import backend as backend_module

log = logging.getLogger("attn_export")


def load(
    directory: str | os.PathLike[str],
    *,
    precision: str | None = None,
    backend: str | None = None,
    packed: bool = False,
    threads: int | None = None,
    goal: Goal | None = None,
    streams: int = 2,
    cuda_graphs: bool = True,
    allow_host_code: bool = False,
    check_ids: bool = False,
) -> Engine:
    """Load an engine of a bundle; nothing is written, and torch is not needed.

    Without ``precision``, it is the fastest engine (by what was measured when it was compiled)
    that passed parity and suits this host: on a GPU the plan for that GPU and TensorRT, on a CPU
    FP32 or INT8, not FP16. With ``precision``, an engine whose parity failed or was never checked
    is loaded too, with a warning.

    Args:
        packed: an engine that packs several texts into a row; only where it is asked for.
        threads: CPU threads, or None for each CPU that this process may use.
        goal: what a CPU's threads are set for, ``"throughput"`` (of ``run_many``) or
            ``"latency"``; None is what the engine was compiled for.
        streams: batches that a GPU works on at a time; each has its own device memory.
        cuda_graphs: replay a captured CUDA graph where a shape comes again.
        allow_host_code: load a version-compatible plan that carries its own runtime, which is
            code that then runs in this process.
        check_ids: refuse each id outside the vocabulary, and say where it is. Without it ONNX
            Runtime refuses ids that are too large, and counts negative ones from the end.

    Raises:
        BundleError: if there is no bundle or no such engine, or a file of it was altered.
        HostError: if the engine is for another GPU or TensorRT, or does not fit into its memory.
        MissingPackage: if the backend's package is not installed.
        UsageError: if ``threads`` or ``streams`` does not fit this host.
    """
    bundle = Bundle.open(directory)
    record = _choose(bundle, precision, backend, packed=packed)
    options = LoadOptions(
        threads=threads,
        goal=goal,
        streams=streams,
        cuda_graphs=cuda_graphs,
        allow_host_code=allow_host_code,
    )
    return open_engine(bundle, record, options, check_ids=check_ids)


def open_engine(
    bundle: Bundle, record: EngineRecord, options: LoadOptions, *, check_ids: bool = False
) -> Engine:
    """Open one engine of a bundle, proven or not.

    Raises:
        AttnExportError: as :func:`load` does.
    """
    session: Session = backend_module(record.backend).load(bundle, record, options)
    return Engine(session, record, check_ids=check_ids)


class Engine:
    """A loaded engine. Safe to share between threads; use it in ``with``, or close it.

    Attributes:
        inputs: the arrays that :meth:`run` takes.
        outputs: the arrays that it returns.
        buckets: the ascending bucket edges, in tokens; the last is the longest sequence.
        precision: ``"fp32"``, ``"fp16"``, ``"int8"``, ...
        backend: what runs it.
    """

    def __init__(self, session: Session, record: EngineRecord, *, check_ids: bool) -> None:
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.buckets = session.buckets
        self.precision = record.precision
        self.backend = record.backend
        self._session = session
        self._check_ids = check_ids

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine; later runs are errors."""
        self._session.close()

    def run(self, feeds: Mapping[str, Any]) -> Outputs:
        """Run one batch as it is, as fast as one batch can be.

        Args:
            feeds: all inputs by name, of shape [B, S] or as in ``inputs``.

        Raises:
            InputError: if an input is missing or unknown, or its shape, dtype or values do not fit.
            UsageError: after :meth:`close`.
        """
        checked = check_feeds(feeds, self.inputs, buckets=self.buckets, check_ids=self._check_ids)
        return run_fitted(self._session, checked)

    def run_many(self, sequences: Iterable[Any]) -> dict[str, Array | list[Array]]:
        """Run many requests of any lengths, batched by length, as many a second as possible.

        Args:
            sequences: N requests. Each is an array or list of ids of shape [S], where ids are the
                only input besides masks; or a mapping from input name to one sample without its
                batch axis, in which masks may be left out and are then 1 for each token.

        Returns:
            By output name and in the order of the requests: an array of shape [N, ...], or, for
            an output with a sequence axis, N arrays, each cut to its own request's length.

        Raises:
            InputError: if a request does not fit; its index, from 0, is named.
            UsageError: after :meth:`close`, or if the model has an input without a batch axis.
        """
        requests = Requests(sequences, self.inputs, check_ids=self._check_ids)
        plan = plan_for(self._session, requests.lengths)
        batches = (requests.feeds(batch.indices.tolist(), batch.length) for batch in plan)
        # run() gives each batch the whole device.
        results = (
            (run_fitted(self._session, feeds) for feeds in batches)
            if len(plan) == 1 or are_few(self._session, len(requests.lengths))
            else run_all_fitted(self._session, batches)
        )
        return _in_order(zip(plan, results, strict=True), self.outputs, requests.lengths)


def _in_order(
    results: Iterator[tuple[PlannedBatch, Outputs]],
    specs: tuple[TensorSpec, ...],
    lengths: list[int],
) -> dict[str, Array | list[Array]]:
    """Put the rows of all batches where their requests were; cut off the padding."""
    for spec in specs:
        if spec.shape[:1] != (BATCH,):
            raise UsageError(
                f"output {spec.name} has no leading batch axis, so it cannot be split into "
                "requests; give whole batches to run() instead"
            )
    outputs = {spec.name: _empty(spec, len(lengths)) for spec in specs}
    for batch, arrays in results:
        for spec in specs:
            array, into = arrays[spec.name], outputs[spec.name]
            if isinstance(into, np.ndarray):
                into[batch.indices] = array
                continue
            for row, index in enumerate(batch.indices.tolist()):
                into[index] = array[real_region(spec, row, lengths[index])]
    return outputs


def _empty(spec: TensorSpec, count: int) -> Array | list[Array]:
    if SEQUENCE in spec.shape:
        return [np.empty(0, spec.dtype)] * count
    return np.empty((count, *(int(size) for size in spec.shape[1:])), spec.dtype)


def _choose(
    bundle: Bundle, precision: str | None, backend: str | None, *, packed: bool
) -> EngineRecord:
    engines = [
        record
        for record in bundle.manifest.engines.values()
        if precision in (None, record.precision)
        and backend in (None, record.backend)
        and is_packed(record) == packed
    ]
    unfit = {record.name: unsuited(record) for record in engines}
    if precision is None:
        engines = [
            record
            for record in engines
            if bundle.manifest.passed(record) and unfit[record.name] is None
        ]
    if not engines:
        wanted = " ".join(filter(None, [backend, precision, PACKED * packed])) or "proven"
        have = "; ".join(_described(bundle, record) for record in bundle.manifest.engines.values())
        raise BundleError(
            f"{bundle.directory} holds no {wanted} engine for this host; its engines: "
            f"{have or 'none'}; choose one with precision=, or make one with 'attn-export build' "
            "or 'compile' and prove it with 'attn-export parity'"
        )
    chosen = (bundle.manifest.choice or {}).get("engine")
    best = min(
        engines,
        key=lambda record: (
            not bundle.manifest.passed(record),
            unfit[record.name] is not None,
            record.name != chosen,
            slowness(record),
        ),
    )
    if not bundle.manifest.passed(best) or unfit[best.name]:
        log.warning("loaded because it was asked for by name: %s", _described(bundle, best))
    return best


def _described(bundle: Bundle, record: EngineRecord) -> str:
    verdict = "passed" if bundle.manifest.passed(record) else "failed"
    if record.parity is None:
        verdict = "never checked"
    reason = unsuited(record)
    return f"{record.name} (parity {verdict}{f'; {reason}' if reason else ''})"
