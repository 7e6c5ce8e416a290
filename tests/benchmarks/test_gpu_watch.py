"""The GPU's state from a stand-in of nvidia-smi on the PATH."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_export.benchmarks.gpu_watch import GpuWatch, noted, summarised

# It knows one of the two names of the reasons, and loops when it is asked to.
TOOL = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$*" in
  *query-compute-apps*) cat {folder}/processes; exit 0 ;;
  *{reasons}.active*) ;;
  *) echo "Field is not a valid field to query."; exit 2 ;;
esac
line="Tesla T4, 580.82.07, Enabled, %s, 5001, 1590, 5001, 71, 69.5, 70.00, 1200, %s\\n"
case "$*" in
  *loop-ms*) while :; do
      printf "$line" 300 0x0000000000000001
      printf "$line" 585 0x0000000000000004
      printf "$line" 1590 0x0000000000000000
      printf "Tesla T4, 5"
      sleep 0.05; printf "\\n"; done ;;
  *) printf "$line" 300 0x0000000000000001 ;;
esac
"""
SmiTool = Callable[..., Path]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmiTool:
    def install(reasons: str = "clocks_event_reasons", processes: str = "") -> Path:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(TOOL.format(folder=tmp_path, reasons=reasons))
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        (tmp_path / "processes").write_text(processes)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return tmp_path

    return install


@pytest.mark.parametrize("reasons", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_a_measurement_under_a_power_cap(smi: SmiTool, reasons: str) -> None:
    smi(reasons, processes="4711\n")
    with GpuWatch() as watch:
        time.sleep(0.3)
    before, during = watch.found["before"], watch.found["during"]
    assert (before["name"], before["driver"], before["ecc"]) == ("Tesla T4", "580.82.07", "Enabled")
    assert (before["sm_mhz"], before["max_sm_mhz"], before["power_limit_w"]) == (300, 1590, 70)
    assert watch.found["after"]["temperature_c"] == 71
    assert during["samples"] >= 4
    assert during["least_sm_mhz"] == 585
    assert during["limited_by"]["software power cap"] == pytest.approx(0.5, abs=0.2)
    throttled, others = watch.notes
    assert "clocks were throttled (software power cap" in throttled
    assert "of 1590.0 MHz" in throttled
    assert "other processes used the GPU (pid 4711)" in others


def test_this_process_is_no_other_one(smi: SmiTool) -> None:
    smi(processes=f"{os.getpid()}\n")
    with GpuWatch() as watch:
        pass
    assert watch.found["before"]["other_processes"] == []


def test_the_first_gpu_that_cuda_shows_is_watched(
    smi: SmiTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = smi()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5ebe9f43,1")
    with GpuWatch():
        pass
    calls = (folder / "calls").read_text().splitlines()
    assert calls
    assert all(call.startswith("--id=GPU-5ebe9f43 ") for call in calls)


def test_without_the_tool_there_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuWatch() as watch:
        pass
    assert watch.found == {"problem": "nvidia-smi is not there, or does not answer"}
    assert watch.notes == []


def row(reasons: int | None, sm_mhz: float | None = 1500) -> dict[str, object]:
    return {"reasons": reasons, "sm_mhz": sm_mhz, "temperature_c": 60, "power_w": None}


def test_idle_samples_and_chosen_clocks_are_no_throttling() -> None:
    during = summarised([row(0x1, 300), row(0x2), row(0x0), row(None)])
    assert during["samples"] == 2
    assert (during["least_sm_mhz"], during["median_sm_mhz"]) == (1500, 1500)
    assert during["most_power_w"] is None
    assert during["limited_by"] == {"application clocks": 0.5}
    state = {"other_processes": [], "max_sm_mhz": 1590}
    assert noted({"before": state, "during": during, "after": state}) == []


def test_no_samples_at_all() -> None:
    during = summarised([])
    assert (during["samples"], during["median_sm_mhz"], during["limited_by"]) == (0, None, {})
