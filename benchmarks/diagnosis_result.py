"""What the precision doctor found and did: for the terminal, for JSON, for the next build."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from attn_export.exporter.keep import KeepList

from .diagnosis_error import Error
from .diagnosis_faults import Fault
from .diagnosis_islands import Island


@dataclass(frozen=True, kw_only=True)
class Step:
    """One fault and what was done about it.

    Args:
        pins: the nodes that this step added to the FP32 ones.
        before: the twin's error over all cases; ``after`` with the pins.
        kept: False where the pins turned out not to be needed.
    """

    fault: Fault
    pins: tuple[str, ...]
    before: Error
    after: Error
    kept: bool = True

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "fault": self.fault.to_json(),
            "pins": list(self.pins),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "kept": self.kept,
        }


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The result of :func:`diagnose_fp16`.

    Args:
        reason: why parity does not hold, or ``""``.
        before: the error of FP16 as it was; ``after`` with all pins.
        pins: names of the nodes to add to the FP32 ones, in graph order.
        keep: the whole keep-list with them.
        islands: what they cost; of nodes that were FP32 before, nothing is said.
        casts: Casts in the FP16 graph before and after.
    """

    reason: str
    before: Error
    after: Error
    steps: tuple[Step, ...]
    pins: tuple[str, ...]
    keep: KeepList
    islands: tuple[Island, ...]
    casts: tuple[int, int]

    @property
    def passed(self) -> bool:
        """Whether parity holds, with the pins or without any."""
        return not self.reason

    def patterns(self) -> list[str]:
        """The pins as ``--nodes-to-exclude`` takes them."""
        return [re.escape(name) for name in self.pins]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "passed": self.passed,
            "reason": self.reason,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "steps": [step.to_json() for step in self.steps],
            "pins": list(self.pins),
            "keep_fp32": self.keep,
            "islands": [island.to_json() for island in self.islands],
            "casts": {"before": self.casts[0], "after": self.casts[1]},
        }

    def lines(self) -> list[str]:
        """What a terminal shows."""
        if self.passed and not self.steps:
            return [f"nothing is wrong: {self.after}"]
        found = [f"before: {self.before}"]
        for number, step in enumerate(self.steps, start=1):
            found.append(f"{number}. {step.fault}")
            op = step.fault.culprit
            found.append(
                f"   relative error {op.error_before:.2g} in what it reads, {op.error_after:.2g} "
                f"in its result; largest FP32 value {op.fp32_max:.4g}, headroom {op.headroom:.3g}x"
            )
            needed = "" if step.kept else " (not needed in the end)"
            found.append(f"   kept in FP32: {', '.join(step.pins)}{needed}")
            found.append(f"   then: {step.after}")
        found += [f"island: {island}" for island in self.islands]
        found.append(f"casts: {self.casts[0]} before, {self.casts[1]} after")
        verdict = "parity holds" if self.passed else f"parity does not hold: {self.reason}"
        return [*found, f"after: {self.after}; {verdict}"]
