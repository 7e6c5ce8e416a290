"""Reading sequences: what each format gives, and what each broken file is told."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from attn_export.calibration.data import read_sequences
from attn_export.calibration.texts import TEXTS_AT_ONCE
from attn_export.errors import InputError, MissingPackage, UsageError


def jsonl(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def npz(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays)
    return path


def as_lists(sequences: list[Any]) -> list[list[int]]:
    assert all(ids.dtype == np.int32 and ids.ndim == 1 for ids in sequences)
    return [ids.tolist() for ids in sequences]


def test_jsonl_gives_the_ids_of_each_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input_ids": [2, 4, 3], "label": 1}, {"input_ids": [2**31 - 1]})
    assert as_lists(read_sequences(path)) == [[2, 4, 3], [2**31 - 1]]


def test_jsonl_padding_is_left_out_by_the_mask(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input_ids": [2, 4, 3, 0], "attention_mask": [1, 1, 1, 0]})
    assert as_lists(read_sequences(path)) == [[2, 4, 3]]


def test_jsonl_ids_come_before_a_text_and_both_kinds_keep_their_order(
    tmp_path: Path, tokenizer: Path
) -> None:
    path = jsonl(tmp_path, {"text": "bad day"}, {"input_ids": [9], "text": "good"}, {"text": ""})
    assert as_lists(read_sequences(path, tokenizer=tokenizer)) == [[2, 5, 6, 3], [9], [2, 3]]


def test_txt_adds_special_tokens_and_ignores_the_files_padding_and_truncation(
    tmp_path: Path, tokenizer: Path
) -> None:
    path = tmp_path / "texts.TXT"
    path.write_bytes("\ufeffgood day\r\n \n\nbad\u2028good day unknown".encode())
    assert as_lists(read_sequences(path, tokenizer=tokenizer)) == [
        [2, 4, 6, 3],
        [2, 5, 4, 6, 1, 3],
    ]


def test_texts_are_truncated_to_max_length_with_their_special_tokens(
    tmp_path: Path, tokenizer: Path
) -> None:
    path = jsonl(tmp_path, {"text": "good bad day"}, {"text": "day"})
    assert as_lists(read_sequences(path, tokenizer=tokenizer, max_length=4)) == [
        [2, 4, 5, 3],
        [2, 6, 3],
    ]


def test_more_texts_than_one_batch_keep_their_order(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("good\n" * TEXTS_AT_ONCE + "bad\n", encoding="utf-8")
    sequences = as_lists(read_sequences(path, tokenizer=tokenizer))
    assert sequences == [[2, 4, 3]] * TEXTS_AT_ONCE + [[2, 5, 3]]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        pytest.param({"input_ids": [[1, 2], [3, 0]]}, [[1, 2], [3, 0]], id="no-mask"),
        pytest.param(
            {"input_ids": [[1, 2, -1], [-1, 3, 4]], "attention_mask": [[1, 1, 0], [0, 1, 1]]},
            [[1, 2], [3, 4]],
            id="padded-right-and-left",
        ),
        pytest.param(
            {"input_ids": [[1, 2]], "attention_mask": [[True, False]]}, [[1]], id="boolean-mask"
        ),
        pytest.param(
            {"input_ids": [1, 2, 3, 4], "offsets": np.array([0, 1, 4], dtype=np.uint64)},
            [[1], [2, 3, 4]],
            id="flat",
        ),
    ],
)
def test_npz_gives_the_real_tokens_of_each_row(
    tmp_path: Path, arrays: dict[str, Any], expected: list[list[int]]
) -> None:
    assert as_lists(read_sequences(npz(tmp_path, **arrays))) == expected


def test_limit_stops_before_a_broken_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input_ids": [1]}, {"input_ids": [2]}, {"broken": 0})
    assert as_lists(read_sequences(path, limit=2)) == [[1], [2]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param([1, 2], r"line 2 is \[1, 2\]; it must be an object", id="no-object"),
        pytest.param({"ids": [1]}, r"line 2 has the keys 'ids'; it needs", id="other-key"),
        pytest.param({}, r"line 2 has the keys none", id="no-key"),
        pytest.param({"input_ids": []}, "line 2 has no tokens", id="empty"),
        pytest.param({"input_ids": 7}, "line 2: input_ids must be a list", id="no-list"),
        pytest.param({"input_ids": [1, 2.0]}, "line 2: input_ids must be a list", id="float"),
        pytest.param({"input_ids": [1, True]}, "line 2: input_ids must be a list", id="boolean"),
        pytest.param({"input_ids": [[1]]}, "line 2: input_ids must be a list", id="nested"),
        pytest.param({"input_ids": [5, -1]}, "line 2 holds the token id -1", id="negative"),
        pytest.param({"input_ids": [2**31]}, "the token id 2147483648; ids are between", id="big"),
        pytest.param({"input_ids": [2**70]}, f"line 2: input_ids holds {2**70}", id="huge"),
        pytest.param({"text": None}, "line 2: text is None", id="text-null"),
        pytest.param({"text": "\ud800"}, "line 2: text is not valid Unicode", id="surrogate"),
        pytest.param(
            {"input_ids": [1, 2], "attention_mask": [1]},
            "line 2 has 2 input_ids and 1 values",
            id="short-mask",
        ),
        pytest.param(
            {"input_ids": [1], "attention_mask": [2]}, "must hold 1 .* and 0", id="mask-values"
        ),
        pytest.param(
            {"input_ids": [1], "attention_mask": [0]}, "line 2 has no tokens", id="all-padding"
        ),
    ],
)
def test_a_broken_jsonl_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_sequences(jsonl(tmp_path, {"input_ids": [1]}, row))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "holds no sequences", id="empty"),
        pytest.param(b"\n \n", "holds no sequences", id="blank"),
        pytest.param(b'{"input_ids": [1]}\n\n{"input_ids"', "line 3 is not JSON", id="cut"),
        pytest.param(b'{"input_ids": [1]}\n{"text": "\xff"}', "line 2 is not UTF-8", id="latin"),
        pytest.param(b"[" * 200_000, "line 1 is not JSON", id="deeply-nested"),
    ],
)
def test_a_file_that_is_not_jsonl_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_sequences(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        pytest.param({"ids": [[1]]}, "holds no array 'input_ids'", id="no-ids"),
        pytest.param({"input_ids": [1, 2]}, r"shape \(2,\); it must be \[N, S\]", id="rank-1"),
        pytest.param(
            {"input_ids": [[1, 2]], "offsets": [0, 2]}, r"shape \(1, 2\)", id="rank-2-offsets"
        ),
        pytest.param({"input_ids": np.zeros((0, 4), int)}, "holds no sequences", id="no-rows"),
        pytest.param({"input_ids": np.zeros((2, 0), int)}, "row 0 .* has no tokens", id="no-cols"),
        pytest.param({"input_ids": [[1.0]]}, "input_ids are float64", id="float"),
        pytest.param({"input_ids": [[1, 2], [3, -4]]}, "row 1 .* the token id -4", id="negative"),
        pytest.param(
            {"input_ids": np.array([[2**63]], np.uint64)}, "the token id 9223372036854775808"
        ),
        pytest.param(
            {"input_ids": [[1, 2]], "attention_mask": [[1]]}, r"\(1, 1\), input_ids has \(1, 2\)"
        ),
        pytest.param(
            {"input_ids": [[1], [2]], "attention_mask": [[1], [0]]}, "row 1 .* has no tokens"
        ),
        pytest.param({"input_ids": [1, 2], "offsets": [0, 1]}, "rise from 0 to the 2", id="short"),
        pytest.param({"input_ids": [1, 2], "offsets": [1, 2]}, "rise from 0 to the 2", id="start"),
        pytest.param({"input_ids": [1, 2], "offsets": [0, 3, 2]}, "rise from 0", id="falling"),
        pytest.param(
            {"input_ids": [1, 2], "offsets": np.array([0, 3, 2], np.uint64)},
            "rise from 0",
            id="falling-unsigned",
        ),
        pytest.param({"input_ids": [1, 2], "offsets": [[0, 2]]}, "rise from 0", id="rank"),
        pytest.param({"input_ids": [1, 2], "offsets": [0.0, 2.0]}, "rise from 0", id="floats"),
        pytest.param({"input_ids": [1], "offsets": np.empty(0, int)}, "rise from 0", id="none"),
        pytest.param({"input_ids": [1, 2], "offsets": [0, 0, 2]}, "row 0 .* has no tokens"),
        pytest.param({"input_ids": np.array([None])}, "cannot be read as npz", id="objects"),
    ],
)
def test_broken_npz_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_sequences(npz(tmp_path, **arrays))


@pytest.mark.parametrize("kept", [0, 2, 60, -30])
def test_a_truncated_npz_is_refused(tmp_path: Path, kept: int) -> None:
    path = npz(tmp_path, input_ids=[[1, 2, 3]])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="cannot be read as npz"):
        read_sequences(path)


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    with path.open("wb") as stream:
        np.save(stream, np.array([[1, 2]]))
    with pytest.raises(InputError, match="holds no array 'input_ids'"):
        read_sequences(path)


def test_ids_longer_than_the_maximum_are_an_error_not_cut(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input_ids": [1, 2, 3]}, {"input_ids": [1, 2, 3, 4]})
    with pytest.raises(InputError, match="line 2 has 4 tokens, the maximum is 3; shorten"):
        read_sequences(path, max_length=3)
    assert [len(ids) for ids in read_sequences(path, max_length=4)] == [3, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.xls", r"suffix '\.xls'; the formats are: \.jsonl, \.csv, \.parquet, \.txt, \.npz"),
        ("rows", "suffix ''"),
        ("rows.jsonl", "does not exist"),
        ("folder.txt", "is a directory"),
    ],
)
def test_a_wrong_path_is_a_usage_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match=message) as caught:
        read_sequences(tmp_path / name)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt", ".npz"])
def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, suffix: str) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs /proc/self/mem, a file whose reads fail for root too")
    path = tmp_path / f"rows{suffix}"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(UsageError, match="cannot be read: Input/output error"):
        read_sequences(path)


def test_options_below_one_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input_ids": [1]})
    with pytest.raises(UsageError, match="max_length is 0; it must be at least 1"):
        read_sequences(path, max_length=0)
    with pytest.raises(UsageError, match="limit is -1; it must be at least 1"):
        read_sequences(path, limit=-1)


def test_texts_without_a_tokenizer_say_what_to_give(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input_ids": [1]}, {"text": "good"})
    with pytest.raises(UsageError, match=r"line 2 is a text .* give the model's tokenizer\.json"):
        read_sequences(path)


def test_a_maximum_that_leaves_no_room_for_a_word_is_refused(
    tmp_path: Path, tokenizer: Path
) -> None:
    path = jsonl(tmp_path, {"text": "good day"})
    with pytest.raises(UsageError, match="adds 2 special tokens; it must be at least 3"):
        read_sequences(path, tokenizer=tokenizer, max_length=2)


def test_a_missing_tokenizer_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        read_sequences(jsonl(tmp_path, {"text": "good"}), tokenizer=tmp_path)


def test_a_broken_tokenizer_file_is_an_input_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.json is not a tokenizer\.json"):
        read_sequences(jsonl(tmp_path, {"text": "good"}), tokenizer=broken)


def test_a_text_of_no_tokens_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.json"
    Tokenizer(models.WordLevel({"[UNK]": 1}, unk_token="[UNK]")).save(str(plain))
    with pytest.raises(InputError, match="line 1 has no tokens"):
        read_sequences(jsonl(tmp_path, {"text": ""}), tokenizer=plain)


def test_a_missing_package_names_its_extra_and_ids_do_not_need_it(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None makes an import fail as it does where the package is absent.
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = jsonl(tmp_path, {"text": "good"})
    with pytest.raises(MissingPackage, match=r"attn-export\[text\]"):
        read_sequences(path, tokenizer=tokenizer)
    assert as_lists(read_sequences(jsonl(tmp_path, {"input_ids": [1]}))) == [[1]]


def test_the_tweets_read_as_2000_sequences() -> None:
    folder = os.environ.get("ATTN_EXPORT_DATA")
    if not folder:
        pytest.skip("ATTN_EXPORT_DATA is not set: the tweets' ids are not here")
    path = Path(folder) / "tweet_eval_sentiment_val_ids.jsonl"
    sequences = read_sequences(path, max_length=128)
    assert len(sequences) == 2000
    assert all(ids[0] == 101 and ids[-1] == 102 for ids in sequences)
