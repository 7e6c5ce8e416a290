"""The parity matrix and its golden file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attn_export.benchmarks import cases as module
from attn_export.benchmarks.cases import (
    Array,
    Case,
    load_reference,
    masked_rows,
    parity_cases,
    save_reference,
)
from attn_export.errors import BundleError, HostError, UsageError
from attn_export.spec import TensorSpec

TOKENS = ("batch", "sequence")
IDS = TensorSpec(name="ids", dtype="int32", shape=TOKENS, role="ids", limit=7)
MASK = TensorSpec(name="mask", dtype="int32", shape=TOKENS, role="mask")
VALUES = TensorSpec(name="x", dtype="float32", shape=("batch", "sequence", 5))
FIXED = TensorSpec(name="f", dtype="float32", shape=("batch", 5))


def by_name(cases: list[Case]) -> dict[str, Case]:
    return {case.name: case for case in cases}


def test_the_matrix_of_two_buckets() -> None:
    names = list(by_name(parity_cases((IDS, MASK), (16, 32))))
    assert names == [
        *("b1-s1-full", "b4-s1-full", "b4-s1-masked_row"),
        *("b1-s16-full", "b4-s16-full", "b4-s16-right", "b4-s16-left", "b4-s16-masked_row"),
        "b1-s17-full",
        *("b1-s32-full", "b4-s32-full", "b4-s32-right", "b4-s32-left", "b4-s32-masked_row"),
    ]


def test_six_buckets_stay_affordable() -> None:
    cases = parity_cases((IDS, MASK), (20, 26, 31, 36, 43, 128))
    assert sum(case.batch for case in cases) <= 150
    assert max(case.length for case in cases) == 128


@pytest.mark.parametrize("edges", [(1,), (2,), (1, 2), (1, 2, 3)])
def test_neighbouring_edges_give_no_case_twice(edges: tuple[int, ...]) -> None:
    cases = parity_cases((IDS, MASK), edges)
    assert len(by_name(cases)) == len(cases)
    assert {case.length for case in cases} == {1, *edges}


def test_padding_patterns_by_hand() -> None:
    cases = by_name(parity_cases((IDS, MASK), (4,)))
    right = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert cases["b4-s4-right"].feeds["mask"].tolist() == right
    assert cases["b4-s4-left"].feeds["mask"].tolist() == [row[::-1] for row in right]
    assert cases["b4-s4-masked_row"].feeds["mask"].tolist() == [[1] * 4, [0] * 4, [1] * 4, [1] * 4]
    assert cases["b4-s4-full"].feeds["mask"].tolist() == [[1] * 4] * 4


def test_masked_rows_are_found() -> None:
    cases = by_name(parity_cases((IDS, MASK), (4,)))
    assert masked_rows((IDS, MASK), cases["b4-s4-masked_row"]).tolist() == [0, 1, 0, 0]
    assert not masked_rows((IDS, MASK), cases["b4-s4-left"]).any()
    assert not masked_rows((IDS,), cases["b4-s4-full"]).any()


def test_feeds_fit_the_inputs() -> None:
    bias = TensorSpec(name="m3", dtype="bool", shape=("batch", 1, "sequence"), role="mask")
    for case in parity_cases((IDS, MASK, VALUES, FIXED, bias), (8, 20)):
        shapes = {name: array.shape for name, array in case.feeds.items()}
        b, s = case.batch, case.length
        assert shapes == {
            "ids": (b, s),
            "mask": (b, s),
            "x": (b, s, 5),
            "f": (b, 5),
            "m3": (b, 1, s),
        }
        assert [str(array.dtype) for array in case.feeds.values()] == (
            ["int32", "int32", "float32", "float32", "bool"]
        )
        assert case.feeds["m3"].all()


def test_ids_reach_both_ends_of_their_range() -> None:
    ids = np.concatenate([c.feeds["ids"].ravel() for c in parity_cases((IDS,), (64,))])
    assert (ids.min(), ids.max()) == (0, 6)


def test_a_model_without_a_mask_has_full_rows_only() -> None:
    assert {case.mask for case in parity_cases((IDS, VALUES), (8, 16))} == {"full"}


def test_a_model_without_a_sequence_has_one_length() -> None:
    cases = parity_cases((FIXED,), (1,))
    assert [(case.batch, case.length) for case in cases] == [(1, 1), (4, 1)]


def test_the_seed_decides_the_values_and_other_edges_do_not() -> None:
    one = by_name(parity_cases((IDS, MASK), (16, 32)))["b4-s32-left"].feeds["ids"]
    same = by_name(parity_cases((IDS, MASK), (32,)))["b4-s32-left"].feeds["ids"]
    other = by_name(parity_cases((IDS, MASK), (16, 32), seed=1))["b4-s32-left"].feeds["ids"]
    assert (one == same).all()
    assert (one != other).any()


def test_ids_without_a_limit_are_refused() -> None:
    with pytest.raises(UsageError, match="'ids' holds ids; its largest id"):
        parity_cases((TensorSpec(name="ids", dtype="int32", shape=TOKENS, role="ids"),), (4,))


def matrix(width: int) -> tuple[list[Case], list[dict[str, Array]]]:
    cases = parity_cases((IDS, MASK), (8, 16))
    rng = np.random.default_rng(0)
    return cases, [
        {"y": rng.standard_normal((c.batch, c.length, width)).astype(np.float32)} for c in cases
    ]


def test_the_golden_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    cases, outputs = matrix(3)
    assert save_reference(tmp_path / "r.npz", cases, outputs) == []
    read = load_reference(tmp_path / "r.npz")
    assert read.dropped == []
    for (case, output), before, expected in zip(read.pairs, cases, outputs, strict=True):
        assert (case.name, case.batch, case.length, case.mask) == (
            (before.name, before.batch, before.length, before.mask)
        )
        for name, array in before.feeds.items():
            assert case.feeds[name].dtype == array.dtype
            assert np.array_equal(case.feeds[name], array)
        assert np.array_equal(output["y"], expected["y"])


def test_the_golden_file_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        save_reference(tmp_path / name, *matrix(3))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_full_golden_file_drops_the_middle_before_the_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GOLDEN_BYTES", 150_000)
    path = tmp_path / "r.npz"
    dropped = save_reference(path, *matrix(200))
    read = load_reference(path)
    assert path.stat().st_size <= 150_000
    assert read.dropped == dropped
    kept = {case.name for case, _ in read.pairs}
    assert kept.isdisjoint(dropped)
    assert len(kept) + len(dropped) == len(matrix(1)[0])
    assert not kept & {"b1-s8-full", "b4-s8-full", "b1-s9-full"}  # the middle went first
    assert {"b1-s1-full", "b1-s16-full", "b4-s8-left"} <= kept


def test_the_smallest_case_always_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GOLDEN_BYTES", 1)
    save_reference(tmp_path / "r.npz", *matrix(3))
    assert [case.name for case, _ in load_reference(tmp_path / "r.npz").pairs] == ["b1-s1-full"]


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04broken"])
def test_a_broken_golden_file_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "r.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as a golden file"):
        load_reference(path)


def test_a_file_without_cases_is_no_golden_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", other=np.zeros(3))
    with pytest.raises(BundleError, match="golden file"):
        load_reference(tmp_path / "r.npz")


def test_a_folder_that_is_a_file_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="not a directory"):
        save_reference(tmp_path / "file" / "r.npz", *matrix(1))
