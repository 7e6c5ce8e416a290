"""The cells of the matrix: which model, run in which way, at which batch and padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .stats import Interval

MODELS = ("mha", "gqa", "mqa")
EAGER_FP32, EAGER_AUTOCAST = "eager-fp32", "eager-autocast"
# The precision of an engine -> the variant that it is.
ENGINES = {name: f"engine-{name}" for name in ("fp32", "fp16", "bf16", "int8")}
VARIANTS = (EAGER_FP32, EAGER_AUTOCAST, *ENGINES.values())
PADDED, BUCKETED = "padded", "bucketed"
MODES = (PADDED, BUCKETED)
BATCHES = (16, 32, 64, 128)


class Place(NamedTuple):
    """Where a cell stands in the rows of one model and variant."""

    batch: int
    mode: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one model, run in one way, reached at one batch size.

    Args:
        engine: its name in the bundle; None for eager PyTorch.
        batch: the requests that arrive together, a group.
        mode: ``"padded"`` to the longest that the models take, or ``"bucketed"`` by length.
        samples_per_s: real samples; the median over rounds, with its interval. None where nothing
            was measured: ``failed`` or ``note`` say why.
        rounds: samples a second in each round.
        latency_ms: p50, p90 and p99 of the time until all requests of a group are answered.
        groups: how many groups those percentiles stand on.
        peak_mib: the most memory needed; the report's settings say which.
        failed: the process died, hung, or gave an error; a reason.
        note: why the cell was not run, or what is special about it.
    """

    model: str
    variant: str
    engine: str | None
    batch: int
    mode: str
    samples_per_s: Interval | None = None
    rounds: list[float] = field(default_factory=list)
    latency_ms: dict[str, float] | None = None
    groups: int = 0
    peak_mib: float | None = None
    failed: str | None = None
    note: str | None = None

    @property
    def place(self) -> Place:
        """Its batch and mode."""
        return Place(self.batch, self.mode)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """The inverse of :meth:`to_json`."""
        found = data["samples_per_s"]
        return cls(**{**data, "samples_per_s": None if found is None else Interval(**found)})
