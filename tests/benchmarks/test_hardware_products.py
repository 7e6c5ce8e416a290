"""What is timed are the products that are named: every library's against NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from attn_export.benchmarks import hardware_products
from attn_export.benchmarks.hardware_products import ROWS, SIZE, WEIGHTS, WORK, rate


def chain() -> npt.NDArray[np.float32]:
    """All weights one after the other, by NumPy."""
    x, weights = hardware_products._matrices()
    for weight in weights:
        x = x @ weight
    return x


def result(work: str) -> npt.NDArray[Any]:
    """What the last product of a library's chain gives."""
    library = work.partition("-")[0]
    for module in hardware_products.NEEDS.get(library, (library,)):
        pytest.importorskip(module, reason=f"{module} is not installed")
    step, flops = WORK[work]()
    assert flops == 2 * ROWS * SIZE * SIZE * WEIGHTS
    return np.asarray(step()[0])


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("work", ["onnxruntime-fp32", "openvino-fp32"])
def test_a_chain_gives_what_numpys_gives(work: str) -> None:
    np.testing.assert_allclose(result(work), chain(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("work", "least"),
    [("openvino-bf16", 0.999), ("openvino-int8", 0.95), ("onnxruntime-int8", 0.95)],
)
def test_fewer_bits_give_nearly_the_same(work: str, least: float) -> None:
    found = result(work)
    if found.dtype == np.uint8:
        found = found.astype(np.float32) - 128
    assert cosine(found, chain()) > least


@pytest.mark.parametrize("work", ["numpy-fp32", "torch-fp32", "torch-bf16"])
def test_work_without_a_result_can_be_repeated(work: str) -> None:
    pytest.importorskip(work.partition("-")[0], reason=f"{work} is not installed")
    step, flops = WORK[work]()
    assert rate(step, flops, 0.0) > 0


def test_a_copy_counts_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_products, "LEAST_COPY_BYTES", 64)
    monkeypatch.setattr(hardware_products, "ALL_COPIES_BYTES", 64)
    step, moved = WORK["numpy-copy"]()
    step()
    assert moved == 2 * 64


def test_a_rate_is_units_over_the_time_they_took() -> None:
    calls: list[None] = []
    found = rate(lambda: calls.append(None), 10.0, 0.05)
    assert found <= 10.0 * len(calls) / 0.05
    assert rate(lambda: None, 10.0, 0.0) > 0  # at least one call
