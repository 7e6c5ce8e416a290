"""What calibration saw of each tensor: kept, merged with other runs, and turned into ranges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.bundle import write_atomic
from attn_export.errors import UsageError

from .calibration_file import SCHEMA, parsed, read_object, require_graph
from .clipping import PERCENTILE, clipping_bounds
from .histogram import Histogram
from .ranges import Ranges, TensorRange


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Histograms of a graph's tensors over some data.

    Attributes:
        channel_maxima: for the tensors that it was asked of, the largest magnitude of each channel
            (the last axis), float32 [channels].
        data: what was run, one entry for each run that was merged.
    """

    graph_sha256: str
    samples: int
    tokens: int
    tensors: dict[str, Histogram]
    channel_maxima: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    data: tuple[dict[str, Any], ...] = ()

    def ranges(self, method: str, *, percentile: float = PERCENTILE) -> Ranges:
        """Choose the bounds of every tensor; see :func:`.clipping.clipping_bounds`.

        Raises:
            UsageError: if the method or the percentile is wrong.
            MissingPackage: as there.
        """
        bounds = {
            name: TensorRange(*clipping_bounds(histogram, method, percentile=percentile))
            for name, histogram in self.tensors.items()
        }
        options = {"percentile": percentile} if method == "percentile" else {}
        return Ranges(
            graph_sha256=self.graph_sha256,
            method=method,
            samples=self.samples,
            tokens=self.tokens,
            tensors=bounds,
            constants={n: h.low for n, h in self.tensors.items() if h.low == h.high},
            data={**options, "runs": list(self.data)},
        )

    def merged(self, other: Statistics) -> Statistics:
        """The statistics of both data together, to the last count.

        Raises:
            BundleError: if they are of different graphs.
            UsageError: if they are of different tensors.
        """
        require_graph(other.graph_sha256, self.graph_sha256)
        for mine, others in (
            (self.tensors.keys(), other.tensors.keys()),
            (self.channel_maxima.keys(), other.channel_maxima.keys()),
        ):
            if mine != others:
                raise UsageError(
                    f"the statistics are of different tensors (only one of them holds "
                    f"{', '.join(sorted(mine ^ others)[:3])}); merge runs of one placement"
                )
        return Statistics(
            graph_sha256=self.graph_sha256,
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            tensors={n: h.merged(other.tensors[n]) for n, h in self.tensors.items()},
            channel_maxima={
                n: np.maximum(m, other.channel_maxima[n]) for n, m in self.channel_maxima.items()
            },
            data=self.data + other.data,
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict for the file."""
        return {
            "holds": "statistics",
            "schema_version": SCHEMA,
            "graph_sha256": self.graph_sha256,
            "samples": self.samples,
            "tokens": self.tokens,
            "tensors": {name: item.to_json() for name, item in self.tensors.items()},
            "channel_maxima": {name: item.tolist() for name, item in self.channel_maxima.items()},
            "data": list(self.data),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Statistics:
        """The inverse of :meth:`to_json`.

        Raises:
            BundleError: if it holds something else, is broken or from a newer version.
        """
        return parsed("statistics", data, cls._from)

    @classmethod
    def _from(cls, fields: dict[str, Any]) -> Statistics:
        maxima = fields.pop("channel_maxima")
        return cls(
            tensors={n: Histogram.from_json(item) for n, item in fields.pop("tensors").items()},
            channel_maxima={n: np.array(item, np.float32) for n, item in maxima.items()},
            data=tuple(fields.pop("data")),
            **fields,
        )

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            HostError: if it cannot be written.
        """
        write_atomic(path, json.dumps(self.to_json(), separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path, *, graph_sha256: str) -> Statistics:
        """Read a file of statistics of this graph.

        Raises:
            UsageError: if it cannot be read.
            BundleError: if its content is wrong, or of another graph.
        """
        found = cls.from_json(read_object(path))
        require_graph(found.graph_sha256, graph_sha256, str(path))
        return found


def merge(runs: Sequence[Statistics]) -> Statistics:
    """The statistics of all runs together.

    Raises:
        UsageError: if there are none, or they are of different tensors.
        BundleError: if they are of different graphs.
    """
    if not runs:
        raise UsageError("there are no statistics to merge; give those of at least one run")
    total, *rest = runs
    for run in rest:
        total = total.merged(run)
    return total
