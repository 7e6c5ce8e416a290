"""The bounds of each method, by hand, by brute force and by ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector

from attn_export.calibration.clipping import (
    METHODS,
    clipping_bounds,
    entropy_bound,
    mse_bound,
    percentile_bound,
    squared_error,
)
from attn_export.calibration.histogram import Histogram
from attn_export.errors import UsageError

Values = npt.NDArray[np.float32]


def counted(values: Any) -> Histogram:
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


def normal(rng: np.random.Generator) -> Any:
    return rng.standard_normal(200_000)


def laplace(rng: np.random.Generator) -> Any:
    return rng.laplace(size=200_000)


def one_sided(rng: np.random.Generator) -> Any:
    return rng.beta(0.3, 20, 200_000)


def outliers(rng: np.random.Generator) -> Any:
    return np.concatenate([rng.standard_normal(200_000), [-300.0, 260.0]])


@pytest.fixture(params=[normal, laplace, one_sided, outliers])
def values(request: pytest.FixtureRequest) -> Values:
    drawn: Values = request.param(np.random.default_rng(3)).astype(np.float32)
    return drawn


def brute_force_error(values: Values, bound: float) -> float:
    step = bound / 127
    exact = values.astype(np.float64)
    rounded = step * np.clip(np.rint(exact / step), -127, 127)
    return float(np.mean((exact - rounded) ** 2))


@pytest.mark.parametrize(
    ("values", "bounds"),
    [([-1.5, 3.0], (-1.5, 3.0)), ([2.0, 3.0], (0.0, 3.0)), ([-2.0, -1.0], (-2.0, 0.0))],
)
def test_minmax_is_what_was_seen_and_zero(values: list[float], bounds: tuple[float, float]) -> None:
    assert clipping_bounds(counted(values), "minmax") == bounds


def test_a_percentile_by_hand() -> None:
    """99 values of 1 and one of -64: bins of 128 / 4096 = 1/32, so 99 % end at 1 + 1/32."""
    histogram = counted([1.0] * 99 + [-64.0])
    assert clipping_bounds(histogram, "percentile", percentile=99) == (-1.03125, 1.0)
    assert clipping_bounds(histogram, "percentile", percentile=99.5) == (-64.0, 1.0)
    assert clipping_bounds(histogram, "percentile", percentile=100) == (-64.0, 1.0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
def test_percentiles_are_those_of_the_sorted_values_within_a_bin(
    values: Values, percentile: float
) -> None:
    histogram = counted(values)
    rank = math.ceil(values.size * percentile / 100)
    exact = float(np.sort(np.abs(values))[rank - 1])
    found = percentile_bound(histogram, percentile)
    assert exact < found <= exact + histogram.width


def test_percentiles_are_onnxruntimes_within_a_bin(values: Values) -> None:
    """ONNX Runtime takes the lower edge of the bin where the percentile is reached."""
    histogram = counted(values)
    edges = np.arange(4097, dtype=np.float32) * np.float32(histogram.width)
    collector = HistogramCollector("percentile", True, 4096, 128, 99.9, "same")
    low, high = np.float32(-histogram.largest), np.float32(histogram.largest)
    collector.histogram_dict = {"x": (histogram.magnitudes(), edges, low, high)}
    with contextlib.redirect_stdout(io.StringIO()):
        expected = float(collector.compute_percentile()["x"][1])
    assert percentile_bound(histogram, 99.9) == pytest.approx(
        expected + histogram.width, abs=histogram.width * 1e-3
    )


def test_the_squared_error_by_hand() -> None:
    """With t = 127 the step is 1: 0.25 is off by 0.25, 130 is clipped by 3, 2 is exact.

    Bins are 256 / 4096 = 1/16 wide and values are taken to be spread over them: over [0.25,
    0.3125) the mean square is (0.3125**3 - 0.25**3) / 3 * 16.
    """
    small = (0.3125**3 - 0.25**3) / 3 * 16
    exact = 0.0625**2 / 3
    clipped = (3.0625**3 - 3**3) / 3 * 16
    found = squared_error(counted([0.25, 2.0, 130.0]), np.array([127.0]))
    assert found.tolist() == pytest.approx([(small + exact + clipped) / 3])


def test_squared_errors_are_those_of_quantized_values(values: Values) -> None:
    bounds = np.abs(values).max() * np.array([1.0, 0.7, 0.3, 0.1, 0.03])
    expected = [brute_force_error(values, bound) for bound in bounds]
    assert squared_error(counted(values), bounds).tolist() == pytest.approx(expected, rel=0.01)


def test_no_bound_has_a_smaller_error_than_the_one_that_was_chosen(values: Values) -> None:
    found = brute_force_error(values, mse_bound(counted(values)))
    tried = np.abs(values).max() * np.linspace(0.005, 1, 400)
    assert found <= 1.01 * min(brute_force_error(values, bound) for bound in tried)


def test_mse_and_entropy_clip_rare_outliers() -> None:
    values = np.concatenate([np.random.default_rng(4).standard_normal(1_000_000), [60.0]])
    for method in ("mse", "entropy"):
        low, high = clipping_bounds(counted(values), method)
        assert -6 < low < -2, method
        assert 2 < high < 20, method


def test_the_entropy_bound_is_onnxruntimes_on_the_values_themselves(values: Values) -> None:
    """Its own histogram ends at the largest value; ours at the power of two above it."""
    largest = np.abs(values).max()
    scaled = (values * (np.float32(3.9999) / largest)).astype(np.float32)
    collector = HistogramCollector("entropy", False, 2048, 255, 100.0, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": scaled})
        low, high = collector.compute_entropy()["x"][:2]
    expected = min(max(abs(float(low)), abs(float(high))), 3.9999)
    # Counts at the edges of bins differ between the two, and the divergence is nearly flat.
    assert min(entropy_bound(counted(scaled)), 3.9999) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("value", "bounds"), [(0.0, (0.0, 0.0)), (0.5, (0.0, 0.5)), (-7.0, (-7.0, 0.0))]
)
def test_a_constant_keeps_its_value(method: str, value: float, bounds: tuple[float, float]) -> None:
    assert clipping_bounds(counted([value] * 9), method) == bounds


@pytest.mark.parametrize("method", METHODS)
def test_bounds_lie_within_the_data_on_both_sides_of_zero(method: str, values: Values) -> None:
    low, high = clipping_bounds(counted(values), method)
    assert min(0.0, float(values.min())) <= low <= 0 < high <= float(values.max())


@pytest.mark.parametrize("method", ["max", "MSE", ""])
def test_an_unknown_method_is_refused(method: str) -> None:
    with pytest.raises(UsageError, match="minmax, percentile, entropy, mse"):
        clipping_bounds(counted([1.0]), method)


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, float("nan")])
def test_an_impossible_percentile_is_refused(percentile: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 100"):
        clipping_bounds(counted([1.0]), "percentile", percentile=percentile)
