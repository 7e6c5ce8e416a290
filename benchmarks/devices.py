"""On which device an engine runs, and on which one the eager model that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attn_export.engines.packing_session import provider_of
from attn_export.manifest import EngineRecord

Device = Literal["cpu", "gpu"]
CPU: Device = "cpu"
GPU: Device = "gpu"


@dataclass(frozen=True, kw_only=True)
class TorchCuda:
    """Whether an interpreter's torch can use a GPU; ``problem`` says why not."""

    available: bool
    problem: str = ""


def device_of(record: EngineRecord) -> Device:
    """Where an engine runs. A plug-in's engines count as the CPU's."""
    by_provider = record.backend == "onnxruntime" and provider_of(record)
    return GPU if record.backend == "tensorrt" or by_provider else CPU


def eager_device(engine: Device, torch: TorchCuda) -> Device:
    """Where eager runs beside an engine: on its device, or the CPU where torch has no GPU."""
    return GPU if engine == GPU and torch.available else CPU


def judge_torch(*, version: str, cuda: str | None, available: bool) -> TorchCuda:
    """What torch says of itself, as a verdict.

    Args:
        cuda: the CUDA version that torch was built for, or None.
        available: whether it finds a GPU.
    """
    if available:
        return TorchCuda(available=True)
    if cuda is None:
        return TorchCuda(available=False, problem=f"torch {version} is built without CUDA")
    return TorchCuda(available=False, problem=f"torch {version} (CUDA {cuda}) finds no GPU")
