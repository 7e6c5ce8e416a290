"""What a plan chooses from: a model run in one way, and how long its batches take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# The least exact last: of two plans that cost the same, the more exact one is taken.
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
MEASURED, ESTIMATED = "measured", "estimated"


@dataclass(frozen=True, kw_only=True)
class Service:
    """How long one machine computes for a batch of requests as they come, long and short.

    Args:
        batches: known sizes, ascending; between them times are on straight lines, and below the
            first one a batch takes as long as that.
        seconds: the mean of each; ``p99_s`` its 99th percentile, the same where it is not known.
    """

    batches: tuple[int, ...]
    seconds: tuple[float, ...]
    p99_s: tuple[float, ...]

    @property
    def largest(self) -> int:
        """The largest batch that is known."""
        return self.batches[-1]

    @property
    def sizes(self) -> list[int]:
        """The batches to choose from: those known, and powers of two between them."""
        powers = [1 << n for n in range(self.largest.bit_length()) if 1 << n <= self.largest]
        return sorted({*powers, *self.batches})

    def times(self, most: int) -> Floats:
        """Seconds of a batch of 1, 2, ... ``most``, shape [most]."""
        found: Floats = np.interp(np.arange(1, most + 1), self.batches, self.seconds)
        return found

    def spread(self, batch: float) -> float:
        """How many seconds longer than usual one batch in a hundred takes."""
        late = np.interp(batch, self.batches, self.p99_s)
        return max(0.0, float(late - np.interp(batch, self.batches, self.seconds)))

    def after(self, alone: Service) -> Service:
        """The same with another's single request in front."""
        return Service(
            batches=(1, *self.batches),
            seconds=(min(alone.seconds[0], self.seconds[0]), *self.seconds),
            p99_s=(min(alone.p99_s[0], self.p99_s[0]), *self.p99_s),
        )

    def capacity(self, batch: int) -> float:
        """Samples a second of a machine that always has full batches."""
        return batch / float(np.interp(batch, self.batches, self.seconds))

    @property
    def best_capacity(self) -> float:
        """The same at the best batch."""
        return max(map(self.capacity, self.sizes))


@dataclass(frozen=True, kw_only=True)
class Option:
    """A model run in one way.

    Args:
        runner: what runs it, an engine's name or eager PyTorch.
        precision: one of ``PRECISIONS``.
        batching: ``"buckets"`` or ``"padded"`` (to the longest sequence there may be).
        edges: the bucket edges in tokens, where they are known.
        weights: the sha256 of the model's weights, where it is known.
        tried: samples a second with other numbers of buckets, where they were compared.
    """

    model: str
    runner: str
    precision: str
    batching: str
    edges: tuple[int, ...]
    service: Service
    weights: str | None = None
    tried: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.model} {self.runner}, {self.batching}"

    @property
    def exactness(self) -> int:
        """0 is the most exact."""
        return PRECISIONS.index(self.precision)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What could not be an option, and why."""

    name: str
    model: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Where the options come from.

    Args:
        kind: ``MEASURED`` or ``ESTIMATED``.
        hardware: the machine that they are of.
        unit: what is counted: a GPU or a machine.
        notes: what a reader must know.
    """

    kind: str
    hardware: str
    unit: str
    options: list[Option]
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
