"""Optimization profiles: the boxes of batch and sequence length that an engine is built for.

Pure arithmetic, so that a wrong profile is refused before minutes of building.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attn_export.errors import InputError, UsageError

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One optimization profile.

    Args:
        batch: least, optimal and largest number of samples; ``sequence`` likewise in tokens.

    Raises:
        UsageError: if a triple is not ascending or begins below 1.
    """

    batch: Triple
    sequence: Triple

    def __post_init__(self) -> None:
        for name, triple in (("batch", self.batch), ("sequence", self.sequence)):
            low, best, high = triple
            if not 1 <= low <= best <= high:
                raise UsageError(
                    f"a profile's {name} is {_text(triple)}; it must be MIN OPT MAX with "
                    "1 <= MIN <= OPT <= MAX"
                )

    def holds(self, batch: int, length: int) -> bool:
        """Whether a batch of this shape may run in it."""
        return (
            self.batch[0] <= batch <= self.batch[2]
            and self.sequence[0] <= length <= self.sequence[2]
        )

    def to_json(self) -> dict[str, list[int]]:
        """A plain dict for the manifest."""
        return {"batch": list(self.batch), "sequence": list(self.sequence)}

    @classmethod
    def from_json(cls, data: dict[str, list[int]]) -> Profile:
        """The inverse of :meth:`to_json`."""
        return cls(batch=_triple(data["batch"]), sequence=_triple(data["sequence"]))

    def __str__(self) -> str:
        """As error messages show it."""
        return f"batch {_text(self.batch)}, sequence {_text(self.sequence)}"


def bucket_profiles(edges: Sequence[int], batch_tokens: int) -> tuple[Profile, ...]:
    """One profile a bucket: tuned for its edge and for the batch that fills ``batch_tokens``.

    Args:
        edges: ascending bucket edges, in tokens.
        batch_tokens: the tokens (padding included) of the largest batch; at least one sample.
    """
    profiles = []
    shortest = 1
    for edge in edges:
        batch = max(1, batch_tokens // edge)
        profiles.append(Profile(batch=(1, batch, batch), sequence=(shortest, edge, edge)))
        shortest = edge + 1
    return tuple(profiles)


def given_profiles(batches: Sequence[Triple], sequences: Sequence[Triple]) -> tuple[Profile, ...]:
    """The profiles that ``-b`` and ``-s`` describe, one of each at a time.

    One ``-b`` serves every ``-s``, and the other way round.

    Raises:
        UsageError: if their numbers differ, or one of the two is missing.
    """
    if not batches or not sequences:
        missing = "-s/--seq-len" if batches else "-b/--batch-size"
        raise UsageError(f"{missing} is missing; give -b and -s, each MIN OPT MAX")
    count = max(len(batches), len(sequences))
    if any(len(given) not in (1, count) for given in (batches, sequences)):
        raise UsageError(
            f"{len(batches)} times -b and {len(sequences)} times -s were given; give one of each "
            "per profile, or one that serves all"
        )
    every_batch = list(batches) * (count if len(batches) == 1 else 1)
    every_sequence = list(sequences) * (count if len(sequences) == 1 else 1)
    pairs = zip(every_batch, every_sequence, strict=True)
    return tuple(Profile(batch=batch, sequence=sequence) for batch, sequence in pairs)


def check_profiles(profiles: Sequence[Profile], longest: int) -> None:
    """Refuse profiles that could not serve: too long, or two that take the same shape.

    Args:
        longest: the model's longest sequence, in tokens.

    Raises:
        UsageError: with the profiles concerned.
    """
    for index, profile in enumerate(profiles):
        if profile.sequence[2] > longest:
            raise UsageError(
                f"profile {index} ({profile}) is longer than the model's {longest} tokens"
            )
        for other, before in enumerate(profiles[:index]):
            if _meet(profile.batch, before.batch) and _meet(profile.sequence, before.sequence):
                raise UsageError(
                    f"profiles {other} ({before}) and {index} ({profile}) take the same shapes, so "
                    "one of them would never run there; make their batches or sequences disjoint"
                )


def profile_edges(profiles: Sequence[Profile]) -> tuple[int, ...]:
    """The bucket edges of profiles: their longest sequences, ascending, each once."""
    return tuple(sorted({profile.sequence[2] for profile in profiles}))


def largest_batches(profiles: Sequence[Profile]) -> tuple[int, ...]:
    """The largest batch that runs at each bucket's edge."""
    return tuple(
        max(profile.batch[2] for profile in profiles if profile.sequence[2] == edge)
        for edge in profile_edges(profiles)
    )


def profile_of(profiles: Sequence[Profile], batch: int, length: int) -> int:
    """The index of the profile that takes a shape.

    Raises:
        InputError: if none does; the message lists them.
    """
    for index, profile in enumerate(profiles):
        if profile.holds(batch, length):
            return index
    listed = "; ".join(f"{index}: {profile}" for index, profile in enumerate(profiles))
    raise InputError(
        f"a batch of {batch} with {length} tokens is outside every profile of this engine "
        f"({listed}); change the batch, or compile with -b and -s that hold it"
    )


def fitting_shape(profiles: Sequence[Profile], batch: int, length: int) -> tuple[int, int]:
    """The shape with the least tokens that a profile takes and that holds ``[batch, length]``.

    Raises:
        InputError: if no profile is large enough; the message lists them.
    """
    shapes = [
        (max(batch, profile.batch[0]), max(length, profile.sequence[0]))
        for profile in profiles
        if batch <= profile.batch[2] and length <= profile.sequence[2]
    ]
    if not shapes:
        profile_of(profiles, batch, length)
    return min(shapes, key=lambda shape: shape[0] * shape[1])


def _meet(a: Triple, b: Triple) -> bool:
    return a[0] <= b[2] and b[0] <= a[2]


def _triple(values: Sequence[int]) -> Triple:
    low, best, high = values
    return int(low), int(best), int(high)


def _text(triple: Triple) -> str:
    return " ".join(map(str, triple))
