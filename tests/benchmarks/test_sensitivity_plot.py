"""The picture of a report."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.sensitivity_plot import plot_sensitivity
from attn_export.errors import HostError, MissingPackage, UsageError
from tests.benchmarks.test_sensitivity_report import REPORT


class Absent:
    """A finder for which matplotlib is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(MissingPackage, match=r"attn-export\[plot\]"):
        plot_sensitivity(REPORT, tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_it_names_every_layer_and_role_and_what_was_gained(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "plot.svg"
    plot_sensitivity(REPORT, path)
    text = path.read_text()
    for expected in ("layers.1", "layers.*.query.gemm", "no noise", "12.3   same label 87.5%"):
        assert f"<!-- {expected} -->" in text
    assert "same label 90.00%" in text
    assert "same label 99.80%" in text


def test_a_report_without_excludes_or_noise_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rows = tuple(replace(row, sqnr_db=None) for row in REPORT.rows)
    path = tmp_path / "plot.png"
    plot_sensitivity(replace(REPORT, rows=rows, excludes=()), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_places_and_formats_that_do_not_work_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(UsageError, match=r"plot\.xyz"):
        plot_sensitivity(REPORT, tmp_path / "plot.xyz")
    with pytest.raises(HostError, match="choose another place"):
        plot_sensitivity(REPORT, tmp_path / "missing" / "plot.png")
