"""The reader of .npz: arrays are streamed out of the archive, never held whole."""

from __future__ import annotations

import itertools
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.errors import InputError

from .records import IDS, MASK, TEXT, Columns, Record, usable

Array = npt.NDArray[Any]

OFFSETS = "offsets"
BLOCK_BYTES = 1 << 18
# What zipfile, zlib and NumPy raise on bytes that are no archive of arrays.
BROKEN = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def npz_records(path: Path, columns: Columns) -> Iterator[Record]:
    """A row of each array, or with ``offsets`` a row's part of each flat array.

    Raises:
        InputError: if the file is broken, or its arrays do not fit together.
    """
    with path.open("rb") as stream:
        if stream.read(6) == np.lib.format.MAGIC_PREFIX:
            raise _nothing(path, columns)  # one array, without a name
        try:
            with zipfile.ZipFile(stream) as archive:
                yield from _records(archive, path, columns)
        except InputError:
            raise
        except BROKEN as error:
            raise InputError(
                f"{path} cannot be read as npz ({error}); save it with numpy.savez"
            ) from error


def _records(archive: zipfile.ZipFile, path: Path, columns: Columns) -> Iterator[Record]:
    stored = {name.removesuffix(".npy") for name in archive.namelist()}
    arrays = {name: _StoredArray(archive, name) for name in columns if name in stored}
    if not arrays.keys() & set(usable(columns)):
        raise _nothing(path, columns)
    flat = {n: a for n, a in arrays.items() if columns[n]} if OFFSETS in stored else {}
    _check_shapes(arrays, bool(flat), path)
    by_row = {name: array for name, array in arrays.items() if name not in flat}
    bounds: Sequence[int] | Array
    if flat:
        offsets = _StoredArray(archive, OFFSETS)
        bounds = _checked_offsets(offsets.take(offsets.size), _one_size(flat, path), path)
        if by_row and _one_size(by_row, path) != len(bounds) - 1:
            raise InputError(
                f"{path}: {OFFSETS} makes {len(bounds) - 1} rows, {', '.join(by_row)} "
                f"{_one_size(by_row, path)}; save as many"
            )
    else:
        bounds = range(_one_size(by_row, path) + 1)
    for row, (start, end) in enumerate(itertools.pairwise(bounds)):
        values = {name: array.take(1)[0] for name, array in by_row.items()}
        values.update((name, array.take(int(end - start))) for name, array in flat.items())
        yield f"{path}, row {row} (from 0)", values


class _StoredArray:
    """One array of the archive, read from its start on along its first axis."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._stream = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(self._stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        self.shape, in_columns, self._dtype = read_header(self._stream)
        if self._dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        self.size = self.shape[0] if self.shape else 0
        self._row_items = math.prod(self.shape[1:])
        self._left = self.size
        self._block: Array = np.empty((0, *self.shape[1:]), self._dtype)
        if in_columns and len(self.shape) > 1:
            self._block = self._read(self.size, self.shape[::-1]).T
            self._left = 0

    def take(self, count: int) -> Array:
        """The next ``count`` entries of the first axis."""
        if len(self._block) < count:
            row_bytes = max(1, self._row_items * self._dtype.itemsize)
            more = min(self._left, max(count, BLOCK_BYTES // row_bytes))
            read = self._read(more, (more, *self.shape[1:]))
            self._left -= more
            self._block = np.concatenate([self._block, read])
        taken, self._block = self._block[:count], self._block[count:]
        return taken

    def _read(self, count: int, shape: tuple[int, ...]) -> Array:
        size = count * self._row_items * self._dtype.itemsize
        raw = self._stream.read(size)
        if len(raw) != size:
            raise EOFError("an array ends early")
        return np.frombuffer(raw, self._dtype).reshape(shape)


def _nothing(path: Path, columns: Columns) -> InputError:
    names = " or ".join(repr(name) for name in usable(columns) if name != TEXT)
    return InputError(f"{path} holds no array {names}; save one with numpy.savez")


def _check_shapes(arrays: Mapping[str, _StoredArray], flat: bool, path: Path) -> None:
    for name, array in arrays.items():
        if not array.shape:
            raise InputError(f"{path}: {name} has shape (); its first axis must be the rows")
    ids, mask = arrays.get(IDS), arrays.get(MASK)
    if ids is not None and len(ids.shape) != (1 if flat else 2):
        raise InputError(
            f"{path}: {IDS} has shape {ids.shape}; it must be [N, S], or [tokens] with an array "
            f"{OFFSETS!r} [N + 1] beside it"
        )
    if ids is not None and mask is not None and mask.shape != ids.shape:
        raise InputError(
            f"{path}: {MASK} has shape {mask.shape}, {IDS} has {ids.shape}; save both with the "
            "same shape"
        )


def _one_size(arrays: Mapping[str, _StoredArray], path: Path) -> int:
    sizes = {array.size for array in arrays.values()}
    if len(sizes) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InputError(f"{path}: the arrays have the shapes {shapes}; their first sizes differ")
    return sizes.pop()


def _checked_offsets(offsets: Array, tokens: int, path: Path) -> Array:
    bounds = offsets.astype(np.int64) if offsets.dtype.kind in "iu" else np.empty(0, np.int64)
    if (
        bounds.ndim != 1
        or bounds.size == 0
        or bounds[0] != 0
        or bounds[-1] != tokens
        or (np.diff(bounds) < 0).any()
    ):
        raise InputError(
            f"{path}: {OFFSETS} must be whole numbers [N + 1] that rise from 0 to the {tokens} "
            f"tokens of {IDS}"
        )
    return bounds
