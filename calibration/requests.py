"""Rows -> requests: every value is held against the input that it feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.errors import InputError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .records import IDS, MASK, TEXT, Columns, Record

Array = npt.NDArray[Any]
Request = Mapping[str, Array]

LARGEST_ID = int(np.iinfo(np.int32).max)


def request_length(request: Request, inputs: Sequence[TensorSpec]) -> int:
    """The tokens of a request; 1 for a model without a sequence axis."""
    for spec in inputs:
        axis = spec.axis(SEQUENCE)
        if axis is not None and spec.role != "mask":
            return int(request[spec.name].shape[axis - 1])
    return 1


class RequestMaker:
    """Makes the requests of one model; every array in them is a copy of its own.

    Args:
        inputs: what the model takes.
        max_length: the most tokens of a request, or None.

    Attributes:
        tokens: the input that holds the token ids, or None.
        columns: what a row may use.

    Raises:
        UsageError: if ``max_length`` is below 1, an input does not start with the batch axis, or
            all inputs are masks.
    """

    def __init__(self, inputs: Sequence[TensorSpec], max_length: int | None) -> None:
        if max_length is not None and max_length < 1:
            raise UsageError(f"max_length is {max_length}; it must be at least 1")
        for spec in inputs:
            if spec.shape[:1] != (BATCH,):
                raise UsageError(
                    f"input {spec.name} has shape {_text(spec.shape)}; single requests need the "
                    "batch axis first"
                )
        self._needed = [spec for spec in inputs if spec.role != "mask"]
        if not self._needed:
            raise UsageError("all inputs of the model are masks; there is nothing to read for it")
        self._max_length = max_length
        self.tokens = _tokens(self._needed)
        columns = {spec.name: spec.shape[1:2] == (SEQUENCE,) for spec in self._needed}
        if self.tokens is not None:
            columns = {**columns, IDS: True, TEXT: False}
        self.columns: Columns = {**columns, MASK: True}

    def make(self, record: Record) -> Request:
        """The request of one row.

        Raises:
            InputError: if the row does not fit the inputs; the message names it.
        """
        where, row = record
        if isinstance(row, InputError):
            raise row
        assert isinstance(row, Mapping)  # texts were encoded before
        mask = _mask(row[MASK], f"{where}: {MASK}") if MASK in row else None
        request: dict[str, Array] = {}
        lengths: dict[str, int] = {}
        for spec in self._needed:
            if spec is self.tokens:
                request[spec.name] = _token_ids(
                    self._given_ids(row, spec, where), mask, spec, where
                )
            else:
                request[spec.name] = _sample(_given(row, spec, where), mask, spec, where)
            axis = spec.axis(SEQUENCE)
            if axis is not None:
                lengths[spec.name] = request[spec.name].shape[axis - 1]
        self._check_lengths(lengths, where)
        return request

    def _given_ids(self, row: Mapping[str, Any], spec: TensorSpec, where: str) -> Any:
        for name in (spec.name, IDS):
            if name in row:
                return row[name]
        raise InputError(f"{where} has the keys {_keys(row)}; it needs {IDS!r} or {TEXT!r}")

    def _check_lengths(self, lengths: Mapping[str, int], where: str) -> None:
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"{where} gives its inputs different lengths ({counts}); correct it")
        length = next(iter(lengths.values()), 1)
        if length == 0:
            raise InputError(f"{where} has no tokens; remove it")
        if self._max_length is not None and length > self._max_length:
            raise InputError(
                f"{where} has {length} tokens, the maximum is {self._max_length}; shorten or "
                "remove that row, or raise the maximum length (ids are never cut)"
            )


def _tokens(needed: Sequence[TensorSpec]) -> TensorSpec | None:
    """The ids called ``input_ids``, or those with the largest vocabulary: no segments."""
    ids = [spec for spec in needed if spec.role == "ids" and spec.shape == (BATCH, SEQUENCE)]
    return max(ids, key=lambda s: (s.name == IDS, s.limit or LARGEST_ID), default=None)


def _given(row: Mapping[str, Any], spec: TensorSpec, where: str) -> Any:
    if spec.name not in row:
        raise InputError(
            f"{where} has the keys {_keys(row)}; the model also takes {spec.name!r} "
            f"{_text(spec.shape[1:])}: give it in every row"
        )
    return row[spec.name]


def _token_ids(value: Any, mask: Array | None, spec: TensorSpec, where: str) -> Array:
    """The ids of the real tokens as int32, checked."""
    ids = _integers(value, f"{where}: {IDS}")
    if mask is not None:
        if len(mask) != len(ids):
            raise InputError(
                f"{where} has {len(ids)} {IDS} and {len(mask)} values in its {MASK}; give as many"
            )
        ids = ids[mask == 1]
    if ids.dtype.kind not in "iu":
        raise InputError(f"{where}: {IDS} are {ids.dtype}; save them as whole numbers (int32)")
    largest = LARGEST_ID if spec.limit is None else spec.limit - 1
    wrong = (ids < 0) | (ids > largest)
    if wrong.any():
        hint = "" if spec.limit is None else ", the model's vocabulary"
        raise InputError(
            f"{where} holds the token id {ids[wrong][0]}; ids are between 0 and {largest}{hint}"
        )
    return ids.astype(spec.dtype)


def _mask(value: Any, where: str) -> Array:
    mask = _integers(value, where)
    if not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"{where} must hold 1 (real token) and 0 (padding)")
    return mask


def _integers(value: Any, where: str) -> Array:
    """A list of whole numbers, or an array of rank 1, as an array."""
    if not isinstance(value, list | tuple):
        return _ranked(_array(value, where), 1, where)
    # bool is a subclass of int, hence the types.
    if any(t is bool or not issubclass(t, int | np.integer) for t in set(map(type, value))):
        raise InputError(f"{where} must be a list of whole numbers")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise InputError(
            f"{where} holds {max(value, key=abs)}; token ids are between 0 and {LARGEST_ID}"
        ) from error


def _ranked(array: Array, rank: int, where: str) -> Array:
    if array.ndim != rank:
        raise InputError(f"{where} must be a list of whole numbers, not of shape {array.shape}")
    return array


def _sample(value: Any, mask: Array | None, spec: TensorSpec, where: str) -> Array:
    """One value of an input that is not the token ids, its padding left out, checked."""
    where = f"{where}: {spec.name}"
    array = _array(value, where)
    axis = spec.axis(SEQUENCE)
    if mask is not None and axis is not None and array.ndim >= axis:
        if array.shape[axis - 1] != len(mask):
            raise InputError(f"{where} has shape {array.shape}, its {MASK} {len(mask)} values")
        array = np.compress(mask, array, axis=axis - 1)
    wanted = spec.shape[1:]
    if len(wanted) != array.ndim or any(
        want not in (SEQUENCE, size) for want, size in zip(wanted, array.shape, strict=True)
    ):
        raise InputError(f"{where} has shape {array.shape}; it must be {_text(wanted)}")
    return _ids(array, spec, where) if spec.role == "ids" else _floats(array, spec, where)


def _ids(array: Array, spec: TensorSpec, where: str) -> Array:
    limit = LARGEST_ID + 1 if spec.limit is None else spec.limit
    if array.dtype.kind not in "iu" or ((array < 0) | (array >= limit)).any():
        raise InputError(f"{where} must hold whole numbers between 0 and {limit - 1}")
    return array.astype(spec.dtype)


def _floats(array: Array, spec: TensorSpec, where: str) -> Array:
    if array.dtype.kind not in "iuf":
        raise InputError(f"{where} has dtype {array.dtype}; give numbers")
    with np.errstate(over="ignore"):
        fitted = array.astype(spec.dtype)
    if not np.isfinite(fitted).all():
        raise InputError(f"{where} holds NaN, infinity or a number beyond {spec.dtype}")
    return fitted


def _array(value: Any, where: str) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:  # tensors of other packages raise anything
        raise InputError(f"{where} is not an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} must be a list of whole numbers or an array of numbers")
    return array


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"


def _text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
