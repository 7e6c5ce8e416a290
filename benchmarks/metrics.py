"""How far one engine's outputs are from the reference: numbers, and a verdict per output."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Verdict = Literal[
    "pass", "fail", "nonfinite", "reference nonfinite", "shape mismatch", "nothing compared"
]

MAX_CLASSES = 1000

# Absolute errors are counted in bins 1 % wide, so that p99 needs no list of all errors.
_BINS_FROM, _BINS_TO, _BIN_RATIO = 1e-12, 1e8, 1.01
_EDGES = np.exp(
    np.arange(np.log(_BINS_FROM), np.log(_BINS_TO) + np.log(_BIN_RATIO), np.log(_BIN_RATIO))
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result for one output, over all cases.

    Errors are absolute differences. They cover the pairs where both values are finite.

    Args:
        p99_abs: 99 % of the errors are at or below it; exact to 1 %.
        cosine: of all candidate values with all reference values; None where a side is zero.
        labels: share of rows with the same argmax, for [B, 2..1000 classes] floats, else None.
        smallest_tolerance: the least t that would pass as ``atol = rtol = t``.
        exceeded: how many values are outside the tolerance.
        nonfinite: how many candidate values are NaN or infinite.
        worst_case: the case with the largest error.
        least_cosine: what was asked of ``cosine`` in place of the tolerance, or None.
        detail: for a shape mismatch, which shapes.
    """

    output: str
    verdict: Verdict
    atol: float
    rtol: float
    values: int
    max_abs: float
    mean_abs: float
    p99_abs: float
    cosine: float | None
    labels: float | None
    smallest_tolerance: float
    exceeded: int
    nonfinite: int
    worst_case: str
    detail: str
    least_cosine: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every value is finite and all are as near as was asked."""
        return self.verdict == "pass"

    @property
    def reason(self) -> str:
        """Why it did not pass, in words."""
        if self.verdict == "nonfinite":
            return f"{self.nonfinite} of {self.values} values are NaN or infinite"
        if self.verdict == "reference nonfinite":
            return "the reference itself is NaN or infinite"
        if self.verdict != "fail":
            return self.detail or self.verdict
        if self.least_cosine is not None:
            return f"the cosine of all values is {self.cosine or 0.0:.4f}"
        return f"{self.exceeded} of {self.values} values are outside the tolerance"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


class Comparer:
    """Adds up one output's errors case by case; its memory does not grow with the cases.

    A value passes where ``|candidate - reference| <= atol + rtol * |reference|``.

    Args:
        least_cosine: judge all values together by their cosine instead.
    """

    def __init__(
        self, output: str, *, atol: float, rtol: float, least_cosine: float | None = None
    ) -> None:
        self.output, self.atol, self.rtol = output, atol, rtol
        self.least_cosine = least_cosine
        self._values = self._exceeded = self._nonfinite = self._reference_nonfinite = 0
        self._sum = self._max = self._tolerance = 0.0
        self._worst_case = self._detail = ""
        self._dot = self._candidate_square = self._reference_square = 0.0
        self._rows = self._same_labels = 0
        self._counts = np.zeros(len(_EDGES) + 1, dtype=np.int64)

    def add(self, candidate: Array, reference: Array, *, case: str = "") -> None:
        """Compare two arrays of one case."""
        if candidate.shape != reference.shape:
            self._detail = self._detail or (
                f"shape {list(candidate.shape)}, expected {list(reference.shape)}"
                + (f" in case {case}" if case else "")
            )
            return
        self._add_labels(candidate, reference)
        a, b = candidate.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
        finite_a, finite_b = np.isfinite(a), np.isfinite(b)
        self._values += a.size
        self._nonfinite += int((~finite_a).sum())
        self._reference_nonfinite += int((~finite_b).sum())
        both = finite_a & finite_b
        if both.any():
            self._add_errors(a[both], b[both], case)

    def _add_errors(self, a: Array, b: Array, case: str) -> None:
        error, size = np.abs(a - b), np.abs(b)
        worst = float(error.max())
        if not self._worst_case or worst > self._max:
            self._worst_case = case
        self._max = max(self._max, worst)
        self._sum += float(error.sum())
        self._tolerance = max(self._tolerance, float((error / (1 + size)).max()))
        self._exceeded += int((error > self.atol + self.rtol * size).sum())
        self._dot += float(a @ b)
        self._candidate_square += float(a @ a)
        self._reference_square += float(b @ b)
        bins = np.searchsorted(_EDGES, error)
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def _add_labels(self, candidate: Array, reference: Array) -> None:
        is_classes = reference.ndim == 2 and 2 <= reference.shape[1] <= MAX_CLASSES
        if is_classes and np.issubdtype(reference.dtype, np.floating):
            self._rows += len(reference)
            self._same_labels += int((candidate.argmax(1) == reference.argmax(1)).sum())

    def result(self) -> Comparison:
        """The numbers so far, and the verdict on them."""
        compared = int(self._counts.sum())
        return Comparison(
            output=self.output,
            verdict=self._verdict(),
            atol=self.atol,
            rtol=self.rtol,
            values=self._values,
            max_abs=self._max,
            mean_abs=self._sum / compared if compared else 0.0,
            p99_abs=self._p99(compared),
            cosine=self._cosine(),
            labels=self._same_labels / self._rows if self._rows else None,
            smallest_tolerance=self._tolerance,
            exceeded=self._exceeded,
            nonfinite=self._nonfinite,
            worst_case=self._worst_case,
            detail=self._detail,
            least_cosine=self.least_cosine,
        )

    def _cosine(self) -> float | None:
        norm = np.sqrt(self._candidate_square) * np.sqrt(self._reference_square)
        return float(self._dot / norm) if norm else None

    def _verdict(self) -> Verdict:
        if self._detail:
            return "shape mismatch"
        if self._reference_nonfinite:
            return "reference nonfinite"
        if self._nonfinite:
            return "nonfinite"
        if not self._values:
            return "nothing compared"
        if self.least_cosine is not None:
            return "pass" if (self._cosine() or 0.0) >= self.least_cosine else "fail"
        return "fail" if self._exceeded else "pass"

    def _p99(self, compared: int) -> float:
        """The upper edge of the bin that holds the 99th percentile."""
        if not compared:
            return 0.0
        rank = np.searchsorted(np.cumsum(self._counts), np.ceil(0.99 * compared))
        if rank == 0 or rank >= len(_EDGES):
            return 0.0 if rank == 0 else self._max
        return min(float(_EDGES[rank]), self._max)


def compare(
    candidate: Array, reference: Array, *, atol: float, rtol: float, output: str = "output"
) -> Comparison:
    """Compare two arrays of the same shape."""
    comparer = Comparer(output, atol=atol, rtol=rtol)
    comparer.add(candidate, reference)
    return comparer.result()
