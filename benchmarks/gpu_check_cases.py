"""What the GPU check runs besides the golden file, and the sessions that it runs it on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.profiles import Profile
from attn_export.engines.session import Array, Feeds, LoadOptions, Outputs
from attn_export.errors import BundleError
from attn_export.manifest import EngineRecord
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .cases import Case
from .tolerances import Tolerances


def smallest_cases(inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> list[Case]:
    """Each profile's smallest shape, with a full mask and with no real token at all."""
    cases = []
    for profile in profiles:
        batch, length = profile.batch[0], profile.sequence[0]
        for mask, real in (("full", 1), ("masked_row", 0)):
            feeds = seeded_feeds(inputs, batch, length)
            for spec in inputs:
                if spec.role == "mask":
                    feeds[spec.name] = np.full_like(feeds[spec.name], real)
            name = f"smallest-b{batch}-s{length}-{mask}"
            cases.append(Case(name=name, batch=batch, length=length, mask=mask, feeds=feeds))
    return cases


def plans(bundle: Bundle) -> dict[str, EngineRecord]:
    """The bundle's TensorRT engines by name.

    Raises:
        BundleError: if it has none.
    """
    engines = bundle.manifest.engines
    found = {name: record for name, record in engines.items() if record.backend == "tensorrt"}
    if not found:
        raise BundleError(f"{bundle.directory} has no TensorRT engine; run the step compile")
    return found


def plan_of(bundle: Bundle, precision: str) -> EngineRecord:
    """The TensorRT engine of one precision.

    Raises:
        BundleError: if there is none.
    """
    for record in plans(bundle).values():
        if record.precision == precision:
            return record
    raise BundleError(f"{bundle.directory} has no {precision} TensorRT engine")


def open_session(
    bundle: Bundle, record: EngineRecord, *, cuda_graphs: bool = True, streams: int = 1
) -> Any:
    """A TensorRT session of one engine."""
    from attn_export.engines import tensorrt

    options = LoadOptions(streams=streams, cuda_graphs=cuda_graphs)
    return tensorrt.load(bundle, record, options)


def profile_shapes(profiles: Sequence[Profile]) -> list[tuple[int, int]]:
    """Each profile's least, optimal and largest (batch, length), each once."""
    shapes = [pair for p in profiles for pair in zip(p.batch, p.sequence, strict=True)]
    return list(dict.fromkeys(shapes))


def padded_feeds(
    inputs: Sequence[TensorSpec], batch: int, length: int, rng: np.random.Generator
) -> Feeds:
    """Random feeds whose rows are padded on the right to lengths of their own."""
    feeds: dict[str, Array] = {}
    real = np.arange(length) < rng.integers(1, length + 1, batch)[:, None]
    for spec in inputs:
        sizes = {BATCH: batch, SEQUENCE: length}
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
        if spec.role == "mask":
            mask = real if shape == real.shape else np.ones(shape)
            feeds[spec.name] = mask.astype(spec.dtype)
        elif spec.role == "ids":
            feeds[spec.name] = rng.integers(0, spec.limit or 1, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return feeds


def same_bits(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    """Whether two results are the same to the last bit."""
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def within(got: Outputs, wanted: Mapping[str, Array], precision: str) -> bool:
    """Whether a result is within the precision's tolerance of another one."""
    tolerances = Tolerances()
    for name, reference in wanted.items():
        atol, rtol = tolerances.allowed(name, precision)
        a, b = np.asarray(got[name], np.float64), np.asarray(reference, np.float64)
        if a.shape != b.shape or not np.all(np.abs(a - b) <= atol + rtol * np.abs(b)):
            return False
    return True


def largest_error(got: Outputs, wanted: Mapping[str, Array]) -> float:
    """The largest absolute difference of any output."""
    return max(
        float(np.abs(np.asarray(got[name], np.float64) - wanted[name]).max()) for name in wanted
    )


def varied_shapes(
    profiles: Sequence[Profile], count: int, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Random shapes that the profiles take: batches up to 8, any length."""
    for index in rng.integers(0, len(profiles), count).tolist():
        batch, sequence = profiles[index].batch, profiles[index].sequence
        most = max(batch[0], min(8, batch[2]))
        yield (
            int(rng.integers(batch[0], most + 1)),
            int(rng.integers(sequence[0], sequence[2] + 1)),
        )
