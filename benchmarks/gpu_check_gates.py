"""What the GPU check demands: every bound in one table, with its meaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One bound.

    Args:
        bound: the least value allowed where ``is_least``, else the largest.
        optional: what it needs may be absent (a package, or layers that TensorRT shows); then it
            is reported as not measured, and the check can pass all the same.
    """

    bound: float
    is_least: bool
    unit: str
    meaning: str
    optional: bool = False

    def holds(self, value: float) -> bool:
        """Whether a measured value is within the bound; NaN never is."""
        return value >= self.bound if self.is_least else value <= self.bound

    def __str__(self) -> str:
        """The bound as tables show it."""
        return f"at {'least' if self.is_least else 'most'} {self.bound:g}{self.unit}"


def _none(meaning: str, *, optional: bool = False) -> Gate:
    return Gate(bound=0, is_least=False, unit="", meaning=meaning, optional=optional)


GATES = {
    "fp16_gemm_share": Gate(
        bound=0.9,
        is_least=True,
        unit="",
        meaning="share of the FP16 engine's matrix products that run below FP32, weakest profile",
        optional=True,
    ),
    "fp16_time_ratio": Gate(
        bound=0.7,
        is_least=False,
        unit="",
        meaning="the FP16 engine's time over the FP32 engine's, mean of full buckets",
    ),
    "parity_failures": _none("engines out of tolerance against eager PyTorch FP32"),
    "cache_speedup": Gate(
        bound=3.0,
        is_least=True,
        unit="x",
        meaning="build time without a timing cache over the time with a full one",
    ),
    "graph_mismatches": _none("batches that differ by a bit with CUDA graphs on and off"),
    "capture_failures": _none("warnings that CUDA graphs could not be captured"),
    "thread_mismatches": _none("batches that differ by a bit when two threads run at once"),
    "run_many_mismatches": _none("requests out of tolerance in run_many against one by one"),
    "not_refused": _none("wrong calls that were not refused: shapes outside, a closed session"),
    "memory_growth_mib": Gate(
        bound=16,
        is_least=False,
        unit=" MiB",
        # The driver hands out 2 MiB at a time; one leaked graph a request would be far more.
        meaning="device memory that 500 varied requests added after 500 others",
    ),
    "profile_memory_ratio": Gate(
        bound=1.3,
        is_least=False,
        unit="x",
        meaning="device memory of the engine with all profiles over one with a single profile",
    ),
    "overhead_us": Gate(
        bound=50,
        is_least=False,
        unit=" us",
        meaning="host time of a call less its device time, batch 1, CUDA graph, median",
    ),
    "opinion_mismatches": _none(
        "shapes on which Polygraphy's runner disagrees with ours on the same plan", optional=True
    ),
    "padded_vs_eager_fp16": Gate(
        bound=1.5,
        is_least=True,
        unit="x",
        meaning="FP16 engine over the better eager FP16 (half, autocast), batch 64, padded",
    ),
    "padded_vs_eager_fp32": Gate(
        bound=5.0,
        is_least=True,
        unit="x",
        meaning="FP16 engine over eager FP32, batch 64, padded",
    ),
    "bucketed_vs_padded": Gate(
        bound=4.0,
        is_least=True,
        unit="x",
        meaning="the FP16 engine's run_many on real lengths over itself on padded batches of 64",
    ),
    "lean_mismatches": _none(
        "shapes on which the version-compatible plan is out of tolerance against the native one",
        optional=True,
    ),
}
