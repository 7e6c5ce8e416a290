"""Run one engine over the parity matrix and add up its errors.

An engine with profiles also runs each batch repeated up to every profile's optimal and largest
batch: other kernels may run there.

ONNX Runtime's CPU keeps an FP16 graph's intermediates in FP32, so that an overflow on FP16
hardware does not show. Such an engine is therefore judged twice: its own graph, and its rounding
twin (the same weights, with a rounding to FP16 after every FP16 operation). Both must pass.
OpenVINO computes BF16 as such, so what it gives is what is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from attn_export.bundle import Bundle
from attn_export.engines.fitting import run_fitted
from attn_export.engines.packing_session import provider_of
from attn_export.engines.profiles import fitting_shape
from attn_export.engines.session import LoadOptions, Session, backend
from attn_export.errors import BundleError
from attn_export.manifest import EngineRecord
from attn_export.spec import BATCH

from .cases import ROWS, Array, Case, masked_rows
from .metrics import Comparer, Comparison
from .tolerances import Tolerances

ENGINE, TWIN = "engine", "rounding twin"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One graph's results over all cases.

    Args:
        what: ``"engine"`` or ``"rounding twin"``.
        outputs: what is held to the tolerance.
        masked_rows: fully masked rows of a user's own model: reported; they must be finite.
        noise_ratio: largest error over that of eager FP16, on the same few cases, by output.
    """

    what: str
    outputs: list[Comparison]
    masked_rows: list[Comparison] = field(default_factory=list)
    noise_ratio: dict[str, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether all outputs are within tolerance and all masked rows finite."""
        return all(result.passed for result in self.outputs) and all(
            result.verdict in ("pass", "fail") for result in self.masked_rows
        )


class Judge:
    """One session, and the comparers that add up its errors.

    Args:
        allowed: (atol, rtol) by output.
        cosines: the least cosine by output, where it judges instead.
    """

    def __init__(
        self,
        what: str,
        session: Session,
        bundle: Bundle,
        allowed: Mapping[str, tuple[float, float]],
        cosines: Mapping[str, float | None] | None = None,
    ) -> None:
        least = cosines or {}

        def comparers() -> dict[str, Comparer]:
            return {
                name: Comparer(name, atol=a, rtol=r, least_cosine=least.get(name))
                for name, (a, r) in allowed.items()
            }

        self.what, self.session = what, session
        self._inputs, self._outputs = bundle.manifest.inputs, bundle.manifest.outputs
        # A built-in model is finite and equal on a fully masked row; a user's need only be finite.
        self._hold_masked = bool(bundle.manifest.model.get("builtin"))
        self._held, self._masked, self._noise = comparers(), comparers(), comparers()

    def add(self, case: Case, expected: Mapping[str, Array], *, noise: bool) -> None:
        """Run one case; with ``noise`` it also counts towards the noise ratio."""
        self._compare(case, expected, noise=noise)
        for batch in self._larger_batches(case):
            self._compare(*self._repeated(case, expected, batch), noise=False)

    def _compare(self, case: Case, expected: Mapping[str, Array], *, noise: bool) -> None:
        # With FP16 inputs the session takes another dtype than the model itself.
        feeds = {
            spec.name: case.feeds[spec.name].astype(spec.dtype, copy=False)
            for spec in self.session.inputs
        }
        got = run_fitted(self.session, feeds)
        masked = masked_rows(self._inputs, case)
        hold_masked = self._hold_masked and not self._is_padded(case)
        for spec in self._outputs:
            a, b, axis = got[spec.name], expected[spec.name], spec.axis(BATCH)
            if noise:
                self._noise[spec.name].add(a, b, case=case.name)
            if axis is None or hold_masked or a.shape != b.shape or not masked.any():
                self._held[spec.name].add(a, b, case=case.name)
                continue
            for rows, comparers in ((~masked, self._held), (masked, self._masked)):
                parts = a.compress(rows, axis), b.compress(rows, axis)
                comparers[spec.name].add(*parts, case=case.name)

    def _is_padded(self, case: Case) -> bool:
        """Whether tokens are added: a fully masked row attends everywhere, so also to them."""
        profiles = self.session.profiles
        return bool(profiles) and fitting_shape(profiles, case.batch, case.length)[1] > case.length

    def _larger_batches(self, case: Case) -> Iterator[int]:
        """The optimal and largest batches of the profiles that take a case's length."""
        if case.batch < ROWS:
            return
        found = {
            batch
            for profile in self.session.profiles
            for batch in profile.batch[1:]
            if batch > case.batch and profile.holds(batch, case.length)
        }
        yield from sorted(found)

    def _repeated(
        self, case: Case, expected: Mapping[str, Array], batch: int
    ) -> tuple[Case, dict[str, Array]]:
        """The rows of a case over and over, up to ``batch`` of them."""
        rows = np.arange(batch) % case.batch

        def repeat(array: Array, axis: int | None) -> Array:
            return array if axis is None else np.take(array, rows, axis)

        feeds = {s.name: repeat(case.feeds[s.name], s.axis(BATCH)) for s in self._inputs}
        outputs = {s.name: repeat(expected[s.name], s.axis(BATCH)) for s in self._outputs}
        name = f"{case.name}-x{batch}"
        return replace(case, name=name, batch=batch, feeds=feeds), outputs

    def result(self, noise_floor: Mapping[str, float] | None) -> Run:
        """The numbers so far."""
        masked = [comparer.result() for comparer in self._masked.values()]
        ratio = None
        if noise_floor is not None:
            errors = {name: comparer.result().max_abs for name, comparer in self._noise.items()}
            ratio = {name: errors[name] / floor for name, floor in noise_floor.items() if floor}
        return Run(
            what=self.what,
            outputs=[comparer.result() for comparer in self._held.values()],
            masked_rows=[result for result in masked if result.verdict != "nothing compared"],
            noise_ratio=ratio,
        )


def open_judges(
    bundle: Bundle,
    record: EngineRecord,
    tolerances: Tolerances,
    stack: ExitStack,
    *,
    allow_host_code: bool = False,
) -> list[Judge]:
    """Verify and load an engine, and its rounding twin where one must judge it.

    The sessions are closed when ``stack`` is.

    Args:
        allow_host_code: run the code that a version-compatible plan may carry.

    Raises:
        UsageError: if a tolerance is not allowed for the engine's precision.
        BundleError: if the graph or plan is altered, or an FP16 graph has no rounding twin.
        HostError: if this host cannot run the engine.
    """
    manifest = bundle.manifest
    allowed = {
        spec.name: tolerances.allowed(spec.name, record.precision) for spec in manifest.outputs
    }
    cosines = {
        spec.name: tolerances.least_cosine(spec.name, record.precision) for spec in manifest.outputs
    }
    bundle.verify_graph(bundle.graph(record.graph))
    # One thread: the cases are small, and more would wait for each other on a busy machine.
    options = LoadOptions(threads=1, streams=1, allow_host_code=allow_host_code)
    session: Session = backend(record.backend).load(bundle, record, options)
    stack.callback(session.close)
    judges = [Judge(ENGINE, session, bundle, allowed, cosines)]
    if is_widened(record):
        twin = _open_twin(bundle, record, session)
        stack.callback(twin.close)
        judges.append(Judge(TWIN, twin, bundle, allowed))
    return judges


def is_widened(record: EngineRecord) -> bool:
    """Whether it is FP16 on ONNX Runtime's CPU, which computes that in FP32."""
    on_cpu = record.backend == "onnxruntime" and not provider_of(record)
    return on_cpu and record.precision == "fp16"


def _open_twin(bundle: Bundle, record: EngineRecord, engine: Session) -> Session:
    graph = bundle.graph(record.graph)
    if graph.twin is None:
        raise BundleError(
            f"{bundle.directory} has no rounding twin for {graph.path}: a CPU alone cannot judge "
            "FP16; rebuild the bundle"
        )
    path = bundle.verify(graph.twin)
    from attn_export.engines.onnxruntime import open_graph

    return open_graph(
        path, inputs=engine.inputs, outputs=engine.outputs, buckets=engine.buckets, threads=1
    )
