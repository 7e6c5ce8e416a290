"""The picture of a roofline."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from attn_export.benchmarks.roofline_plot import plot_roofline
from attn_export.errors import HostError, MissingPackage, UsageError
from attn_export.spec import EncoderSpec
from tests.benchmarks.test_estimate_study import HERE, study
from tests.benchmarks.test_sensitivity_plot import Absent


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(MissingPackage, match=r"attn-export\[plot\]"):
        plot_roofline(study().machine.rooflines, tmp_path / "plot.png", model="MQA")
    assert list(tmp_path.iterdir()) == []


def test_it_names_the_model_the_tiers_and_the_kernels(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "plot.svg"
    found = study(dtype="int8")
    plot_roofline(found.machine.rooflines, path, model="MQA")
    text = path.read_text()
    rates = [f"{line.samples_per_s:,.0f} {tier}" for tier, line in found.machine.rooflines.items()]
    for expected in (
        f"MQA INT8 on T4, batch 32 of 128 tokens: at most {', '.join(rates)} samples/s",
        "datasheet: 130 INT8, 65 FP16 TFLOP/s, 320 GB/s",
        "sustained: 43 INT8, 23 FP16 TFLOP/s, 220 GB/s",
        "QKV GEMM",
        "residual + norm",
        "the others",
    ):
        assert f"<!-- {expected} -->" in text


@pytest.mark.parametrize("machine", ["t4", "h100", "here"])
def test_any_number_of_tiers_is_drawn(machine: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "plot.png"
    tiny = EncoderSpec(num_kv_heads=1, hidden_size=8, num_heads=1, num_layers=1)
    found = study(tiny, machine=machine, here=HERE)
    plot_roofline(found.machine.rooflines, path, model="MQA")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_places_formats_and_machines_that_do_not_work_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    lines = study().machine.rooflines
    with pytest.raises(UsageError, match=r"plot\.xyz"):
        plot_roofline(lines, tmp_path / "plot.xyz", model="MQA")
    with pytest.raises(HostError, match="choose another place"):
        plot_roofline(lines, tmp_path / "missing" / "plot.png", model="MQA")
    with pytest.raises(UsageError, match="no tier of this machine is known"):
        plot_roofline({}, tmp_path / "plot.png", model="MQA")
