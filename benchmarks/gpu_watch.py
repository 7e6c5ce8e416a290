"""The GPU's state before, during and after a measurement, as nvidia-smi tells it.

Fields and bits: ``nvidia-smi --help-query-gpu`` and nvmlClocksEventReasons in nvml.h.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

TOOL = "nvidia-smi"
PATIENCE_S = 30.0
SAMPLE_MS = 500
# Key of the report -> field of nvidia-smi.
TEXTS = {"name": "name", "driver": "driver_version", "ecc": "ecc.mode.current"}
NUMBERS = {
    "sm_mhz": "clocks.current.sm",
    "memory_mhz": "clocks.current.memory",
    "max_sm_mhz": "clocks.max.sm",
    "max_memory_mhz": "clocks.max.memory",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "memory_used_mib": "memory.used",
}
# The newer name first; drivers before r535 know only the other.
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
IDLE = 0x1
LIMITS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
# Chosen by a person and no fault, but the clocks are then lower than they could be.
CHOSEN = {0x2: "application clocks", 0x10: "sync boost", 0x100: "display clocks"}


class GpuWatch:
    """Samples one GPU for as long as the ``with`` lasts.

    Attributes:
        found: ``before``, ``during`` and ``after``; or ``problem``, why there is nothing.
        notes: what was wrong, in words.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.notes: list[str] = []
        self._query: list[str] = []
        self._files = ExitStack()
        self._sampler: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuWatch:
        states = ((query, _state(query)) for query in map(_query, REASONS))
        self._query, before = next(((q, found) for q, found in states if found), ([], None))
        if before is None:
            self.found["problem"] = f"{TOOL} is not there, or does not answer"
            return self
        self.found["before"] = {**before, "other_processes": _processes()}
        self._samples = self._files.enter_context(tempfile.TemporaryFile("w+"))
        self._sampler = subprocess.Popen(
            [*self._query, f"--loop-ms={SAMPLE_MS}"],
            stdout=self._samples,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sampler is None:
            return
        with self._files:
            self._sampler.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._sampler.wait(PATIENCE_S)
            self._sampler.kill()
            self._sampler.wait()
            self._samples.seek(0)
            rows = [row for line in self._samples if (row := _row(line))]
        self.found["during"] = summarised(rows)
        self.found["after"] = {**(_state(self._query) or {}), "other_processes": _processes()}
        self.notes = noted(self.found)


def _query(reasons: str) -> list[str]:
    fields = ",".join([*TEXTS.values(), *NUMBERS.values(), reasons])
    return [*_command(), f"--query-gpu={fields}", "--format=csv,noheader,nounits"]


def _state(query: Sequence[str]) -> dict[str, Any] | None:
    lines = _lines(query)
    return _row(lines[0]) if lines else None


def summarised(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the samples under load have in common.

    Returns:
        ``samples``, those under load; of them the least and median clock, the highest temperature
        and power, and by reason the share of them in which it held the clocks down.
    """
    loaded = [row for row in rows if row["reasons"] is not None and not row["reasons"] & IDLE]
    limits: dict[str, float] = {}
    for bit, reason in {**LIMITS, **CHOSEN}.items():
        count = sum(bool(row["reasons"] & bit) for row in loaded)
        if count:
            limits[reason] = count / len(loaded)

    def values(key: str) -> list[float]:
        return [row[key] for row in loaded if row[key] is not None]

    clocks = values("sm_mhz")
    return {
        "samples": len(loaded),
        "least_sm_mhz": min(clocks, default=None),
        "median_sm_mhz": statistics.median(clocks) if clocks else None,
        "most_temperature_c": max(values("temperature_c"), default=None),
        "most_power_w": max(values("power_w"), default=None),
        "limited_by": limits,
    }


def noted(found: dict[str, Any]) -> list[str]:
    """What of it a reader of the numbers must know."""
    notes = []
    limits = found["during"]["limited_by"]
    faults = {name: limits[name] for name in LIMITS.values() if name in limits}
    if faults:
        reasons = ", ".join(f"{name} {share:.0%}" for name, share in faults.items())
        notes.append(
            f"the GPU's clocks were throttled ({reasons} of the samples under load; median clock "
            f"{found['during']['median_sm_mhz']} of {found['before']['max_sm_mhz']} MHz): the "
            "numbers are lower than it can do"
        )
    others = sorted({*found["before"]["other_processes"], *found["after"]["other_processes"]})
    if others:
        notes.append(
            f"other processes used the GPU (pid {', '.join(map(str, others))}): the numbers are "
            "lower than it can do"
        )
    return notes


def _command() -> list[str]:
    """nvidia-smi for the GPU that CUDA shows first."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    return [TOOL, f"--id={visible or 0}"]


def _lines(command: Sequence[str]) -> list[str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _row(line: str) -> dict[str, Any] | None:
    """One line; None if it is cut off."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(TEXTS) + len(NUMBERS) + 1:
        return None
    texts = dict(zip(TEXTS, values, strict=False))
    numbers = {
        key: _number(value) for key, value in zip(NUMBERS, values[len(TEXTS) :], strict=False)
    }
    try:
        reasons = int(values[-1], 16)
    except ValueError:  # [N/A]
        reasons = None
    return {**texts, **numbers, "reasons": reasons}


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:  # [N/A], [Not Supported]
        return None


def _processes() -> list[int]:
    """Who computes on the GPU besides this process; in a container they may be hidden."""
    lines = _lines([*_command(), "--query-compute-apps=pid", "--format=csv,noheader,nounits"])
    return [int(line) for line in lines if line.strip().isdigit() and int(line) != os.getpid()]
