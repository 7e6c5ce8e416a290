"""The GPUs that engines are built for, and whether one is here."""

from __future__ import annotations

from dataclasses import dataclass

from attn_export.errors import HostError, UsageError

from .cuda_driver import Cuda, Gpu, probe

# The oldest GPU of TensorRT 10.5 to 11 (docs.nvidia.com/deeplearning/tensorrt, release notes 10.5).
LEAST_COMPUTE_CAPABILITY = (7, 5)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of GPU.

    Args:
        compute_capability: as in ``"7.5"``; engines run only where it is the same.
        memory_mib: as the driver shows it, ECC on.
        precisions: what its tensor cores compute, FP32 besides.
    """

    name: str
    compute_capability: str
    memory_mib: int
    precisions: tuple[str, ...]


# Data sheets: nvidia.com/en-us/data-center/{tesla-t4,l4,products/a10-gpu,a100,h100}.
TARGETS = {
    "t4": Target(
        name="T4", compute_capability="7.5", memory_mib=15360, precisions=("fp16", "int8")
    ),
    "l4": Target(
        name="L4",
        compute_capability="8.9",
        memory_mib=23034,
        precisions=("tf32", "bf16", "fp16", "fp8", "int8"),
    ),
    "a10": Target(
        name="A10",
        compute_capability="8.6",
        memory_mib=23028,
        precisions=("tf32", "bf16", "fp16", "int8"),
    ),
    "a100": Target(
        name="A100",
        compute_capability="8.0",
        memory_mib=40960,
        precisions=("tf32", "bf16", "fp16", "int8"),
    ),
    "h100": Target(
        name="H100",
        compute_capability="9.0",
        memory_mib=81559,
        precisions=("tf32", "bf16", "fp16", "fp8", "int8"),
    ),
}


def find_target(name: str) -> Target:
    """A row of the table.

    Raises:
        UsageError: if there is none of this name.
    """
    try:
        return TARGETS[name.lower()]
    except KeyError:
        raise UsageError(f"unknown target {name!r}; there are: {', '.join(TARGETS)}") from None


def require_gpu(target: str | None = None, cuda: Cuda | None = None) -> Gpu:
    """The GPU that an engine is built or run on: the first one that the driver shows.

    The driver is asked through libcuda alone: TensorRT may crash where there is no GPU.

    Args:
        target: a name of :data:`TARGETS`, or None for the GPU that is there.
        cuda: what the driver said; None asks it.

    Raises:
        UsageError: if the target is unknown.
        HostError: if there is no GPU, it is too old, or it is not the target's kind.
    """
    wanted = find_target(target) if target else None
    cuda = cuda or probe()
    asked = "an NVIDIA GPU"
    if wanted:
        asked = f"a GPU of compute capability {wanted.compute_capability} ({wanted.name})"
    if cuda.problem:
        raise HostError(f"{cuda.problem}; this takes {asked}")
    gpu = cuda.gpus[0]
    found = f"{gpu.name}, compute capability {gpu.compute_capability}"
    if wanted and gpu.compute_capability != wanted.compute_capability:
        raise HostError(
            f"the GPU here is {found}; {asked} was asked for, and an engine runs only where it "
            "was built"
        )
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    if (major, minor) < LEAST_COMPUTE_CAPABILITY:
        raise HostError(f"the GPU here is {found}; TensorRT needs 7.5 or newer")
    return gpu
