"""Which of a bundle's engines suit this host, and which one is the fastest."""

from __future__ import annotations

import math

from attn_export.manifest import EngineRecord

from .session import backend, backend_names


def unsuited(record: EngineRecord) -> str | None:
    """Why this host should not serve an engine, or None."""
    if record.backend not in backend_names():
        return f"the backend {record.backend} is not installed"
    reason: str | None = backend(record.backend).unsuited(record)
    return reason


def slowness(record: EngineRecord) -> tuple[float, float]:
    """What sorts engines, the fastest first: measured beside the others, else by its buckets."""
    reached = float(record.speed["samples_per_s"]["median"]) if record.speed else 0.0
    return -reached, _ms_per_token(record)


def _ms_per_token(record: EngineRecord) -> float:
    tokens = sum(bucket["edge"] * bucket["batch"] for bucket in record.buckets)
    return sum(bucket["ms"] for bucket in record.buckets) / tokens if tokens else math.inf
