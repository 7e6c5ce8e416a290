"""Requests one after another: what a model's inputs ask of a row, bad rows, and memory."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.calibration.data import read_sequences, stream_requests
from attn_export.calibration.records import Record
from attn_export.calibration.requests import request_length
from attn_export.calibration.texts import TEXTS_AT_ONCE, encode_texts
from attn_export.errors import InputError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

SOME_ROWS = 10_000
IDS = TensorSpec(name="input_ids", dtype="int32", shape=(BATCH, SEQUENCE), role="ids", limit=10)
MASK = TensorSpec(name="attention_mask", dtype="int32", shape=(BATCH, SEQUENCE), role="mask")
SEGMENTS = TensorSpec(
    name="token_type_ids", dtype="int32", shape=(BATCH, SEQUENCE), role="ids", limit=2
)
FRAMES = TensorSpec(name="frames", dtype="float32", shape=(BATCH, SEQUENCE, 2))
KIND = TensorSpec(name="kind", dtype="int32", shape=(BATCH,), role="ids", limit=3)


def jsonl(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def stream(source: Path, *inputs: TensorSpec, **options: Any) -> list[dict[str, Any]]:
    requests = stream_requests(source, inputs=inputs, **options)
    return [{name: array.tolist() for name, array in r.items()} for r in requests]


# What a model's inputs ask of a row


def test_a_request_has_every_input_but_the_masks(tmp_path: Path) -> None:
    row = {"input_ids": [1, 2], "token_type_ids": [0, 1], "kind": 2, "frames": [[1, 2], [3, 4]]}
    given = {"attention_mask": [1, 1], "label": "x"}
    inputs = (IDS, MASK, SEGMENTS, KIND, FRAMES)
    (request,) = stream_requests(jsonl(tmp_path, {**row, **given}), inputs=inputs)
    assert {name: array.tolist() for name, array in request.items()} == row
    assert {n: a.dtype.name for n, a in request.items() if a.dtype != "int32"} == {
        "frames": "float32"
    }
    assert request_length(request, inputs) == 2


def test_padding_is_left_out_of_every_input_along_the_sequence(tmp_path: Path) -> None:
    row = {"input_ids": [1, -1, 2], "frames": [[1, 2], [0, 0], [3, 4]], "kind": 1}
    path = jsonl(tmp_path, {**row, "attention_mask": [1, 0, 1]})
    assert stream(path, FRAMES, IDS, KIND) == [
        {"frames": [[1, 2], [3, 4]], "input_ids": [1, 2], "kind": 1}
    ]


def test_input_ids_feed_the_token_input_whatever_its_name(tmp_path: Path, tokenizer: Path) -> None:
    tokens = TensorSpec(name="tokens", dtype="int32", shape=(BATCH, SEQUENCE), role="ids", limit=10)
    segments = [{"token_type_ids": [1], "input_ids": [2]}, {"token_type_ids": [1], "tokens": [3]}]
    path = jsonl(tmp_path, *segments, {"text": "good"})
    assert stream(path, SEGMENTS, tokens, tokenizer=tokenizer) == [
        {"token_type_ids": [1], "tokens": [2]},
        {"token_type_ids": [1], "tokens": [3]},
        {"token_type_ids": [0, 0, 0], "tokens": [2, 4, 3]},
    ]


def test_texts_feed_input_ids_and_no_larger_vocabulary(tmp_path: Path, tokenizer: Path) -> None:
    places = TensorSpec(
        name="places", dtype="int32", shape=(BATCH, SEQUENCE), role="ids", limit=512
    )
    path = jsonl(tmp_path, {"text": "good", "places": [0, 1, 2]})
    assert stream(path, places, IDS, tokenizer=tokenizer) == [
        {"places": [0, 1, 2], "input_ids": [2, 4, 3]}
    ]


def test_a_text_takes_its_other_inputs_from_its_row(tmp_path: Path, tokenizer: Path) -> None:
    path = jsonl(tmp_path, {"text": "good", "kind": 2}, {"text": "bad day", "kind": 0})
    assert stream(path, IDS, KIND, tokenizer=tokenizer) == [
        {"input_ids": [2, 4, 3], "kind": 2},
        {"input_ids": [2, 5, 6, 3], "kind": 0},
    ]


def test_a_model_without_a_sequence_has_requests_of_length_one(tmp_path: Path) -> None:
    (request,) = stream_requests(jsonl(tmp_path, {"kind": 2}), inputs=(KIND,))
    assert request_length(request, (KIND,)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 10]}, "token id 10; ids are between 0 and 9, the model's vocabulary"),
        ({"input_ids": [1]}, "the keys 'input_ids'; the model also takes 'frames'"),
        (
            {"input_ids": [1], "frames": [[1, 2]] * 2, "kind": 0},
            r"different lengths \(input_ids 1, fr",
        ),
        ({"input_ids": [1], "frames": [1, 2]}, r"frames has shape \(2,\); it must be \[sequence"),
        ({"input_ids": [1], "frames": [[1, 2, 3]]}, r"shape \(1, 3\)"),
        ({"input_ids": [1], "frames": [[1], [1, 2]]}, "frames is not an array"),
        ({"input_ids": [1], "frames": "x"}, "an array of numbers"),
        ({"input_ids": [1], "frames": [[True, False]]}, "frames has dtype bool"),
        ({"input_ids": [1], "frames": [[1, float("nan")]]}, "frames holds NaN, infinity or"),
        ({"input_ids": [1], "frames": [[1, 1e39]]}, "frames holds .* beyond float32"),
        (
            {"input_ids": [1, 2], "frames": [[1, 2]], "attention_mask": [1, 0]},
            r"frames has shape \(1, 2\), its attention_mask 2 values",
        ),
        ({"input_ids": [1], "frames": [[1, 2]], "kind": 3}, "kind must hold whole numbers .* 2"),
        ({"input_ids": [1], "frames": [[1, 2]], "kind": -1}, "kind must hold whole numbers"),
        ({"input_ids": [1], "frames": [[1, 2]], "kind": 1.0}, "kind must hold whole numbers"),
    ],
)
def test_a_row_that_does_not_fit_the_model_is_named(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    good = {"input_ids": [1], "frames": [[1, 2]], "kind": 0}
    with pytest.raises(InputError, match=rf"line 2.*{message}"):
        stream(jsonl(tmp_path, good, row), IDS, FRAMES, KIND)


def test_the_maximum_holds_without_token_ids_too(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"frames": [[1, 2], [3, 4]]})
    assert len(stream(path, FRAMES, max_length=2)) == 1
    with pytest.raises(InputError, match="line 1 has 2 tokens, the maximum is 1"):
        stream(path, FRAMES, max_length=1)


def test_a_text_for_a_model_without_token_ids_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("good")
    with pytest.raises(UsageError, match="line 1 is a text and the model takes no token ids"):
        stream(path, FRAMES, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((MASK,), "all inputs of the model are masks"),
        ((TensorSpec(name="x", dtype="float32", shape=(2, BATCH)),), r"x has shape \[2, batch\]"),
    ],
)
def test_a_model_that_takes_no_single_requests_is_refused(
    tmp_path: Path, inputs: tuple[TensorSpec, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        stream_requests(jsonl(tmp_path, {}), inputs=inputs)


# Bad rows


def test_bad_rows_are_left_out_and_each_is_reported(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"input_ids": [1]}, {"text": "bad"}, {"text": 3}, {"input_ids": [10]}, {"text": "day"}]
    path = jsonl(tmp_path, *rows)
    path.write_bytes(path.read_bytes() + b"\xff\n{\n" + b'{"input_ids": [2]}\n')
    errors: list[InputError] = []
    requests = stream(path, IDS, tokenizer=tokenizer, skip_bad_rows=True, on_skip=errors.append)
    assert [r["input_ids"] for r in requests] == [[1], [2, 5, 3], [2, 6, 3], [2]]
    places = [str(error).partition(", ")[2][:6] for error in errors]
    assert places == ["line 3", "line 4", "line 6", "line 7"]


def test_bad_rows_stop_the_stream_unless_they_may_be_skipped(tmp_path: Path) -> None:
    requests = stream_requests(
        jsonl(tmp_path, {"input_ids": [1]}, {"input_ids": []}), inputs=(IDS,)
    )
    assert next(requests)["input_ids"].tolist() == [1]
    with pytest.raises(InputError, match="line 2 has no tokens"):
        next(requests)


def test_bad_csv_rows_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'input_ids,label\n1 2,0\n1\n"1"2,0\n\xff,0\n3,0\n')
    assert [r["input_ids"] for r in stream(path, IDS, skip_bad_rows=True)] == [[1, 2], [3]]


def test_only_bad_rows_are_an_error_that_shows_the_first(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input_ids": [11]}, {"input_ids": []})
    with pytest.raises(
        InputError, match=r"all 2 rows of .*rows\.jsonl are broken; the first: .*11"
    ):
        stream(path, IDS, skip_bad_rows=True)


def test_a_text_that_the_tokenizer_cannot_take_is_one_bad_row(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"good": 4}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = jsonl(tmp_path, {"text": "good"}, {"text": "other"}, {"text": "good"})
    options = {"tokenizer": tmp_path / "tokenizer.json"}
    with pytest.raises(InputError, match=r"line 2 cannot be tokenized: .*UNK"):
        stream(path, IDS, **options)
    requests = stream(path, IDS, skip_bad_rows=True, **options)
    assert [r["input_ids"] for r in requests] == [[4], [4]]


def test_a_missing_tokenizer_is_no_bad_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input_ids": [1]}, {"text": "good"})
    with pytest.raises(UsageError, match="line 2 is a text and no tokenizer") as caught:
        stream(path, IDS, skip_bad_rows=True)
    assert not isinstance(caught.value, InputError)


def test_a_wrong_source_is_refused_before_the_first_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        stream_requests(tmp_path / "rows.jsonl", inputs=(IDS,))


# Memory


def many_csv(path: Path, row: list[int]) -> None:
    with path.open("w", newline="") as file:
        text = " ".join(map(str, row))
        csv.writer(file).writerows([["input_ids"], *[[text]] * SOME_ROWS])


def many_npz(path: Path, row: list[int]) -> None:
    np.savez(path, input_ids=[row] * SOME_ROWS)


def many_texts(path: Path, row: list[int]) -> None:
    path.write_text(f"{'good ' * len(row)}\n" * SOME_ROWS)


@pytest.mark.parametrize(
    ("name", "write"),
    [("rows.csv", many_csv), ("rows.npz", many_npz), ("rows.txt", many_texts)],
)
def test_requests_are_not_held(
    tmp_path: Path, tokenizer: Path, name: str, write: Callable[[Path, list[int]], None]
) -> None:
    write(tmp_path / name, [7] * 40)
    requests = stream_requests(tmp_path / name, inputs=(IDS,), tokenizer=tokenizer)
    tracemalloc.start()
    try:
        rows = sum(1 for _ in requests)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == SOME_ROWS
    assert peak < SOME_ROWS * 40 * 4  # the bare ids


SAMPLE = """
import resource, sys
from attn_export.calibration.data import stream_requests
from attn_export.calibration.sampling import stratified_sample
from attn_export.spec import TensorSpec

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

ids = TensorSpec(name="input_ids", dtype="int32", shape=("batch", "sequence"), role="ids")
before = peak()
requests = stream_requests(sys.argv[1], inputs=[ids])
sample = stratified_sample(requests, 512, [16, 32, 48], 0, inputs=[ids])
print(sample.seen, len(sample.requests), peak() - before)
"""


def test_a_sample_of_100_000_rows_takes_some_megabytes(
    tmp_path: Path, fresh_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"input_ids": [30_000] * length}) for length in range(8, 48)]
    path.write_text("\n".join(lines * 2500))
    seen, drawn, grown = map(int, fresh_python("-c", SAMPLE, str(path)).stdout.split())
    assert (seen, drawn) == (100_000, 512)
    assert grown < 16e6  # the requests are more than 40 MB


def test_a_row_group_of_parquet_is_not_held(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    ids = np.random.default_rng(0).integers(0, 10**9, 6 * 10**6, dtype=np.int32)
    lists = pyarrow.FixedSizeListArray.from_arrays(ids, 40).cast(pyarrow.list_(pyarrow.int32()))
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"input_ids": lists}), path, row_group_size=len(lists))
    before = pyarrow.total_allocated_bytes()
    any_id = dataclasses.replace(IDS, limit=None)
    requests = stream_requests(path, inputs=(any_id,))
    tracemalloc.start()  # what Arrow reads through a file of Python's is Python's memory
    try:
        peak = max(pyarrow.total_allocated_bytes() - before for _ in islice(requests, 3000))
        peak += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_ids_after_a_text_do_not_pile_up(tokenizer: Path) -> None:
    read = []

    def records() -> Iterator[Record]:
        for number in range(5 * TEXTS_AT_ONCE):
            read.append(number)
            yield "a row", {"input_ids": [1]} if number else "good"

    rows = encode_texts(records(), IDS, tokenizer, None)
    assert next(rows)[1] != next(rows)[1] == {"input_ids": [1]}
    assert len(read) == TEXTS_AT_ONCE


# Both ways of reading


def test_sequences_are_the_ids_of_the_requests(tmp_path: Path, tokenizer: Path) -> None:
    path = jsonl(tmp_path, {"text": "good"}, {"input_ids": [9]}, {"text": "day bad good"})
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_length": 4}
    sequences = [ids.tolist() for ids in read_sequences(path, **options)]
    assert sequences == [r["input_ids"] for r in stream(path, IDS, **options)]
