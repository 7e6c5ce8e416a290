"""How near a quantized engine stays to the FP32 one on real requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from attn_export.errors import GateFailed

from .metrics import MAX_CLASSES, Array

LEAST_COSINE = 0.99


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One output over all requests.

    Args:
        labels: share of requests with the same argmax, for [2..1000 classes], else None.
        cosine: mean over the requests of the cosine of both output vectors.
        least_cosine: the worst request's.
        sqnr_db: signal to quantization noise, 10 log10(sum ref^2 / sum (ref - got)^2); None without
            any noise, and where something is not finite.
    """

    output: str
    requests: int
    labels: float | None
    cosine: float
    least_cosine: float
    sqnr_db: float | None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def is_near(results: Sequence[Accuracy], least_labels: float, least_cosine: float | None) -> bool:
    """Whether :func:`require_accuracy` would let it pass."""
    return all(found >= least for found, least, _ in _asked(results, least_labels, least_cosine))


def require_accuracy(
    results: Sequence[Accuracy], *, what: str, least_labels: float, least_cosine: float | None
) -> None:
    """The gate: the share of equal labels; the mean cosine where that is asked for instead.

    An output that holds no classes is held to a mean cosine of at least 0.99.

    Args:
        what: was measured, for the message.

    Raises:
        GateFailed: naming the output and both numbers.
    """
    for found, least, name in _asked(results, least_labels, least_cosine):
        if found < least:
            raise GateFailed(
                f"{what} is not near enough to FP32: {name} is {found:.4f} over "
                f"{results[0].requests} requests, at least {least:g} is asked for; calibrate with "
                "more or other data, exclude layers ('attn-export calibrate --sensitivity' finds "
                "them), or ask for less with --min-agreement or --min-cosine"
            )


def _asked(
    results: Sequence[Accuracy], least_labels: float, least_cosine: float | None
) -> Iterator[tuple[float, float, str]]:
    """What was found, what is asked for, and its name, for each output."""
    for result in results:
        if least_cosine is None and result.labels is not None:
            yield result.labels, least_labels, f"the share of equal labels of {result.output}"
        else:
            least = LEAST_COSINE if least_cosine is None else least_cosine
            yield result.cosine, least, f"the mean cosine of {result.output}"


def compare_output(name: str, expected: Array | list[Array], got: Array | list[Array]) -> Accuracy:
    """One output of the same requests: an array of shape [N, ...], or N arrays."""
    a = [np.asarray(row, np.float64).ravel() for row in expected]
    b = [np.asarray(row, np.float64).ravel() for row in got]
    cosines = [_cosine(x, y) for x, y in zip(a, b, strict=True)]
    signal = sum(float(x @ x) for x in a)
    noise = sum(float((x - y) @ (x - y)) for x, y in zip(a, b, strict=True))
    labels = None
    if isinstance(expected, np.ndarray) and isinstance(got, np.ndarray):
        is_classes = expected.ndim == 2 and 2 <= expected.shape[1] <= MAX_CLASSES
        if is_classes:
            labels = float((expected.argmax(1) == got.argmax(1)).mean())
    return Accuracy(
        output=name,
        requests=len(a),
        labels=labels,
        cosine=float(np.mean(cosines)),
        least_cosine=float(np.min(cosines)),
        sqnr_db=float(10 * np.log10(signal / noise)) if signal and 0 < noise < np.inf else None,
    )


def _cosine(a: Array, b: Array) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not norm:
        return float(not a.any() and not b.any())
    return float(a @ b) / norm if np.isfinite(b).all() else 0.0
