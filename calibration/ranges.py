"""The INT8 ranges of a graph's tensors: what a Q/DQ graph is written from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attn_export.bundle import write_atomic
from attn_export.errors import BundleError

from .calibration_file import SCHEMA, parsed, read_object, require_graph
from .clipping import LEVELS

# Below it a step would be 0 or lose its precision as FP32.
_SMALLEST_BOUND = LEVELS * float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class TensorRange:
    """The values that INT8 must reach, in the tensor's unit: ``low <= 0 <= high``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= 0 <= self.high < math.inf:
            raise ValueError(f"a range of {self.low} to {self.high} does not hold 0")


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The clipping bounds of every calibrated tensor of one graph.

    Attributes:
        graph_sha256: :func:`.graph_structure.graph_digest` of the FP32 graph.
        method: one of ``clipping.METHODS``.
        samples: the sequences that were seen, and ``tokens`` their tokens.
        constants: the tensors that were the same value everywhere, and that value.
        data: what they were computed from and with which options.
    """

    graph_sha256: str
    method: str
    samples: int
    tokens: int
    tensors: dict[str, TensorRange]
    constants: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def scale(self, name: str) -> float:
        """The step of symmetric INT8: ``max(|low|, |high|) / 127``, and 1/127 for all zeros.

        Raises:
            BundleError: if the tensor has no range.
        """
        found = self.tensors.get(name)
        if found is None:
            raise BundleError(
                f"the tensor {name} has no range ({len(self.tensors)} others have one); calibrate "
                "again with this placement"
            )
        bound = max(-found.low, found.high)
        return (bound if bound >= _SMALLEST_BOUND else 1.0) / LEVELS

    @property
    def notes(self) -> list[str]:
        """A sentence for each tensor whose range says little."""
        return [
            f"{name} is {value:g} everywhere in the calibration data; its range holds that alone"
            for name, value in self.constants.items()
        ]

    def require_graph(self, digest: str) -> None:
        """Refuse to serve another graph than the one that was calibrated.

        Raises:
            BundleError: if the digests differ.
        """
        require_graph(self.graph_sha256, digest)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for the file."""
        return {"holds": "ranges", "schema_version": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ranges:
        """The inverse of :meth:`to_json`.

        Raises:
            BundleError: if it holds something else, is broken or from a newer version.
        """
        return parsed("ranges", data, cls._from)

    @classmethod
    def _from(cls, fields: dict[str, Any]) -> Ranges:
        tensors = {name: TensorRange(**item) for name, item in fields.pop("tensors").items()}
        return cls(tensors=tensors, **fields)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            HostError: if it cannot be written.
        """
        write_atomic(path, json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, *, graph_sha256: str) -> Ranges:
        """Read a file of ranges for this graph.

        Raises:
            UsageError: if it cannot be read.
            BundleError: if its content is wrong, or of another graph.
        """
        found = cls.from_json(read_object(path))
        require_graph(found.graph_sha256, graph_sha256, str(path))
        return found
