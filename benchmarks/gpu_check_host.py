"""GPU check, step host: the GPU, its clocks and driver, and the versions of one interpreter."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from attn_export.engines.cuda_driver import probe
from attn_export.engines.targets import require_gpu

from .gpu_check_child import Answer, answer

PACKAGES = (
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-lean",
    "tensorrt-lean-cu12",
    "tensorrt-lean-cu13",
    "cuda-bindings",
    "polygraphy",
    "numpy",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
)
QUERY = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "ecc.mode.current",
    "clocks_throttle_reasons.active",
    "utilization.gpu",
    "memory.used",
)
PATIENCE_S = 30


def work(settings: dict[str, Any]) -> Answer:
    """The facts; with ``needs_gpu``, that TensorRT can be imported and a GPU is there."""
    numbers: dict[str, Any] = {
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": _packages(),
    }
    numbers["identity"] = [numbers["packages"], numbers["python"]]
    if settings["needs_gpu"]:
        from attn_export.engines.trt_api import require_tensorrt, version

        gpu = require_gpu()
        found = version(require_tensorrt())
        cuda = probe()
        numbers |= {"gpu": asdict(gpu), "tensorrt": found, "driver_cuda": cuda.version}
        numbers |= {"gpus": len(cuda.gpus), "nvidia_smi": _nvidia_smi()}
        numbers["identity"] += [numbers["gpu"], found]
    return {"numbers": numbers}


def _packages() -> dict[str, str]:
    found = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    return {name: found[name] for name in PACKAGES if name in found}


def _nvidia_smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty where it is not there or says nothing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    found = {}
    for key in QUERY:  # one at a time: an older driver refuses a whole list for one name
        done = subprocess.run(
            [tool, f"--query-gpu={key}", "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode == 0:
            found[key] = done.stdout.strip()
    return found


if __name__ == "__main__":
    answer(work)
