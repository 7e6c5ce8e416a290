"""Feeds: the arrays that one batch needs, checked, seeded, or packed from single requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attn_export.errors import InputError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .buckets import length_error
from .session import Array, Feeds


def check_feeds(
    feeds: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    *,
    buckets: Sequence[int],
    check_ids: bool = False,
) -> dict[str, Array]:
    """Return the feeds as the engine takes them: right dtype, contiguous, in the inputs' order.

    Integers are accepted where all their values fit the input's dtype (int64 ids become int32),
    booleans for masks, floats for floats; nothing is rounded to an integer.

    Args:
        buckets: the ascending bucket edges, in tokens.
        check_ids: also refuse ids outside ``[0, limit)``; costs a minimum and a maximum.

    Raises:
        InputError: if an input is missing or unknown, or its shape, dtype or values do not fit.
    """
    if len(feeds) != len(inputs) or any(spec.name not in feeds for spec in inputs):
        raise _names_error(feeds, inputs)
    sizes: dict[str, int] = {}
    checked: dict[str, Array] = {}
    for spec in inputs:
        array = _as_array(feeds[spec.name], spec.name)
        _match_shape(array, spec.shape, sizes, spec.name)
        if not sizes.get(BATCH, 1):
            raise InputError(f"{spec.name} is a batch of 0; give at least one sample")
        if not 1 <= sizes.get(SEQUENCE, 1) <= buckets[-1]:
            raise length_error(spec.name, sizes[SEQUENCE], buckets)
        checked[spec.name] = _fit_dtype(array, spec, spec.name)
        if check_ids:
            _check_ids(checked[spec.name], spec, spec.name)
    return checked


def seeded_feeds(inputs: Sequence[TensorSpec], batch: int, length: int) -> dict[str, Array]:
    """Valid feeds of shape [batch, length], the same ones each time: random ids, masks of ones."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = _sized(spec, batch, length)
        if spec.role == "mask":
            feeds[spec.name] = np.ones(shape, spec.dtype)
        elif spec.role == "ids":
            feeds[spec.name] = rng.integers(0, spec.limit or 1, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return feeds


class Requests:
    """Single samples, checked once, from which padded batches are packed.

    Args:
        requests: each an array or list of ids (where ids are the only input besides masks), or a
            mapping from input name to one sample without its batch axis. Masks may be left out.
        check_ids: refuse ids outside ``[0, limit)``.

    Attributes:
        lengths: the tokens of each request; 1 for inputs that have no sequence axis.

    Raises:
        UsageError: if an input has no leading batch axis.
        InputError: if a request does not fit the inputs; its index, from 0, is named.
    """

    def __init__(
        self, requests: Iterable[Any], inputs: Sequence[TensorSpec], *, check_ids: bool
    ) -> None:
        for spec in inputs:
            if spec.shape[:1] != (BATCH,):
                raise UsageError(
                    f"input {spec.name} has shape {_text(spec.shape)}; single requests need the "
                    "batch axis first: give whole batches to run() instead"
                )
        needed = [spec for spec in inputs if spec.role != "mask"]
        only = needed[0] if len(needed) == 1 and needed[0].role == "ids" else None
        self._inputs = inputs
        self._columns: dict[str, list[Array | None]] = {spec.name: [] for spec in inputs}
        self.lengths: list[int] = []
        for index, request in enumerate(requests):
            self._add(_named(request, only, index), index)
        if check_ids:
            for spec in needed:
                self._check_ids(spec)

    def feeds(self, indices: Iterable[int], length: int) -> Feeds:
        """Some of the requests as one batch, padded with 0 on the right to ``length`` tokens."""
        rows = list(indices)
        feeds: dict[str, Array] = {}
        for spec in self._inputs:
            column = self._columns[spec.name]
            packed = np.zeros(_sized(spec, len(rows), length), spec.dtype)
            for row, index in enumerate(rows):
                sample = column[index]
                region = real_region(spec, row, self.lengths[index])
                packed[region] = 1 if sample is None else sample
            feeds[spec.name] = packed
        return feeds

    def _add(self, request: Mapping[str, Any], index: int) -> None:
        taken = 0
        sizes: dict[str, int] = {}
        for spec in self._inputs:
            column = self._columns[spec.name]
            if spec.name not in request and spec.role == "mask":
                column.append(None)
                continue
            where = f"request {index} (from 0), {spec.name}"
            if spec.name not in request:
                raise InputError(f"{where} is missing; it has: {', '.join(request)}")
            sample = _as_array(request[spec.name], where)
            _match_shape(sample, spec.shape[1:], sizes, where)
            column.append(sample if not sample.size else _fit_dtype(sample, spec, where))
            taken += 1
        if taken != len(request):
            raise InputError(f"request {index} (from 0): {_names_error(request, self._inputs)}")
        self.lengths.append(sizes.get(SEQUENCE, 1))

    def _check_ids(self, spec: TensorSpec) -> None:
        column = [sample for sample in self._columns[spec.name] if sample is not None]
        if not column or not _outside(np.concatenate([sample.ravel() for sample in column]), spec):
            return
        for index, sample in enumerate(column):
            _check_ids(sample, spec, f"request {index} (from 0), {spec.name}")


def real_region(spec: TensorSpec, row: int, length: int) -> tuple[Any, ...]:
    """Index one row of a padded batch, without its padding."""
    return row, *(slice(length) if size == SEQUENCE else slice(None) for size in spec.shape[1:])


def _named(request: Any, only: TensorSpec | None, index: int) -> Mapping[str, Any]:
    if isinstance(request, Mapping):
        return request
    if only is None:
        raise InputError(
            f"request {index} (from 0) is a {type(request).__name__}; this model has several "
            "inputs: give a mapping from input name to array"
        )
    return {only.name: request}


def _sized(spec: TensorSpec, batch: int, length: int) -> tuple[int, ...]:
    sizes = {BATCH: batch, SEQUENCE: length}
    return tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)


def _as_array(value: Any, where: str) -> Array:
    if type(value) is np.ndarray:
        return value
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{where} is not an array: {error}") from error


def _match_shape(
    array: Array, expected: Sequence[int | str], sizes: dict[str, int], where: str
) -> None:
    """Hold a shape against the expected one; ``sizes`` keeps what each dynamic axis was before."""
    fits = array.ndim == len(expected)
    if fits:
        for size, want in zip(array.shape, expected, strict=True):
            if size != (sizes.setdefault(want, size) if isinstance(want, str) else want):
                fits = False
    if not fits:
        known = ", ".join(f"{axis} is {size}" for axis, size in sizes.items())
        raise InputError(
            f"{where} has shape {_text(array.shape)}; it must be {_text(expected)}"
            + (f", where {known}" if known else "")
        )


def _fit_dtype(array: Array, spec: TensorSpec, where: str) -> Array:
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)
    kinds = "f" if wanted.kind == "f" else ("iub" if spec.role == "mask" else "iu")
    if array.dtype.kind not in kinds:
        kind = "floats" if wanted.kind == "f" else "integers"
        raise InputError(
            f"{where} has dtype {array.dtype}; give {wanted}, or other {kind} that fit it"
        )
    if wanted.kind == "f":
        with np.errstate(over="ignore"):
            fitted = array.astype(wanted, order="C")
        lost = np.isinf(fitted) & np.isfinite(array)
    else:
        fitted = array.astype(wanted, order="C")
        lost = fitted != array
    if lost.any():
        raise InputError(f"{where} holds {array[lost][0]}, which is out of the range of {wanted}")
    return fitted


def _outside(array: Array, spec: TensorSpec) -> bool:
    """Whether an id is outside ``[0, limit)``."""
    if spec.role != "ids" or spec.limit is None or not array.size:
        return False
    return bool(array.min() < 0 or array.max() >= spec.limit)


def _check_ids(array: Array, spec: TensorSpec, where: str) -> None:
    if not _outside(array, spec):
        return
    assert spec.limit is not None
    position = tuple(np.argwhere((array < 0) | (array >= spec.limit))[0].tolist())
    raise InputError(
        f"{where} holds the id {array[position]} at position {list(position)}; ids must be in "
        f"[0, {spec.limit}): use the tokenizer of this model"
    )


def _names_error(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> InputError:
    names = [spec.name for spec in inputs]
    missing = [name for name in names if name not in feeds]
    unknown = [str(name) for name in feeds if name not in names]
    parts = [f"missing inputs: {', '.join(missing)}"] if missing else []
    parts += [f"unknown inputs: {', '.join(unknown)}"] if unknown else []
    return InputError(f"{'; '.join(parts)}; the engine takes: {', '.join(names)}")


def _text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
