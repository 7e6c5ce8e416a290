"""What GPUs can do, in up to three tiers; a number that nobody published is absent.

``datasheet`` is the maker's peak, dense (no sparsity). ``measured`` is what short runs of one
product or one copy reached. ``sustained`` is the best that a published encoder engine kept up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from attn_export.errors import UsageError

HERE = "here"
TIERS = ("datasheet", "measured", "sustained")
_GB, _GIB, _T = 1e9, 1 << 30, 1e12


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one machine can do at most, of one tier.

    Args:
        name: a key of :data:`GPUS`, or ``"here"``.
        tier: ``"datasheet"``, ``"measured"`` or ``"sustained"``.
        flops: FLOP/s (for INT8 operations/s) by precision: ``"fp32"``, ``"fp16"``, ``"bf16"``,
            ``"int8"``; a precision without a known number is absent.
        bytes_per_s: memory bandwidth, read and written bytes together.
        launch_s: added once a kernel; 0 where it is not part of the tier.
        memory_bytes: the device's memory.
        watts: the board's power limit.
        source: where the numbers come from.
    """

    name: str
    tier: str
    flops: dict[str, float]
    bytes_per_s: float
    launch_s: float
    memory_bytes: int | None
    watts: float | None
    source: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Limits:
        """The inverse of :meth:`to_json`."""
        return cls(**data)

    def flops_of(self, precision: str) -> float:
        """FLOP/s in one precision.

        Raises:
            UsageError: if this tier has no number for it.
        """
        try:
            return self.flops[precision]
        except KeyError:
            raise UsageError(
                f"no {self.tier} {precision} speed is known of {self.name}; known: "
                f"{', '.join(self.flops)}"
            ) from None


def machine_title(name: str) -> str:
    """What a reader calls a machine: ``"T4"``, ``"this machine"``."""
    return "this machine" if name == HERE else name.upper()


def _datasheet(  # noqa: PLR0917 - a row of the table below
    name: str,
    fp32: float,
    half: float,
    int8: float,
    gb_s: float,
    gib: int,
    watts: float,
    source: str,
) -> Limits:
    """A row in TFLOP/s, dense; from Ampere on BF16 runs at FP16's speed."""
    flops = {"fp32": fp32 * _T, "fp16": half * _T, "bf16": half * _T, "int8": int8 * _T}
    return Limits(
        name=name,
        tier="datasheet",
        flops=flops,
        bytes_per_s=gb_s * _GB,
        launch_s=0.0,
        memory_bytes=gib * _GIB,
        watts=watts,
        source=source,
    )


_T4 = {
    "datasheet": Limits(
        name="t4",
        tier="datasheet",
        flops={"fp32": 8.1 * _T, "fp16": 65 * _T, "int8": 130 * _T},
        bytes_per_s=320 * _GB,
        launch_s=0.0,
        memory_bytes=16 * _GIB,
        watts=70,
        source="NVIDIA T4 data sheet (nvidia.com/en-us/data-center/tesla-t4)",
    ),
    # No INT8 product was measured there, so this tier has no INT8.
    "measured": Limits(
        name="t4",
        tier="measured",
        flops={"fp32": 7.455 * _T, "fp16": 49.4 * _T},
        bytes_per_s=220 * _GB,
        launch_s=0.0,
        memory_bytes=16 * _GIB,
        watts=70,
        source="cuBLAS in short runs: alexarmbr, How to write a fast matrix multiplication from "
        "scratch with tensor cores (2024); bandwidth: arXiv:1903.07486 as quoted there",
    ),
    # What engines reached as a whole: launches and memory waits are partly inside these numbers.
    "sustained": Limits(
        name="t4",
        tier="sustained",
        flops={"fp32": 4.4 * _T, "fp16": 23 * _T, "int8": 43 * _T},
        bytes_per_s=220 * _GB,
        launch_s=4e-6,
        memory_bytes=16 * _GIB,
        watts=70,
        source="best published encoders: FasterTransformer BERT-base FP32 (bert_guide.md), "
        "TensorRT 7.1/7.2 demo/BERT FP16 and INT8, BERT-large; 4 us a launch is assumed",
    ),
}

GPUS: dict[str, dict[str, Limits]] = {
    "t4": _T4,
    "l4": {
        "datasheet": _datasheet(
            "l4",
            30.3,
            121,
            242.5,
            300,
            24,
            72,
            "NVIDIA L4 data sheet (nvidia.com/en-us/data-center/l4)",
        )
    },
    "a10": {
        "datasheet": _datasheet(
            "a10",
            31.2,
            125,
            250,
            600,
            24,
            150,
            "NVIDIA A10 data sheet (nvidia.com/en-us/data-center/products/a10-gpu)",
        )
    },
    "a100": {
        "datasheet": _datasheet(
            "a100",
            19.5,
            312,
            624,
            1555,
            40,
            400,
            "NVIDIA A100 SXM4 40 GB data sheet (nvidia.com/en-us/data-center/a100)",
        )
    },
    "h100": {
        "datasheet": _datasheet(
            "h100",
            67,
            989,
            1979,
            3350,
            80,
            700,
            "NVIDIA H100 SXM5 80 GB data sheet (nvidia.com/en-us/data-center/h100)",
        )
    },
}
