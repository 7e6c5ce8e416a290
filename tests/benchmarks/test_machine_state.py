"""Counters of the kernel, from files as it writes them and from this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.machine_state import (
    MachineWatch,
    cpu_times,
    noted,
    quota_cpus,
    throttled_s,
)

TICK = os.sysconf("SC_CLK_TCK")


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def stat(root: Path, *rows: str) -> None:
    write(root, "proc/stat", "cpu 9 9 9 9 9 9 9 9 9 9\n" + "\n".join(rows) + "\nintr 5\n")


def test_cpu_times_by_hand_of_the_cpus_that_count(tmp_path: Path) -> None:
    stat(tmp_path, "cpu0 10 1 5 60 4 1 2 17 8 0", "cpu1 0 0 0 100 0 0 0 0 0 0")
    found = cpu_times(tmp_path, [0])
    assert found
    assert (found.total, found.idle, found.stolen) == (100 / TICK, 64 / TICK, 17 / TICK)
    both = cpu_times(tmp_path, [0, 1])
    assert both
    assert both.total == 200 / TICK


@pytest.mark.parametrize("row", ["", "cpu1 1 2 3 4 5 6 7 8", "cpu0 1 2 3 4"])
def test_counters_that_are_not_there_are_none(tmp_path: Path, row: str) -> None:
    stat(tmp_path, row)
    assert cpu_times(tmp_path, [0]) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(
    tmp_path: Path, files: dict[str, str], expected: float | None
) -> None:
    for name, text in files.items():
        write(tmp_path, f"sys/fs/cgroup/{name}", text)
    assert quota_cpus(tmp_path) == expected


def test_the_time_that_a_quota_held_threads_back(tmp_path: Path) -> None:
    assert throttled_s(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.stat", "nr_throttled 3\nthrottled_time 2500000000\n")
    assert throttled_s(tmp_path) == 2.5
    write(tmp_path, "sys/fs/cgroup/cpu.stat", "usage_usec 5\nthrottled_usec 1500000\n")
    assert throttled_s(tmp_path) == 1.5


def test_a_measurement_of_others_is_seen_and_ones_own_work_is_not(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        write(tmp_path, f"{folder}/cpufreq/scaling_governor", "powersave\n")
        write(tmp_path, f"{folder}/cpufreq/scaling_cur_freq", "2400000\n")
        write(tmp_path, f"{folder}/thermal_throttle/core_throttle_count", "3\n")
        write(tmp_path, f"{folder}/topology/thread_siblings_list", "0-1\n")
    stat(tmp_path, *(f"cpu{cpu} 0 0 0 0 0 0 0 0" for cpu in cpus))
    with MachineWatch(tmp_path) as watch:
        ticks = 1000 * TICK
        stat(tmp_path, *(f"cpu{cpu} {ticks} 0 0 {2 * ticks} 0 0 0 {ticks}" for cpu in cpus))
        name = f"sys/devices/system/cpu/cpu{cpus[0]}/thermal_throttle/core_throttle_count"
        write(tmp_path, name, "8\n")
    found = watch.found
    assert found["stolen_share"] == pytest.approx(0.25)
    assert found["others_share"] == pytest.approx(0.25, abs=0.01)  # this test's own seconds
    assert found["thermal_throttles"] == 5
    assert found["governor"] == "powersave"
    assert found["frequency_mhz"] == [2400.0] * len(cpus)
    assert found["smt_siblings"] == ["0-1"]
    assert [note.partition(" ")[2][:20] for note in watch.notes] == [
        "hypervisor gave 25.0",
        "processes took 25% o",
        "CPU lowered its cloc",
    ]


def test_this_machine_and_a_child_that_has_ended() -> None:
    with MachineWatch() as watch:
        subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert watch.found["cpus"] == sorted(os.sched_getaffinity(0))
    assert 0 <= watch.found["others_share"] <= 1
    assert watch.load_average[1] > 0


def test_variables_that_steer_threads_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with MachineWatch() as watch:
        pass
    assert watch.found["variables"]["OMP_NUM_THREADS"] == "2"
    assert "PATH" not in watch.found["variables"]


QUIET: dict[str, Any] = {
    "stolen_share": 0.001,
    "others_share": 0.02,
    "quota_throttled_s": 0.0,
    "thermal_throttles": None,
}


def test_a_quiet_machine_needs_no_note() -> None:
    assert noted(QUIET) == []
    assert noted(dict.fromkeys(QUIET)) == []


def test_a_quota_that_was_reached_is_noted() -> None:
    (note,) = noted({**QUIET, "quota_throttled_s": 3.2})
    assert note.startswith("the container's CPU quota held threads back for 3.2 s")
