"""The CPU: its name, the features that speed up inference, and the threads that may be used."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from attn_export.errors import UsageError

CPUINFO = Path("/proc/cpuinfo")
CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
)
# Units that multiply BF16. Any CPU with AVX-512 can imitate them, slower than FP32.
BF16_FEATURES = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor: cores that this process may use, and the features that speed up inference."""

    model: str
    cores: int
    features: dict[str, bool]

    @property
    def computes_bf16(self) -> bool:
        """Whether it multiplies BF16 in hardware."""
        return any(self.features[name] for name in BF16_FEATURES)


def examine_cpu(cpuinfo: Path = CPUINFO) -> Cpu:
    """Read what Linux says of the CPU; where it says nothing, no feature is there."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    return Cpu(
        model=fields.get("model name") or platform.machine(),  # ARM has no model name
        cores=len(os.sched_getaffinity(0)),
        features={name: name in flags for name in CPU_FEATURES},
    )


def usable_threads(threads: int | None) -> int:
    """The threads asked for, or one for each CPU that this process may use.

    Raises:
        UsageError: if they are below 1 or more than those CPUs.
    """
    cpus = len(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= cpus:
        raise UsageError(
            f"threads is {threads}; this process may use {cpus} CPUs: give 1 to {cpus}"
        )
    return threads or cpus
