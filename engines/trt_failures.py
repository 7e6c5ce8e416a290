"""What to tell a person when TensorRT built nothing."""

from __future__ import annotations

from typing import Any

from attn_export.errors import AttnExportError, BuildFailed, HostError

from .session import CompileOptions

# Fragments of TensorRT's and CUDA's lines, in lower case.
NO_KERNEL = "could not find any implementation"
NOT_ALLOCATED = "could not be allocated"
OUT_OF_MEMORY = ("out of memory", "outofmemory", "cudaerrormemoryallocation", NOT_ALLOCATED)
CONFLICT = (NO_KERNEL, "constraint", "obey", "conflict")


def is_precision_conflict(log: Any) -> bool:
    """Whether the layers held in FP32 may be why there is no engine."""
    return not is_out_of_memory(log) and _mentions(log.errors(), *CONFLICT)


def is_out_of_memory(log: Any) -> bool:
    """Whether the GPU's memory was too small.

    A failed allocation is also a warning of builds that pass by another tactic; it is the reason
    only where no tactic was left.
    """
    errors = log.errors()
    return _mentions(errors, *OUT_OF_MEMORY) or (
        _mentions(errors, NO_KERNEL) and _mentions(log.warnings(), NOT_ALLOCATED)
    )


def no_engine(what: str, log: Any, options: CompileOptions, problem: str = "") -> AttnExportError:
    """The error for a build that gave no plan, with TensorRT's own lines.

    Args:
        what: begins the message, ``"building fp16 with TensorRT 10.16.1"``.
        problem: the text of an exception, where there was one.
    """
    lines = [problem] if problem else []
    lines += log.errors()
    listed = "\n  ".join(lines or ["TensorRT gave no reason"])
    if is_out_of_memory(log) or _mentions(lines, *OUT_OF_MEMORY):
        return HostError(
            f"{what} failed: the GPU has not enough memory:\n  {listed}\n"
            "lower --workspace or the profiles' batch (-b), or free the GPU"
        )
    advice = ""
    if options.workspace_mib is not None and _mentions(lines, NO_KERNEL):
        advice = (
            f"\n--workspace {options.workspace_mib} may be too little: raise it or leave it out"
        )
    return BuildFailed(f"{what} failed:\n  {listed}{advice}")


def _mentions(lines: list[str], *fragments: str) -> bool:
    return any(fragment in line.lower() for line in lines for fragment in fragments)
