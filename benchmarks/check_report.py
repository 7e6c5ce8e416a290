"""What the gates found, and the exit code that follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from attn_export.errors import (
    AttnExportError,
    BuildFailed,
    GateFailed,
    HostError,
    Inconclusive,
    UsageError,
)

from .check_decision import Verdict
from .stats import Interval

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate's verdict on one engine.

    Args:
        gate: ``"parity"``, ``"speedup"`` or ``"regression"``.
        text: the numbers behind the verdict, or why there is none.
        ratio: of the gates on speed: how many times the baseline, with its 95 % interval.
        limit: what the ratio has to exceed.
        ratios: the measured ratio of each round.
        noise: their coefficient of variation.
        samples_per_s: the medians, by contestant.
        seconds: what the measurement took; two gates that share one both say it.
        error: what a contestant, or the gate itself, failed with.
    """

    gate: str
    engine: str
    verdict: Verdict
    text: str
    ratio: Interval | None = None
    limit: float | None = None
    ratios: list[float] = field(default_factory=list)
    noise: float | None = None
    samples_per_s: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: AttnExportError | None = None

    @property
    def name(self) -> str:
        """The gate and the engine."""
        return f"{self.gate}:{self.engine}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict; of an error the name of its class."""
        return {
            "gate": self.gate,
            "engine": self.engine,
            "verdict": self.verdict,
            "text": self.text,
            "ratio": asdict(self.ratio) if self.ratio else None,
            "limit": self.limit,
            "rounds": len(self.ratios),
            "ratios": self.ratios,
            "noise": self.noise,
            "samples_per_s": self.samples_per_s,
            "seconds": self.seconds,
            "error": type(self.error).__name__ if self.error else None,
        }


def failed_result(gate: str, engine: str, error: AttnExportError) -> GateResult:
    """A gate that could not be tried, because something in it failed."""
    return GateResult(gate=gate, engine=engine, verdict="error", text=str(error), error=error)


def skipped_result(gate: str, engine: str, reason: str) -> GateResult:
    """A gate that does not apply."""
    return GateResult(gate=gate, engine=engine, verdict="skipped", text=reason)


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of ``attn-export check``.

    Args:
        baseline: in words, or None.
        settings: what the measurements ran with, and on which hardware.
        load_average: of the last minute, before and after.
        notes: what a reader must know before the numbers.
    """

    bundle: str
    model: str
    baseline: str | None
    results: list[GateResult]
    settings: dict[str, Any]
    load_average: tuple[float, float]
    notes: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @property
    def problem(self) -> AttnExportError | None:
        """What is wrong, or None.

        What could not be tried comes first: exit code 1 says that every gate was tried and one of
        them said no.
        """
        if unanswered := [*self._unanswered()]:
            kind: type[AttnExportError] = type(unanswered[0].error or HostError())
            if issubclass(kind, UsageError):  # the requests were fit: an engine is not
                kind = BuildFailed
            elif kind.__init__ is not AttnExportError.__init__:  # MissingPackage has its own text
                kind = HostError
            return kind("; ".join(f"{result.name}: {result.text}" for result in unanswered))
        if failed := self._of("fail"):
            return GateFailed("; ".join(f"{result.name}: {result.text}" for result in failed))
        if unclear := self._of("inconclusive"):
            names = ", ".join(result.name for result in unclear)
            return Inconclusive(
                f"{names}: the noise is larger than the difference asked about; run it again on an "
                "idle machine"
            )
        return None

    @property
    def verdict(self) -> str:
        """One word: PASS, FAIL, INCONCLUSIVE or ERROR."""
        problem = self.problem
        words = {type(None): "PASS", GateFailed: "FAIL", Inconclusive: "INCONCLUSIVE"}
        return words.get(type(problem), "ERROR")

    @property
    def headline(self) -> str:
        """The verdict and the numbers of gates behind it."""
        counts = Counter(result.verdict for result in self.results)
        said = ", ".join(f"{number} {word}" for word, number in counts.items())
        return f"{self.verdict}: {said}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict, the verdict first."""
        problem = self.problem
        return {
            "schema_version": self.schema_version,
            "verdict": self.verdict,
            "exit_code": problem.exit_code if problem else 0,
            "bundle": self.bundle,
            "model": self.model,
            "baseline": self.baseline,
            "results": [result.to_json() for result in self.results],
            "settings": self.settings,
            "load_average": list(self.load_average),
            "notes": self.notes,
        }

    def require_pass(self) -> None:
        """Raise what is wrong.

        Raises:
            GateFailed: if a gate said no.
            Inconclusive: if none did, and noise hides an answer.
            AttnExportError: what the first one failed with, if a gate could not be tried.
        """
        if problem := self.problem:
            raise problem

    def _of(self, verdict: Verdict) -> list[GateResult]:
        return [result for result in self.results if result.verdict == verdict]

    def _unanswered(self) -> Iterator[GateResult]:
        """What failed; and of a gate that applied to no engine at all, the reasons."""
        yield from self._of("error")
        for gate in dict.fromkeys(result.gate for result in self.results):
            of_gate = [result for result in self.results if result.gate == gate]
            if all(result.verdict == "skipped" for result in of_gate):
                yield from of_gate
