"""Bucket edges for a bundle, from the user's own traffic or the built-in histogram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn_export.errors import UsageError
from attn_export.spec import SEQUENCE

if TYPE_CHECKING:
    from attn_export.engines.profiles import Profile
    from attn_export.exporter.source import LoadedModel

BUCKETS = 6


@dataclass(frozen=True, kw_only=True)
class BucketOptions:
    """How bucket edges are chosen.

    Args:
        count: how many buckets.
        max_length: the last edge, in tokens; the model's own maximum by default.
        data: requests whose lengths count; the built-in histogram by default.
        profiles: where these are given, their longest sequences are the edges.
    """

    count: int = BUCKETS
    max_length: int | None = None
    data: Path | None = None
    tokenizer: Path | None = None
    profiles: tuple[Profile, ...] = ()


def choose_buckets(options: BucketOptions, model: LoadedModel) -> dict[str, Any]:
    """The manifest's buckets: edges, and what they were computed from.

    Raises:
        UsageError: if ``max_length`` or a profile is over the model's maximum, or two profiles
            take the same shapes.
        InputError: if a sequence of the data is over the last edge.
    """
    from attn_export.calibration.data import read_sequences
    from attn_export.calibration.lengths import TWEET_LENGTHS, length_histogram
    from attn_export.engines.buckets import choose_edges, padded_tokens
    from attn_export.engines.profiles import check_profiles, profile_edges

    if all(spec.axis(SEQUENCE) is None for spec in model.inputs):
        return {"edges": [1], "source": "the model has no sequence axis", "padded_share": 0.0}
    last = options.max_length or model.max_length
    if last > model.max_length:
        raise UsageError(
            f"--max-length {last} is over the model's maximum of {model.max_length} tokens"
        )
    check_profiles(options.profiles, last)
    if options.data is not None:
        sequences = read_sequences(options.data, tokenizer=options.tokenizer, max_length=last)
        histogram, source = length_histogram(sequences), options.data.name
    else:
        histogram, source = _clipped(TWEET_LENGTHS, last), "built-in tweet lengths"
    edges = choose_edges(histogram, options.count, last)
    if options.profiles:
        edges = profile_edges(options.profiles)
        histogram, source = _clipped(histogram, edges[-1]), f"the given profiles; {source}"
    real = sum(length * count for length, count in histogram.items())
    padding = padded_tokens(histogram, edges)
    return {
        "edges": list(edges),
        "source": source,
        "histogram": {str(length): count for length, count in sorted(histogram.items())},
        "padded_share": padding / (real + padding),
    }


def _clipped(histogram: Mapping[int, int], last: int) -> dict[int, int]:
    """The built-in lengths for a model that is shorter than some of them."""
    clipped: dict[int, int] = {}
    for length, count in histogram.items():
        clipped[min(length, last)] = clipped.get(min(length, last), 0) + count
    return clipped
