"""Whether torch can use a GPU: ``python -m attn_export.benchmarks.torch_probe``.

A process of its own, since torch may be installed in another interpreter, and asking it for a GPU
takes some of that GPU's memory.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict

from .devices import TorchCuda, judge_torch
from .interpreter import Interpreter

PATIENCE_S = 120.0


def main() -> None:
    """Print the verdict as JSON."""
    try:
        import torch
    except ImportError as error:
        found = TorchCuda(available=False, problem=f"torch cannot be imported: {error}")
    else:
        found = judge_torch(
            version=torch.__version__,
            cuda=torch.version.cuda,
            available=torch.cuda.is_available(),
        )
    print(json.dumps(asdict(found)))  # noqa: T201


def probe_torch(interpreter: Interpreter) -> TorchCuda:
    """Ask the torch of an interpreter."""
    try:
        done = subprocess.run(
            interpreter.command("attn_export.benchmarks.torch_probe"),
            env=interpreter.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return TorchCuda(available=False, problem=f"torch gave no answer in {PATIENCE_S:g} s")
    lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines() or [""]
    if done.returncode:
        problem = f"asking torch ended with exit code {done.returncode}: {lines[-1]}"
        return TorchCuda(available=False, problem=problem)
    return TorchCuda(**json.loads(lines[-1]))


if __name__ == "__main__":
    main()
