"""The picture of the matrix: what is in it, and what it cannot draw."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.matrix_cell import PADDED
from attn_export.benchmarks.matrix_plot import plot_matrix
from attn_export.errors import HostError, MissingPackage, UsageError

from .matrix_samples import sample_report

pytest.importorskip("matplotlib")


def test_a_png_is_written(tmp_path: Path) -> None:
    plot_matrix(sample_report(), tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.png"]


def test_titles_names_and_numbers_are_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    plot_matrix(sample_report(), tmp_path / "matrix.svg")
    text = (tmp_path / "matrix.svg").read_text(encoding="utf-8")
    for words in (
        "Throughput, padded to 128 tokens",
        "Throughput, bucketed by length",
        "Latency of 64 requests",
        "Times as fast as eager MHA FP32, padded, batch 64",
        "eager autocast",
        "engine BF16",
        "log scale",
        "1.40x MQA",
        "67.2x MQA",  # 600 * 1.4 * 4 / 50
        "18% less memory than MHA at batch 64, padded (the source exercise: 22% less)",
    ):
        assert words in text, words
    assert "engine FP16" not in text


def test_one_mode_and_one_batch_are_enough(tmp_path: Path) -> None:
    report = sample_report()
    cells = [cell for cell in report.cells if cell.batch == 16 and cell.mode == PADDED]
    plot_matrix(sample_report(cells=cells), tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "changed", "error", "message"),
    [
        ("matrix.png", {"cells": []}, UsageError, "no cell of the matrix was measured"),
        ("matrix.wav", {}, UsageError, r"matrix\.wav: .*not supported"),
        ("file/matrix.png", {}, HostError, "not a directory"),
    ],
)
def test_what_cannot_be_drawn(
    tmp_path: Path, name: str, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(error, match=message):
        plot_matrix(sample_report(**changed), tmp_path / name)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingPackage, match=r"attn-export\[plot\]"):
        plot_matrix(sample_report(), tmp_path / "matrix.png")
