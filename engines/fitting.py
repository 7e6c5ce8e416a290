"""Run a batch whose shape no profile takes as it is: pad it to one that does, cut the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from attn_export.errors import InputError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .profiles import fitting_shape
from .session import Array, Feeds, Outputs, Session

Sizes = Mapping[str, int]


def run_fitted(session: Session, feeds: Feeds) -> Outputs:
    """Run one batch, padded where the session's profiles ask for it.

    Missing samples repeat the last one, missing tokens are masked; neither is in the outputs.

    Args:
        feeds: all inputs by name, checked.

    Raises:
        InputError: if no profile is large enough, or tokens would have to be added to a model that
            takes no mask of shape [B, S].
    """
    if not session.profiles:
        return session.run(feeds)
    fitted, real = _fit(session, feeds)
    return _cut_all(session, session.run(fitted), real)


def run_all_fitted(session: Session, batches: Iterable[Feeds]) -> Iterator[Outputs]:
    """The same for many batches; results in order.

    Raises:
        InputError: as :func:`run_fitted` does.
    """
    if not session.profiles:
        return session.run_all(batches)
    sizes: deque[Sizes] = deque()

    def fitted() -> Iterator[Feeds]:
        for feeds in batches:
            padded, real = _fit(session, feeds)
            sizes.append(real)
            yield padded

    results = session.run_all(fitted())
    return (_cut_all(session, outputs, sizes.popleft()) for outputs in results)


def _fit(session: Session, feeds: Feeds) -> tuple[Feeds, Sizes]:
    """The feeds in a shape that a profile takes, and the sizes that are real."""
    batch = _size(session.inputs, feeds, BATCH)
    length = _size(session.inputs, feeds, SEQUENCE)
    shape = fitting_shape(session.profiles, batch, length)
    real = {BATCH: batch, SEQUENCE: length}
    if shape == (batch, length):
        return feeds, real
    if shape[1] > length and not _has_mask(session.inputs):
        raise InputError(
            f"the sequences have {length} tokens and the engine's profiles begin at {shape[1]}; "
            "this model takes no attention mask, so they cannot be padded: give longer ones, or "
            "compile with -s that holds them"
        )
    grown = {BATCH: shape[0] - batch, SEQUENCE: shape[1] - length}
    return {spec.name: _padded(feeds[spec.name], spec, grown) for spec in session.inputs}, real


def _cut_all(session: Session, outputs: Outputs, real: Sizes) -> Outputs:
    return {
        spec.name: outputs[spec.name][tuple(slice(real.get(str(axis))) for axis in spec.shape)]
        for spec in session.outputs
    }


def _size(specs: Sequence[TensorSpec], feeds: Feeds, axis: str) -> int:
    """The size of a dynamic axis; 1 where no input has it."""
    for spec in specs:
        position = spec.axis(axis)
        if position is not None:
            return int(feeds[spec.name].shape[position])
    return 1


def _has_mask(specs: Sequence[TensorSpec]) -> bool:
    return any(spec.role == "mask" and spec.shape == (BATCH, SEQUENCE) for spec in specs)


def _padded(array: Array, spec: TensorSpec, grown: Mapping[str, int]) -> Array:
    """Tokens of zeros first, then copies of the last sample."""
    tokens = [(0, grown[SEQUENCE] if axis == SEQUENCE else 0) for axis in spec.shape]
    samples = [(0, grown[BATCH] if axis == BATCH else 0) for axis in spec.shape]
    return np.pad(np.pad(array, tokens), samples, mode="edge")
