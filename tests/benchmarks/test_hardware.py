"""What GPUs can do, as far as anybody published it."""

from __future__ import annotations

import pytest

from attn_export.benchmarks.hardware import GPUS, TIERS, Limits
from attn_export.engines.targets import TARGETS
from attn_export.errors import UsageError

ROWS = [limits for tiers in GPUS.values() for limits in tiers.values()]


def test_every_gpu_that_engines_are_built_for_has_a_data_sheet() -> None:
    assert list(GPUS) == list(TARGETS)
    assert all("datasheet" in tiers for tiers in GPUS.values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.tier}")
def test_a_row_stands_under_its_own_name_and_names_its_source(row: Limits) -> None:
    assert GPUS[row.name][row.tier] is row
    assert row.tier in TIERS
    assert row.source
    assert Limits.from_json(row.to_json()) == row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.tier}")
def test_a_data_sheet_fits_the_memory_that_the_driver_shows(row: Limits) -> None:
    shown = TARGETS[row.name].memory_mib << 20
    assert row.memory_bytes is not None
    assert 0.9 * row.memory_bytes < shown <= row.memory_bytes  # ECC takes some


@pytest.mark.parametrize("tier", ["measured", "sustained"])
def test_nothing_reaches_more_than_its_data_sheet(tier: str) -> None:
    sheet, reached = GPUS["t4"]["datasheet"], GPUS["t4"][tier]
    assert reached.bytes_per_s < sheet.bytes_per_s
    assert all(speed < sheet.flops[name] for name, speed in reached.flops.items())


def test_peaks_are_dense_and_no_sparse_ones() -> None:
    for name in ("l4", "a10", "a100", "h100"):
        flops = GPUS[name]["datasheet"].flops
        assert flops["int8"] / flops["fp16"] == pytest.approx(2, rel=0.01)


def test_a_number_that_nobody_published_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(
        UsageError, match="no measured int8 speed is known of t4; known: fp32, fp16"
    ):
        GPUS["t4"]["measured"].flops_of("int8")
