"""Statistics that were collected before: found again by the content they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attn_export
from attn_export.errors import BundleError, UsageError
from attn_export.lazy import require

from .activation_statistics import Statistics
from .calibration_file import SCHEMA
from .collect import Feeds, Progress, collect


def fingerprint(requests: Iterable[Feeds]) -> str:
    """The sha256 of the requests' content, in their order."""
    digest = hashlib.sha256()
    for request in requests:
        for name, array in sorted(request.items()):
            digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def collect_cached(
    graph: Path,
    tensors: Sequence[str],
    batches: Iterable[Feeds],
    *,
    folder: Path,
    data_sha256: str,
    channels: Collection[str] = (),
    data: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: Progress = lambda samples: None,
) -> tuple[Statistics, bool]:
    """As :func:`.collect.collect`, or the statistics that an earlier run left in ``folder``.

    The key is the graph with its weights, the tensors, ``channels``, ``data_sha256``, ``data`` and
    attn-export's version. The method is not in it: all are chosen from the same statistics. A file
    that cannot be used is replaced.

    Args:
        batches: not touched where the cache has the statistics.
        data_sha256: see :func:`fingerprint`.

    Returns:
        The statistics, and whether they are from the cache.

    Raises:
        AttnExportError: as :func:`.collect.collect` does.
        HostError: if the folder cannot be written.
    """
    require("onnx", extra="export")
    from .graph_structure import graph_digest

    digest = graph_digest(graph)
    key = {
        "graph": digest,
        "tensors": sorted(tensors),
        "channels": sorted(channels),
        "data": [data_sha256, dict(data or {})],
        "version": [attn_export.__version__, SCHEMA],
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = folder / f"statistics-{name[:32]}.json"
    if (kept := _kept(path, digest)) is not None:
        return kept, True
    found = collect(
        graph,
        tensors,
        batches,
        channels=channels,
        data=data,
        threads=threads,
        progress=progress,
    )
    found.save(path)
    return found, False


def _kept(path: Path, digest: str) -> Statistics | None:
    try:
        return Statistics.load(path, graph_sha256=digest)
    except (UsageError, BundleError):
        return None
