"""The precision doctor: find what breaks FP16, keep it in FP32, type again, until parity holds.

The shipped files are read and never marked or changed: graphs are typed anew in a folder of their
own, and judged by their rounding twins, because a CPU does not show FP16 overflow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from attn_export.errors import BuildFailed
from attn_export.exporter.export import write_checked
from attn_export.exporter.fp16 import to_fp16
from attn_export.exporter.graph_file import read_graph
from attn_export.exporter.keep import FP16_MAX, KeepList, keep_list
from attn_export.exporter.twin import write_twin
from attn_export.lazy import require

from .diagnosis_error import Allowed, Error, measure, worst
from .diagnosis_faults import Fault, Target, fault_of, prescribe
from .diagnosis_islands import islands
from .diagnosis_pair import Pair
from .diagnosis_prefixes import Array, Feeds
from .diagnosis_result import Diagnosis, Step

MAX_STEPS = 32
PATIENCE = 4  # steps that may pass without the error becoming smaller

Say = Callable[[str], None]


def diagnose_fp16(
    fp32: Path,
    workdir: Path,
    cases: Iterable[tuple[Feeds, Mapping[str, Array]]],
    *,
    allowed: Allowed,
    nodes: Sequence[str] = (),
    op_types: Sequence[str] = (),
    fp16_io: bool = False,
    say: Say = lambda _: None,
) -> Diagnosis:
    """Type a graph to FP16 and pin what breaks it to FP32 until its rounding twin holds parity.

    Pins that turn out not to be needed are taken back. Where nothing more helps, the diagnosis
    says so and ``passed`` is False.

    Args:
        workdir: an existing folder with room for a copy of the weights; left as it was.
        cases: feeds in the FP32 graph's dtypes with the outputs that are right. Where an expected
            value is NaN, the graph's need only be finite.
        allowed: (atol, rtol) by output.
        nodes: what stays FP32 already, as ``op_types`` and ``fp16_io`` like :func:`keep_list`
            and :func:`to_fp16` take them.

    Raises:
        UsageError: if ``nodes`` or ``op_types`` match nothing.
        BuildFailed: if ``nodes`` and ``op_types`` leave nothing to be FP16.
        MissingPackage: if ONNX Runtime is not installed.
    """
    with TemporaryDirectory(dir=workdir, prefix=".diagnose-") as folder:
        doctor = _Doctor(
            fp32=fp32,
            folder=Path(folder),
            cases=list(cases),
            allowed=allowed,
            nodes=nodes,
            op_types=op_types,
            fp16_io=fp16_io,
        )
        return doctor.treat(say)


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """A typed graph with some pins, and how its twin did."""

    twin: Path
    keep: KeepList
    casts: int
    errors: list[Error]

    @property
    def error(self) -> Error:
        return worst(self.errors)


@dataclass(frozen=True, kw_only=True)
class _Doctor:
    """What :func:`diagnose_fp16` was asked."""

    fp32: Path
    folder: Path
    cases: list[Target]
    allowed: Allowed
    nodes: Sequence[str]
    op_types: Sequence[str]
    fp16_io: bool

    def treat(self, say: Say) -> Diagnosis:
        first = last = self._attempt(())
        steps: list[Step] = []
        reason = "" if last.error.passed else self._reference_problem()
        while not (last.error.passed or reason):
            fault = self._fault(last)
            pins = _new_pins(fault, last.keep)
            if fault is None or not pins:
                reason = f"nothing is left to keep in FP32: {fault or last.error}"
                break
            say(str(fault))
            try:
                attempt = self._attempt([*_pinned(steps), *pins])
            except BuildFailed as error:
                reason = str(error)
                break
            steps.append(Step(fault=fault, pins=pins, before=last.error, after=attempt.error))
            last = attempt
            reason = "" if last.error.passed else _given_up(steps)
        if not reason:
            steps, last = self._without_needless(steps, last)
        return self._diagnosis(reason, first, last, steps)

    def _attempt(self, pins: Sequence[str]) -> _Attempt:
        model = read_graph(self.fp32)
        patterns = [*self.nodes, *(re.escape(name) for name in pins)]
        keep = keep_list(model, nodes=patterns, op_types=self.op_types)
        casts = to_fp16(model, keep, fp16_io=self.fp16_io)
        typed, twin = self.folder / "typed.onnx", self.folder / "twin.onnx"
        write_twin(typed, write_checked(model, typed), twin)
        return _Attempt(twin=twin, keep=keep, casts=casts, errors=self._judge(twin))

    def _judge(self, graph: Path) -> list[Error]:
        """Run a graph's file as it is."""
        ort = require("onnxruntime", extra="cpu")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        halves = {i.name for i in session.get_inputs() if i.type == "tensor(float16)"}
        names = [output.name for output in session.get_outputs()]
        errors = []
        for feeds, expected in self.cases:
            with np.errstate(over="ignore"):
                given = {n: a.astype(np.float16) if n in halves else a for n, a in feeds.items()}
            got = dict(zip(names, session.run(names, given), strict=True))
            errors.append(measure(got, expected, self.allowed))
        return errors

    def _reference_problem(self) -> str:
        """What FP32 islands cannot mend, or ``""``."""
        for feeds, _ in self.cases if self.fp16_io else ():
            for name, array in feeds.items():
                if array.dtype == np.float32 and np.abs(array).max(initial=0) > FP16_MAX:
                    return f"the input {name!r} is beyond FP16's range; take it in FP32"
        error = worst(self._judge(self.fp32))
        return "" if error.passed else f"the FP32 graph itself is off: {error}"

    def _fault(self, last: _Attempt) -> Fault | None:
        """Looked for with the case that is furthest off, and with the largest that is off."""
        sizes = [sum(array.size for array in feeds.values()) for feeds, _ in self.cases]
        off = [index for index, error in enumerate(last.errors) if not error.passed]
        shown = {
            max(off, key=lambda index: (last.errors[index].excess, -sizes[index])),
            max(off, key=lambda index: sizes[index]),
        }
        targets = [self.cases[index] for index in sorted(shown)]
        return fault_of(Pair(self.fp32, last.twin), targets, self.allowed)

    def _without_needless(
        self, steps: Sequence[Step], last: _Attempt
    ) -> tuple[list[Step], _Attempt]:
        """Take back the steps whose pins parity does not need."""
        found = list(steps)
        for index, step in enumerate(steps) if len(steps) > 1 else ():
            fewer = [*found[:index], replace(step, kept=False), *found[index + 1 :]]
            attempt = self._attempt(_pinned(fewer))
            if attempt.error.passed:
                found, last = fewer, attempt
        return found, last

    def _diagnosis(
        self, reason: str, first: _Attempt, last: _Attempt, steps: Sequence[Step]
    ) -> Diagnosis:
        model = read_graph(self.fp32)
        pinned = set(_pinned(steps))
        kept = {name for names in last.keep.values() for name in names}
        flops = steps[0].fault.flops if steps else {}
        return Diagnosis(
            reason=reason,
            before=first.error,
            after=last.error,
            steps=tuple(steps),
            pins=tuple(node.name or "" for node in model.graph if node.name in pinned),
            keep=last.keep,
            islands=tuple(islands(model, pinned, kept, flops)),
            casts=(first.casts, last.casts),
        )


def _new_pins(fault: Fault | None, keep: KeepList) -> tuple[str, ...]:
    kept = {name for names in keep.values() for name in names}
    return tuple(name for name in prescribe(fault) if name not in kept) if fault else ()


def _pinned(steps: Sequence[Step]) -> list[str]:
    return [name for step in steps if step.kept for name in step.pins]


def _given_up(steps: Sequence[Step]) -> str:
    """Why no further step is tried, or ``""``."""
    error = steps[-1].after
    if len(steps) == MAX_STEPS:
        return f"after {MAX_STEPS} steps: {error}"
    helped = len(steps) < PATIENCE or error.excess < steps[-PATIENCE].before.excess
    if not helped and math.isfinite(error.excess):
        return f"the last {PATIENCE} steps did not help: {error}"
    return ""
