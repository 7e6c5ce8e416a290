"""Run one engine over the parity matrix and add up its errors.

ONNX Runtime's CPU keeps an FP16 graph's intermediates in FP32, so that an overflow on FP16
hardware does not show. Such an engine is therefore judged twice: its own graph, and its rounding
twin (the same weights, with a rounding to FP16 after every FP16 operation). Both must pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from attn_export.bundle import Bundle
from attn_export.engines.session import Session, backend
from attn_export.errors import BundleError
from attn_export.manifest import EngineRecord
from attn_export.spec import BATCH

from .cases import Array, Case, masked_rows
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
    """

    def __init__(
        self,
        what: str,
        session: Session,
        bundle: Bundle,
        allowed: Mapping[str, tuple[float, float]],
    ) -> None:
        def comparers() -> dict[str, Comparer]:
            return {name: Comparer(name, atol=a, rtol=r) for name, (a, r) in allowed.items()}

        self.what, self.session = what, session
        self._inputs, self._outputs = bundle.manifest.inputs, bundle.manifest.outputs
        # A built-in model is finite and equal on a fully masked row; a user's need only be finite.
        self._hold_masked = bool(bundle.manifest.model.get("builtin"))
        self._held, self._masked, self._noise = comparers(), comparers(), comparers()

    def add(self, case: Case, expected: Mapping[str, Array], *, noise: bool) -> None:
        """Run one case; with ``noise`` it also counts towards the noise ratio."""
        # With FP16 inputs the session takes another dtype than the model itself.
        feeds = {
            spec.name: case.feeds[spec.name].astype(spec.dtype, copy=False)
            for spec in self.session.inputs
        }
        got = self.session.run(feeds)
        masked = masked_rows(self._inputs, case)
        for spec in self._outputs:
            a, b, axis = got[spec.name], expected[spec.name], spec.axis(BATCH)
            if noise:
                self._noise[spec.name].add(a, b, case=case.name)
            if axis is None or self._hold_masked or a.shape != b.shape or not masked.any():
                self._held[spec.name].add(a, b, case=case.name)
                continue
            for rows, comparers in ((~masked, self._held), (masked, self._masked)):
                parts = a.compress(rows, axis), b.compress(rows, axis)
                comparers[spec.name].add(*parts, case=case.name)

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
    bundle: Bundle, record: EngineRecord, tolerances: Tolerances, stack: ExitStack
) -> list[Judge]:
    """Verify and load an engine, and its rounding twin where one must judge it.

    The sessions are closed when ``stack`` is.

    Raises:
        UsageError: if a tolerance is not allowed for the engine's precision.
        BundleError: if the graph is altered, or an FP16 graph has no rounding twin.
    """
    manifest = bundle.manifest
    allowed = {
        spec.name: tolerances.allowed(spec.name, record.precision) for spec in manifest.outputs
    }
    bundle.verify_graph(bundle.graph(record.graph))
    # One thread: the cases are small, and more would wait for each other on a busy machine.
    session: Session = backend(record.backend).load(bundle, record, 1)
    stack.callback(session.close)
    judges = [Judge(ENGINE, session, bundle, allowed)]
    if (record.backend, record.precision) == ("onnxruntime", "fp16"):
        twin = _open_twin(bundle, record, session)
        stack.callback(twin.close)
        judges.append(Judge(TWIN, twin, bundle, allowed))
    return judges


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
