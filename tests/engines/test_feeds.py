"""Feeds are refused by name or returned as the engine takes them; packing is worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attn_export.engines.feeds import Requests, check_feeds, seeded_feeds
from attn_export.errors import InputError, UsageError
from attn_export.spec import TensorSpec

IDS = TensorSpec(name="ids", dtype="int32", shape=("batch", "sequence"), role="ids", limit=50)
MASK = TensorSpec(name="mask", dtype="int32", shape=("batch", "sequence"), role="mask")
PIXELS = TensorSpec(name="pixels", dtype="float32", shape=("batch", "sequence", 2))
SCORE = TensorSpec(name="score", dtype="float32", shape=("batch",))
BUCKETS = (4, 8)


def feeds(**changes: Any) -> dict[str, Any]:
    good = {"ids": np.ones((2, 3), np.int32), "mask": np.ones((2, 3), np.int32)}
    return {**good, **changes}


def test_feeds_that_fit_are_passed_on_without_a_copy() -> None:
    given = feeds()
    checked = check_feeds(given, (IDS, MASK), buckets=BUCKETS, check_ids=True)
    assert list(checked) == ["ids", "mask"]
    assert all(checked[name] is given[name] for name in given)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", ">i4"])
def test_integers_that_fit_become_int32(dtype: str) -> None:
    given = feeds(ids=np.array([[1, 2, 49]] * 2, dtype))
    ids = check_feeds(given, (IDS, MASK), buckets=BUCKETS)["ids"]
    assert ids.dtype == np.int32
    assert ids.dtype.isnative
    assert ids.tolist() == [[1, 2, 49]] * 2


def test_lists_and_boolean_masks_are_accepted() -> None:
    given = {"ids": [[1, 2]], "mask": np.array([[True, False]])}
    checked = check_feeds(given, (IDS, MASK), buckets=BUCKETS)
    assert checked["ids"].tolist() == [[1, 2]]
    assert checked["mask"].tolist() == [[1, 0]]
    assert {array.dtype.name for array in checked.values()} == {"int32"}


def test_other_memory_layouts_become_contiguous() -> None:
    ids = np.arange(6, dtype=np.int32).reshape(3, 2).T
    checked = check_feeds(feeds(ids=ids), (IDS, MASK), buckets=BUCKETS)["ids"]
    assert checked.flags.c_contiguous
    assert checked.tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floats_become_float32(dtype: str) -> None:
    given = {"pixels": np.full((1, 2, 2), 0.5, dtype)}
    pixels = check_feeds(given, (PIXELS,), buckets=BUCKETS)["pixels"]
    assert pixels.dtype == np.float32
    assert (pixels == 0.5).all()


def test_infinity_and_nan_are_values_like_others() -> None:
    given = {"pixels": np.array([[[np.inf, np.nan]]])}
    pixels = check_feeds(given, (PIXELS,), buckets=BUCKETS)["pixels"]
    assert np.isinf(pixels[0, 0, 0])
    assert np.isnan(pixels[0, 0, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(
            {"ids": np.ones((2, 3), np.int32)},
            "missing inputs: mask; the engine takes: ids, mask",
            id="missing",
        ),
        pytest.param(feeds(types=1), "unknown inputs: types; the engine takes", id="unknown"),
        pytest.param(
            {"ids": 1, "Mask": 1}, "missing inputs: mask; unknown inputs: Mask", id="misspelt"
        ),
        pytest.param(
            feeds(ids=np.ones(3, np.int32)),
            r"ids has shape \[3\]; it must be \[batch, sequence\]",
            id="rank",
        ),
        pytest.param(
            feeds(mask=np.ones((2, 4), np.int32)),
            r"mask has shape \[2, 4\]; it must be \[batch, sequence\], where batch is 2, "
            "sequence is 3",
            id="sequence-differs",
        ),
        pytest.param(
            feeds(mask=np.ones((1, 3), np.int32)), r"mask has shape \[1, 3\]", id="batch-differs"
        ),
        pytest.param(
            {name: np.ones((0, 3), np.int32) for name in ("ids", "mask")},
            "ids is a batch of 0",
            id="empty-batch",
        ),
        pytest.param(
            {name: np.ones((2, 0), np.int32) for name in ("ids", "mask")},
            "ids has 0 tokens; the buckets are 4, 8",
            id="empty-sequence",
        ),
        pytest.param(
            {name: np.ones((2, 9), np.int32) for name in ("ids", "mask")},
            "ids has 9 tokens; the buckets are 4, 8",
            id="too-long",
        ),
        pytest.param(
            feeds(ids=np.ones((2, 3), np.float32)),
            "ids has dtype float32; give int32, or other integers",
            id="float-ids",
        ),
        pytest.param(
            feeds(ids=np.ones((2, 3), bool)), "ids has dtype bool; give int32", id="boolean-ids"
        ),
        pytest.param(
            feeds(ids=np.full((2, 3), 2**31)),
            "ids holds 2147483648, which is out of the range of int32",
            id="int64-too-large",
        ),
        pytest.param(
            feeds(ids=np.full((2, 3), 2**64 - 1, np.uint64)),
            "ids holds 18446744073709551615, which is out of the range",
            id="uint64-that-would-wrap-to-minus-1",
        ),
        pytest.param(feeds(ids=[[1, 2, 3], [4]]), "ids is not an array", id="ragged"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_feeds(given, (IDS, MASK), buckets=BUCKETS)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        pytest.param(
            np.ones((1, 2, 3), np.float32),
            r"pixels has shape \[1, 2, 3\]; it must be \[batch, sequence, 2\]",
            id="fixed-size",
        ),
        pytest.param(
            np.ones((1, 2, 2), np.int64), "has dtype int64; give float32, or other floats", id="int"
        ),
        pytest.param(
            np.full((1, 2, 2), 1e39), "holds 1e\\+39, which is out of the range", id="overflow"
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(pixels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_feeds({"pixels": pixels}, (PIXELS,), buckets=BUCKETS)


@pytest.mark.parametrize("wrong", [-1, 50])
def test_ids_outside_the_vocabulary_are_refused_where_asked(wrong: int) -> None:
    given = feeds(ids=np.array([[0, 49, 1], [2, wrong, 3]], np.int32))
    check_feeds(given, (IDS, MASK), buckets=BUCKETS)
    with pytest.raises(InputError, match=rf"the id {wrong} at position \[1, 1\]; .* \[0, 50\)"):
        check_feeds(given, (IDS, MASK), buckets=BUCKETS, check_ids=True)


def test_seeded_feeds_are_valid_and_the_same_each_time() -> None:
    inputs = (IDS, MASK, PIXELS, SCORE)
    first, second = seeded_feeds(inputs, 3, 8), seeded_feeds(inputs, 3, 8)
    checked = check_feeds(first, inputs, buckets=BUCKETS, check_ids=True)
    assert [array.shape for array in checked.values()] == [(3, 8), (3, 8), (3, 8, 2), (3,)]
    assert len(np.unique(first["ids"])) > 1
    assert (first["mask"] == 1).all()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_requests_are_padded_on_the_right_in_the_order_asked_for() -> None:
    requests = Requests([[1, 2, 3], np.array([4]), (5, 6)], (IDS, MASK), check_ids=True)
    assert requests.lengths == [3, 1, 2]
    packed = requests.feeds([2, 0], 4)
    assert packed["ids"].tolist() == [[5, 6, 0, 0], [1, 2, 3, 0]]
    assert packed["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert packed["ids"].dtype == packed["mask"].dtype == np.int32


def test_requests_of_several_inputs_are_packed_axis_by_axis() -> None:
    pairs = TensorSpec(
        name="pairs", dtype="int32", shape=("batch", "sequence", "sequence"), role="mask"
    )
    requests = Requests(
        [
            {"pixels": [[0.5, 1.0]], "score": 2.0, "pairs": [[True]]},
            {"pixels": [[1.0, 2.0], [3.0, 4.0]], "score": np.float64(7)},
        ],
        (PIXELS, SCORE, pairs),
        check_ids=False,
    )
    packed = requests.feeds([0, 1], 3)
    assert packed["pixels"].tolist() == [
        [[0.5, 1], [0, 0], [0, 0]],
        [[1, 2], [3, 4], [0, 0]],
    ]
    assert packed["score"].tolist() == [2, 7]
    assert packed["pairs"].tolist() == [
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[1, 1, 0], [1, 1, 0], [0, 0, 0]],
    ]


def test_a_request_may_bring_its_own_mask() -> None:
    requests = Requests([{"ids": [1, 2], "mask": [False, True]}], (IDS, MASK), check_ids=False)
    assert requests.feeds([0], 3)["mask"].tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param(3, r"request 1 \(from 0\), ids has shape \[\]", id="number"),
        pytest.param([[1, 2]], r"ids has shape \[1, 2\]; it must be \[sequence\]", id="batch"),
        pytest.param([1.5, 2.0], "ids has dtype float64", id="floats"),
        pytest.param("text", r"ids has shape \[\]", id="text"),
        pytest.param([2**40], "ids holds 1099511627776", id="out-of-range"),
        pytest.param([1, 50], r"ids holds the id 50 at position \[1\]", id="unknown-id"),
        pytest.param({"mask": [1]}, r"ids is missing; it has: mask", id="missing"),
        pytest.param({"ids": [1], "x": [1]}, r"request 1 .*unknown inputs: x", id="unknown"),
        pytest.param(
            {"ids": [1, 2], "mask": [1]}, r"mask has shape \[1\].*sequence is 2", id="lengths"
        ),
    ],
)
def test_a_request_that_does_not_fit_is_named(wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Requests([[1], wrong, [2]], (IDS, MASK), check_ids=True)
    assert str(caught.value).startswith("request 1 (from 0)")


def test_a_bare_array_is_refused_where_the_model_has_several_inputs() -> None:
    with pytest.raises(InputError, match=r"request 0 .* is a list; this model has several inputs"):
        Requests([[1, 2]], (IDS, SCORE), check_ids=False)


def test_an_input_without_a_batch_axis_cannot_be_packed() -> None:
    table = TensorSpec(name="table", dtype="float32", shape=(4,))
    with pytest.raises(UsageError, match=r"input table has shape \[4\]"):
        Requests([], (table,), check_ids=False)
