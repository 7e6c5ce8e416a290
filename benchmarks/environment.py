"""Where a measurement ran: versions, hardware, and what the machine did meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from attn_export.engines.doctor import Report

from .gpu_watch import GpuWatch
from .machine_state import MachineWatch


def environment(found: Report, gpu: GpuWatch, machine: MachineWatch) -> dict[str, Any]:
    """All of it as a plain dict, after both watches have ended; ``gpu`` where one was watched.

    Args:
        found: by :func:`~attn_export.engines.doctor.examine`, before the measurement: what is
            wrong with an installation must not be found out after it.
    """
    packages = {p.name: p.version for extra in found.extras.values() for p in extra if p.version}
    return {
        "attn_export": found.attn_export,
        "python": found.python,
        "platform": found.platform,
        "cpu": asdict(found.cpu),
        "memory_mib": found.memory_mib,
        "packages": packages,
        "machine": machine.found,
        **({"cuda": asdict(found.cuda), "gpu": gpu.found} if gpu.found else {}),
    }


def gpu_name(found: Mapping[str, Any]) -> str:
    """What the GPU of an environment calls itself; nothing where none was watched."""
    gpu = found.get("gpu") or {}
    return str((gpu.get("before") or {}).get("name") or "")
