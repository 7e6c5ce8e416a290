"""What else the CPUs did during a measurement, as Linux tells it, and how they are set up.

Sources: proc(5) for /proc/stat; the kernel's admin-guide/cgroup-v2 and scheduler/sched-bwc for CPU
quotas; admin-guide/pm/cpufreq. What a container or a virtual machine hides is None.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

# Environment variables that steer threads, and one that may bring another OpenMP or allocator.
PREFIXES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "LD_PRELOAD")
# Shares of the CPUs' time that a reader of the numbers must know of.
MOST_STOLEN, MOST_OTHERS = 0.01, 0.05


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Seconds of the CPUs that this process may use, since the machine started."""

    total: float
    idle: float
    stolen: float


class MachineWatch:
    """Reads the counters around a measurement; its workers must have ended when the ``with`` does.

    Args:
        root: of the file system, for tests.

    Attributes:
        load_average: of the last minute, before and after.
        found: ``cpus`` (that this process
            may use), ``smt_siblings`` (CPUs that share a core with others), ``governor``,
            ``frequency_mhz`` (of each CPU, after), ``quota_cpus``, ``variables`` (that steer
            threads), and of the measurement ``stolen_share``, ``others_share`` (of the CPUs'
            time), ``quota_throttled_s`` and ``thermal_throttles``.
        notes: what was wrong, in words.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.found: dict[str, Any] = {}
        self.notes: list[str] = []
        self.load_average = (0.0, 0.0)
        self._root = root
        self._cpus = sorted(os.sched_getaffinity(0))

    def __enter__(self) -> MachineWatch:
        self.load_average = (os.getloadavg()[0], 0.0)
        self._start, self._own = time.monotonic(), _own_s()
        self._times = cpu_times(self._root, self._cpus)
        self._throttled = throttled_s(self._root)
        self._thermal = self._thermal_throttles()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.load_average = (self.load_average[0], os.getloadavg()[0])
        stolen, others = self._shares()
        self.found = {
            "cpus": self._cpus,
            "smt_siblings": self._siblings(),
            "governor": _read(self._cpu_file(self._cpus[0], "cpufreq/scaling_governor")),
            "frequency_mhz": [
                khz / 1000
                for cpu in self._cpus
                if (khz := _number(self._cpu_file(cpu, "cpufreq/scaling_cur_freq"))) is not None
            ],
            "quota_cpus": quota_cpus(self._root),
            "variables": {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith(PREFIXES)
            },
            "stolen_share": stolen,
            "others_share": others,
            "quota_throttled_s": _difference(throttled_s(self._root), self._throttled),
            "thermal_throttles": _difference(self._thermal_throttles(), self._thermal),
        }
        self.notes = noted(self.found)

    def _shares(self) -> tuple[float | None, float | None]:
        """The shares of the CPUs' time that the hypervisor and that other processes took."""
        now, before = cpu_times(self._root, self._cpus), self._times
        if now is None or before is None or now.total <= before.total:
            return None, None
        total, stolen = now.total - before.total, now.stolen - before.stolen
        busy = total - (now.idle - before.idle) - stolen
        return stolen / total, max(0.0, busy - (_own_s() - self._own)) / total

    def _siblings(self) -> list[str]:
        paths = (self._cpu_file(cpu, "topology/thread_siblings_list") for cpu in self._cpus)
        groups = {text for path in paths if (text := _read(path))}
        return sorted(group for group in groups if not group.isdigit())

    def _thermal_throttles(self) -> float | None:
        names = ("thermal_throttle/core_throttle_count", "thermal_throttle/package_throttle_count")
        found = [_number(self._cpu_file(cpu, name)) for cpu in self._cpus for name in names]
        counts = [count for count in found if count is not None]
        return sum(counts) if counts else None

    def _cpu_file(self, cpu: int, name: str) -> Path:
        return self._root / f"sys/devices/system/cpu/cpu{cpu}" / name


def cpu_times(root: Path, cpus: list[int]) -> CpuTimes | None:
    """The counters of some CPUs."""
    names, tick = {f"cpu{cpu}" for cpu in cpus}, os.sysconf("SC_CLK_TCK")
    rows = [line.split() for line in (_read(root / "proc/stat") or "").splitlines()]
    # user nice system idle iowait irq softirq steal; guest time is part of user's.
    counts = [[int(value) for value in row[1:9]] for row in rows if row and row[0] in names]
    if len(counts) != len(names) or any(len(count) < 8 for count in counts):
        return None
    return CpuTimes(
        total=sum(map(sum, counts)) / tick,
        idle=sum(count[3] + count[4] for count in counts) / tick,
        stolen=sum(count[7] for count in counts) / tick,
    )


def quota_cpus(root: Path) -> float | None:
    """How many CPUs' time the container may use, or None where nothing limits it."""
    quota, _, period = (_read(root / "sys/fs/cgroup/cpu.max") or "").partition(" ")
    if not quota:  # cgroup v1
        folder = root / "sys/fs/cgroup/cpu"
        quota = _read(folder / "cpu.cfs_quota_us") or ""
        period = _read(folder / "cpu.cfs_period_us") or ""
    if not (quota.isdigit() and period.isdigit()):  # "max", "-1"
        return None
    return int(quota) / int(period)


def throttled_s(root: Path) -> float | None:
    """For how long the container's quota has held its threads back, in all."""
    scales = {"throttled_usec": 1e-6, "throttled_time": 1e-9}  # v2, v1
    for folder in ("sys/fs/cgroup", "sys/fs/cgroup/cpu"):
        for line in (_read(root / folder / "cpu.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name in scales:
                return int(value) * scales[name]
    return None


def noted(found: dict[str, Any]) -> list[str]:
    """What of it a reader of the numbers must know."""
    notes = []
    if (found["stolen_share"] or 0) > MOST_STOLEN:
        notes.append(
            f"the hypervisor gave {found['stolen_share']:.1%} of the CPUs' time to others (steal): "
            "the numbers are lower than these CPUs can do"
        )
    if (found["others_share"] or 0) > MOST_OTHERS:
        notes.append(
            f"other processes took {found['others_share']:.0%} of the CPUs' time: the numbers are "
            "lower than this machine can do; measure on an idle one to quote them"
        )
    if found["quota_throttled_s"]:
        notes.append(
            f"the container's CPU quota held threads back for {found['quota_throttled_s']:.1f} s: "
            "raise it, or set --threads to the number of CPUs that it allows"
        )
    if found["thermal_throttles"]:
        notes.append(
            f"the CPU lowered its clocks {found['thermal_throttles']:.0f} times because it was too "
            "hot: the numbers are lower than it can do"
        )
    return notes


def _own_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _number(path: Path) -> float | None:
    text = _read(path) or ""
    return float(text) if text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
