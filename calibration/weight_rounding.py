"""Round a weight to INT8 so that its product changes least on real activations.

Rounding each number to its nearest is best for activations that know no directions. Real ones lie
mostly in a few, and there the errors of many rows can cancel: each row's rounding error is taken
out of the rows that are still to come, by as much as their activations go together (GPTQ: Frantar
et al. 2022, arXiv:2210.17323, algorithm 1, the rows of the largest activations first). It costs
nothing at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.errors import BuildFailed, BundleError, InputError
from attn_export.lazy import require

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Moments = Mapping[str, Array]

LEVELS = 127
# Of the mean squared activation, added to each: directions that the data never took have none.
_DAMPING = 0.01
# Rows that are rounded before the rest of the weight is corrected for them.
_BLOCK = 64


def second_moments(
    graph: Path,
    tensors: Sequence[str],
    batches: Iterable[Feeds],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda batches: None,
) -> dict[str, Array]:
    """``sum of x x^T`` over all positions, float32 [K, K], of tensors of rank 2 or more, [.., K].

    One batch's tensors are in memory at a time, and ``4 K^2`` bytes for each tensor.

    Args:
        batches: feeds without padding: every position counts.
        threads: of one run; None: one for each CPU that this process may use.
        progress: called with the batches seen so far.

    Raises:
        InputError: if there are no batches.
        BuildFailed: if a tensor is NaN or infinite.
        AttnExportError: as :func:`.collect.collect` does.
    """
    require("onnx", extra="export")
    from .collect import TappedGraph

    tapped = TappedGraph(graph, tensors, threads)
    moments: dict[str, Array] = {}
    count = 0
    for count, feeds in enumerate(batches, start=1):
        for name, values in tapped.run(feeds).items():
            rows = values.reshape(-1, values.shape[-1])
            moments[name] = moments.get(name, np.float32(0)) + rows.T @ rows
        progress(count)
    if not count:
        raise InputError("there are no calibration batches; give data with at least one sequence")
    for name, moment in moments.items():
        if not np.isfinite(moment).all():
            raise BuildFailed(
                f"the tensor {name} is NaN or infinite on this data: the FP32 graph itself fails; "
                "correct the model or the data"
            )
    return moments


def compensated(array: Array, scales: Array, moment: Array) -> Array:
    """INT8 of a weight [K, N] with these scales [N], for activations of this second moment [K, K].

    Raises:
        BundleError: if the moment has another size.
    """
    size = len(array)
    if moment.shape != (size, size):
        raise BundleError(
            f"a second moment is {list(moment.shape)} and its weight {list(array.shape)}; collect "
            "them from the same graph"
        )
    energy = np.diag(moment).astype(np.float64)
    if not energy.any():
        return _nearest(array, scales)
    order = np.argsort(-energy, kind="stable")
    factors = _factors(moment[np.ix_(order, order)].astype(np.float64), energy.mean())
    left = array[order].astype(np.float32)
    rounded = np.empty(array.shape, np.int8)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = np.empty((stop - start, array.shape[1]), np.float32)
        for row in range(start, stop):
            whole = _nearest(left[row], scales)
            rounded[order[row]] = whole
            error = errors[row - start] = (left[row] - whole * scales) / factors[row, row]
            left[row + 1 : stop] -= np.outer(factors[row, row + 1 : stop], error)
        left[stop:] -= factors[start:stop, stop:].T @ errors
    return rounded


def _factors(moment: Array, mean: float) -> Array:
    """The upper Cholesky factor of the inverse: row by row what an error does to later rows."""
    moment[np.diag_indices_from(moment)] += _DAMPING * mean
    factors: Array = np.linalg.cholesky(np.linalg.inv(moment)).T
    return factors.astype(np.float32)


def _nearest(array: Array, scales: Array) -> Array:
    return np.clip(np.rint(array / scales), -LEVELS, LEVELS).astype(np.int8)
