"""The parity matrix: seeded inputs over lengths, batches and mask patterns, and its golden file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.bundle import disk_errors
from attn_export.errors import BundleError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

Array = npt.NDArray[Any]

GOLDEN_BYTES = 16_000_000
ROWS = 4  # the batch of a case with several rows

_BROKEN = (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One batch of the matrix.

    Args:
        length: S, padding included, in tokens.
        mask: ``"full"``; ``"right"`` or ``"left"`` padding, each row of its own length; or
            ``"masked_row"``: row 1 has no real token, the others no padding.
        feeds: input arrays by name.
    """

    name: str
    batch: int
    length: int
    mask: str
    feeds: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A golden file: cases with the outputs of eager FP32, and the names of those left out."""

    pairs: list[tuple[Case, dict[str, Array]]]
    dropped: list[str]


def parity_cases(inputs: Sequence[TensorSpec], edges: Sequence[int], seed: int = 0) -> list[Case]:
    """Make the matrix: about 20 rows for each bucket edge.

    Lengths are 1, each edge, and one above each edge but the last (where the next engine profile
    begins); batches 1 and 4; masks full, right, left and masked_row where the model takes a mask
    of shape [B, S]. Ids are uniform in [0, limit), other values standard normal.

    Raises:
        UsageError: if an input of ids has no limit.
    """
    lengths = sorted({1, *edges} | {edge + 1 for edge in edges[:-1]})
    if all(spec.axis(SEQUENCE) is None for spec in inputs):
        lengths = [edges[-1]]
    has_mask = any(spec.role == "mask" and spec.shape == (BATCH, SEQUENCE) for spec in inputs)
    return [
        _case(inputs, batch, length, mask, seed)
        for length in lengths
        for batch, mask in _patterns(length, edges, has_mask)
    ]


def _patterns(length: int, edges: Sequence[int], has_mask: bool) -> list[tuple[int, str]]:
    if length != 1 and length not in edges:
        return [(1, "full")]
    patterns = [(1, "full"), (ROWS, "full")]
    if has_mask:
        padded = ["right", "left"] if length > 1 else []
        patterns += [(ROWS, mask) for mask in (*padded, "masked_row")]
    return patterns


def _case(inputs: Sequence[TensorSpec], batch: int, length: int, mask: str, seed: int) -> Case:
    name = f"b{batch}-s{length}-{mask}"
    rng = np.random.default_rng([seed, *name.encode()])  # a case does not depend on the others
    feeds = {spec.name: _values(spec, batch, length, mask, rng) for spec in inputs}
    return Case(name=name, batch=batch, length=length, mask=mask, feeds=feeds)


def _values(
    spec: TensorSpec, batch: int, length: int, mask: str, rng: np.random.Generator
) -> Array:
    sizes = {BATCH: batch, SEQUENCE: length}
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
    if spec.role == "mask":
        pattern = _mask(mask, batch, length) if spec.shape == (BATCH, SEQUENCE) else np.ones(shape)
        return pattern.astype(spec.dtype)
    if spec.role == "ids":
        if spec.limit is None:
            raise UsageError(f"the input {spec.name!r} holds ids; its largest id must be known")
        return rng.integers(0, spec.limit, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)


def _mask(mask: str, batch: int, length: int) -> Array:
    """1 where a token is real, [batch, length]."""
    lengths = np.full(batch, length)
    if mask == "masked_row":
        lengths[1] = 0
    elif mask != "full":
        lengths = np.linspace(1, length, batch).round().astype(int)
    right = np.arange(length) < lengths[:, None]
    return right[:, ::-1] if mask == "left" else right


def masked_rows(inputs: Sequence[TensorSpec], case: Case) -> Array:
    """Which rows have no real token at all: booleans, [batch]."""
    masked = np.zeros(case.batch, dtype=bool)
    for spec in inputs:
        if spec.role == "mask" and spec.shape == (BATCH, SEQUENCE):
            masked |= ~case.feeds[spec.name].astype(bool).any(axis=1)
    return masked


def save_reference(
    path: Path, cases: Sequence[Case], outputs: Sequence[Mapping[str, Array]]
) -> list[str]:
    """Write inputs and outputs as the golden file, at most 16 MB; return the cases left out.

    Where all do not fit, the largest go first; those of length 1, of the longest length or with
    padding go last. The smallest case always stays.

    Raises:
        HostError: if it cannot be written.
    """
    pairs = list(zip(cases, outputs, strict=True))
    longest = max(case.length for case in cases)
    sizes = [sum(array.nbytes for array in (*c.feeds.values(), *o.values())) for c, o in pairs]

    def worth(index: int) -> tuple[bool, int]:
        case = cases[index]
        return case.length in (1, longest) or case.mask != "full", -sizes[index]

    order = sorted(range(len(pairs)), key=worth)
    smallest = min(order, key=sizes.__getitem__)
    total, dropped = sum(sizes), set[int]()
    for index in order:
        if total > GOLDEN_BYTES and index != smallest:
            dropped.add(index)
            total -= sizes[index]
    kept = [pair for index, pair in enumerate(pairs) if index not in dropped]
    names = [cases[index].name for index in sorted(dropped)]
    _write_reference(path, kept, names)
    return names


def _write_reference(
    path: Path, pairs: Sequence[tuple[Case, Mapping[str, Array]]], dropped: Sequence[str]
) -> None:
    cases = [
        {"name": c.name, "batch": c.batch, "length": c.length, "mask": c.mask} for c, _ in pairs
    ]
    arrays: dict[str, Array] = {"about": np.array(json.dumps({"cases": cases, "dropped": dropped}))}
    for index, (case, outputs) in enumerate(pairs):
        arrays |= {f"{index}/feeds/{name}": array for name, array in case.feeds.items()}
        arrays |= {f"{index}/outputs/{name}": array for name, array in outputs.items()}
    with disk_errors(path.parent), path.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def load_reference(path: Path) -> Reference:
    """Read a golden file.

    Raises:
        BundleError: if it is missing or broken.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            found: list[dict[str, dict[str, Array]]] = [
                {"feeds": {}, "outputs": {}} for _ in about["cases"]
            ]
            for key in arrays.files:
                if key != "about":
                    index, kind, name = key.split("/", 2)
                    found[int(index)][kind][name] = arrays[key]
            pairs = [
                (Case(**case, feeds=parts["feeds"]), parts["outputs"])
                for case, parts in zip(about["cases"], found, strict=True)
            ]
            return Reference(pairs=pairs, dropped=list(about["dropped"]))
    except _BROKEN as error:
        raise BundleError(f"{path} cannot be read as a golden file: {error}; rebuild it") from error
