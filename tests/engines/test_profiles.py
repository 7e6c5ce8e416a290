"""Optimization profiles: refused before the build, and chosen by shape."""

from __future__ import annotations

import pytest

from attn_export.engines.profiles import (
    Profile,
    bucket_profiles,
    check_profiles,
    fitting_shape,
    given_profiles,
    largest_batches,
    profile_edges,
    profile_of,
)
from attn_export.errors import InputError, UsageError

BUCKETS = bucket_profiles((20, 50, 128), 1000)


def test_a_bucket_is_tuned_for_its_edge_and_the_batch_that_fills_the_budget() -> None:
    assert (
        Profile(batch=(1, 50, 50), sequence=(1, 20, 20)),
        Profile(batch=(1, 20, 20), sequence=(21, 50, 50)),
        Profile(batch=(1, 7, 7), sequence=(51, 128, 128)),
    ) == BUCKETS
    assert bucket_profiles((300,), 128)[0].batch == (1, 1, 1)


@pytest.mark.parametrize("length", [1, 20, 21, 50, 51, 128])
def test_buckets_leave_no_gap_and_no_overlap(length: int) -> None:
    check_profiles(BUCKETS, 128)
    assert sum(profile.holds(1, length) for profile in BUCKETS) == 1
    assert BUCKETS[profile_of(BUCKETS, 1, length)].holds(1, length)


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 3), (1, 4, 3), (-1, 1, 1)])
def test_a_profile_that_does_not_ascend_is_refused(batch: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="must be MIN OPT MAX with 1 <= MIN <= OPT <= MAX"):
        Profile(batch=batch, sequence=(1, 2, 3))
    with pytest.raises(UsageError, match="a profile's sequence is"):
        Profile(batch=(1, 1, 1), sequence=batch)


def test_given_shapes_are_paired_or_shared() -> None:
    assert given_profiles([(1, 8, 16)], [(1, 32, 32), (33, 64, 64)]) == (
        Profile(batch=(1, 8, 16), sequence=(1, 32, 32)),
        Profile(batch=(1, 8, 16), sequence=(33, 64, 64)),
    )
    assert given_profiles([(1, 1, 1), (2, 64, 64)], [(1, 128, 128)]) == (
        Profile(batch=(1, 1, 1), sequence=(1, 128, 128)),
        Profile(batch=(2, 64, 64), sequence=(1, 128, 128)),
    )


@pytest.mark.parametrize(
    ("batches", "sequences", "message"),
    [
        ([(1, 1, 1)], [], "-s/--seq-len is missing"),
        ([], [(1, 1, 1)], "-b/--batch-size is missing"),
        ([(1, 1, 1)] * 2, [(1, 1, 1)] * 3, "2 times -b and 3 times -s"),
    ],
)
def test_shapes_that_do_not_pair_are_refused(
    batches: list[tuple[int, int, int]], sequences: list[tuple[int, int, int]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        given_profiles(batches, sequences)


def test_profiles_of_the_same_shapes_are_refused() -> None:
    one, other = (
        Profile(batch=(1, 8, 8), sequence=(1, 32, 64)),
        Profile(batch=(8, 9, 9), sequence=(64, 64, 128)),
    )
    with pytest.raises(UsageError, match=r"profiles 0 .* and 1 .* take the same shapes"):
        check_profiles([one, other], 128)
    # A profile for one request and one for many meet in the sequence alone.
    check_profiles(given_profiles([(1, 1, 1), (2, 64, 64)], [(1, 128, 128)]), 128)


def test_a_profile_over_the_models_length_is_refused() -> None:
    with pytest.raises(UsageError, match="is longer than the model's 127 tokens"):
        check_profiles(BUCKETS, 127)


def test_a_shape_outside_is_refused_with_the_profiles() -> None:
    with pytest.raises(InputError) as caught:
        profile_of(BUCKETS, 8, 100)
    assert "a batch of 8 with 100 tokens" in str(caught.value)
    assert "2: batch 1 7 7, sequence 51 128 128" in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 7), (8, 32)), ((8, 32), (8, 32)), ((9, 40), (9, 40)), ((16, 65), (16, 100))],
)
def test_a_shape_is_padded_to_the_cheapest_profile(
    shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    profiles = given_profiles([(8, 8, 16)], [(32, 64, 64), (100, 128, 128)])
    assert fitting_shape(profiles, *shape) == expected


def test_no_profile_is_large_enough() -> None:
    with pytest.raises(InputError, match="a batch of 8 with 128 tokens is outside every profile"):
        fitting_shape(BUCKETS, 8, 128)


def test_edges_and_the_largest_batch_at_each() -> None:
    profiles = given_profiles(
        [(1, 1, 1), (2, 64, 64), (1, 16, 16)], [(1, 128, 128), (1, 128, 128), (129, 256, 256)]
    )
    assert profile_edges(profiles) == (128, 256)
    assert largest_batches(profiles) == (64, 16)


def test_a_profile_survives_the_manifest() -> None:
    assert [Profile.from_json(profile.to_json()) for profile in BUCKETS] == list(BUCKETS)
