"""Where to clip a tensor: four ways to choose the bounds of INT8 from its histogram.

Each way chooses one bound t on ``|x|``, for symmetric INT8 with the step ``t / 127``. The low and
high bounds are what of ``[-t, t]`` the data reaches, so that an unsigned INT8, which has a zero
point, can use its whole range on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.errors import UsageError
from attn_export.lazy import require

from .histogram import Histogram

LEVELS = 127  # of symmetric INT8 on each side of zero
METHODS = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99
# ONNX Runtime's search for the least divergence takes time with the square of the bins.
_ENTROPY_HALF_BINS = 1024
# Candidates of the search for the least error: eight an octave over all of the histogram's bins,
# and then between the neighbours of the best.
_OCTAVES, _PER_OCTAVE, _REFINED = 12, 8, 33

Floats = npt.NDArray[np.float64]


def clipping_bounds(
    histogram: Histogram, method: str, *, percentile: float = PERCENTILE
) -> tuple[float, float]:
    """Choose the low and high bound of a tensor; ``low <= 0 <= high``.

    * ``minmax``: all that was seen.
    * ``percentile``: the bound that this percentage of the magnitudes lies below.
    * ``entropy``: the least Kullback-Leibler divergence between the values and their quantized
      form (Migacz, "8-bit inference with TensorRT", GTC 2017), by ONNX Runtime.
    * ``mse``: the least mean squared error of rounding and clipping together, see
      :func:`squared_error`.

    Args:
        percentile: in ``(0, 100]``; read by that method alone.

    Raises:
        UsageError: if the method is unknown or the percentile is out of range.
        MissingPackage: for ``entropy``, if ONNX Runtime is not installed.
    """
    if method not in METHODS:
        raise UsageError(f"the method is {method!r}; the methods are: {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise UsageError(f"the percentile is {percentile}; it must be above 0 and at most 100")
    bound = histogram.largest
    if histogram.low < histogram.high:  # a constant has no distribution to search
        if method == "percentile":
            bound = min(bound, percentile_bound(histogram, percentile))
        elif method == "entropy":
            bound = min(bound, entropy_bound(histogram))
        elif method == "mse":
            bound = mse_bound(histogram)
    return min(0.0, max(histogram.low, -bound)), max(0.0, min(histogram.high, bound))


def percentile_bound(histogram: Histogram, percentile: float) -> float:
    """The end of the first bin of ``|x|`` by which this percentage of the values is counted."""
    counted = np.cumsum(histogram.magnitudes())
    index = int(np.searchsorted(counted, counted[-1] * percentile / 100))
    return (index + 1) * histogram.width


def entropy_bound(histogram: Histogram) -> float:
    """The bound of ONNX Runtime's entropy calibrator, with 255 levels over both signs.

    Its defaults of 128 bins and 128 levels leave its search one candidate, the full range.
    """
    calibrate = require("onnxruntime.quantization.calibrate", extra="cpu")
    counts, edges = _centred(histogram)
    levels = 2 * LEVELS + 1
    collector = calibrate.HistogramCollector("entropy", False, counts.size, levels, 100.0, "same")
    low, high = np.float32(histogram.low), np.float32(histogram.high)
    bounds = collector.get_entropy_threshold((counts, edges, low, high), levels)
    return max(abs(float(bound)) for bound in bounds)


def _centred(histogram: Histogram) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Counts and edges on both sides of zero up to the largest magnitude, in fewer bins."""
    half = histogram.counts.size // 2
    group = half // _ENTROPY_HALF_BINS
    width = histogram.width * group
    used = min(_ENTROPY_HALF_BINS, int(histogram.largest // width) + 1)
    counts = histogram.counts[half - used * group : half + used * group]
    edges = np.arange(-used, used + 1, dtype=np.float32) * np.float32(width)
    return counts.reshape(-1, group).sum(axis=1), edges


def mse_bound(histogram: Histogram) -> float:
    """The bound with the least :func:`squared_error`, up to the largest magnitude."""
    octaves = np.arange(_OCTAVES * _PER_OCTAVE + 1) / _PER_OCTAVE
    coarse = histogram.largest * 2.0**-octaves
    best = int(np.argmin(squared_error(histogram, coarse)))
    around = coarse[max(best - 1, 0)], coarse[min(best + 1, coarse.size - 1)]
    fine = np.linspace(*around, _REFINED)
    return float(fine[np.argmin(squared_error(histogram, fine))])


def squared_error(histogram: Histogram, bounds: npt.NDArray[Any]) -> Floats:
    """The mean squared error of symmetric INT8 with each of these clipping bounds.

    The quantity of Nagel et al., "A White Paper on Neural Network Quantization" (2021,
    arXiv:2106.08295, MSE range setting): ``mean((x - s clip(round(x / s), -127, 127))**2)`` with
    the step ``s = t / 127``. Values are taken to be spread evenly within their bin. With
    ``u = |x| / s``, ``n = min(round(u), 127)`` and ``f = u - n``, the error from 0 to u adds up to
    ``n / 12 + f**3 / 3``: a twelfth for each whole step, and beyond 127 the clipping's square. So
    the mean over a bin is exact, however many steps or parts of one it spans.

    Args:
        bounds: float [N], each t above 0.

    Returns:
        float64 [N], in the tensor's unit squared.
    """
    counts = histogram.magnitudes()
    filled = np.flatnonzero(counts)
    share = counts[filled] / counts.sum()
    errors = np.empty(len(bounds))
    for index, bound in enumerate(bounds):
        step = float(bound) / LEVELS
        width = histogram.width / step
        begin: Floats = filled.astype(np.float64) * width
        per_step = _summed(begin + width) - _summed(begin)
        errors[index] = step * step * float(share @ per_step) / width
    return errors


def _summed(u: Floats) -> Floats:
    """The integral of the squared error from 0 to u, both in steps."""
    nearest: Floats = np.rint(u).clip(max=LEVELS)
    beyond: Floats = u - nearest
    return nearest / 12 + beyond**3 / 3
