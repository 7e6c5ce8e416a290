"""The formats with columns: .csv, .parquet, datasets on disk, Python functions, named arrays."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.calibration.data import read_sequences, stream_requests
from attn_export.errors import InputError, MissingPackage, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

IDS = TensorSpec(name="input_ids", dtype="int32", shape=(BATCH, SEQUENCE), role="ids", limit=100)
PIXELS = TensorSpec(name="pixels", dtype="float32", shape=(BATCH, 2, 2))
FRAMES = TensorSpec(name="frames", dtype="float32", shape=(BATCH, SEQUENCE, 2))
MASK = TensorSpec(name="attention_mask", dtype="int32", shape=(BATCH, SEQUENCE), role="mask")
WriteTable = Callable[[Path, dict[str, Any]], Path]


def write_csv(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def write_parquet(folder: Path, columns: dict[str, Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), folder / "rows.parquet")
    return folder / "rows.parquet"


def write_dataset(folder: Path, columns: dict[str, Any]) -> Path:
    """What save_to_disk of datasets 5.2 writes, in files of two rows."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = pyarrow.table(columns)
    files = []
    for start in range(0, max(1, table.num_rows), 2):
        files.append({"filename": f"data-{start}.arrow"})
        with pyarrow.ipc.new_stream(folder / files[-1]["filename"], table.schema) as stream:
            stream.write_table(table.slice(start, 2))
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    return folder


def as_lists(source: Path | str, **options: Any) -> list[list[int]]:
    return [ids.tolist() for ids in read_sequences(source, **options)]


# .csv


def test_csv_takes_json_lists_and_numbers_between_spaces(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "rows.csv",
        ["label", "input_ids"],
        ["1", "[2, 4, 3]"],
        ["0", " 5  6 "],
        [],
        ["1", "7"],
    )
    assert as_lists(path) == [[2, 4, 3], [5, 6], [7]]


def test_csv_padding_is_left_out_by_the_mask(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "rows.csv", ["input_ids", "attention_mask"], ["2 4 0", "1 1 0"], ["7", "1"]
    )
    assert as_lists(path) == [[2, 4], [7]]


def test_csv_texts_may_span_lines_and_stand_beside_ids(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffinput_ids,text\r\n,"good\r\nbad"\r\n9,good\r\n,\r\n'.encode())
    assert as_lists(path, tokenizer=tokenizer) == [[2, 4, 5, 3], [9], [2, 3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "holds no sequences", id="empty"),
        pytest.param(b"input_ids\n", "holds no sequences", id="header-only"),
        pytest.param(b"ids,x\n1,2\n", "columns 'ids', 'x'; it needs 'input_ids' or 'text'"),
        pytest.param(b"input_ids\n1\n1 x\n", "line 3: input_ids is '1 x'; write", id="word"),
        pytest.param(b"input_ids\n1_0\n", "line 2: input_ids is '1_0'", id="underscore"),
        pytest.param(b"input_ids\n[1\n", "line 2: input_ids is", id="open-list"),
        pytest.param(b"input_ids\ntrue\n", "line 2: input_ids must be a list", id="boolean"),
        pytest.param(b"input_ids\n1.5\n", "line 2: input_ids must be a list", id="float"),
        pytest.param(b'input_ids\n""\n', "line 2 has no tokens", id="no-ids"),
        pytest.param(b"input_ids,a\n1\n", "line 2 has 1 values, the header names 2", id="short"),
        pytest.param(b'input_ids\n"1"2\n', "line 2 is not CSV", id="quotes"),
        pytest.param(b'input_ids\n"1 2\n3\n', "line 2 is not CSV .unexpected end", id="open-quote"),
        pytest.param(b'"input_ids\n', "line 1 is not a CSV header", id="open-header"),
        pytest.param(b"text\ngood\n\xff\n", "line 3: text is not valid Unicode", id="latin"),
    ],
)
def test_a_broken_csv_is_named(
    tmp_path: Path, tokenizer: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_sequences(path, tokenizer=tokenizer)


# Arrow's columns

arrow_formats = pytest.mark.parametrize("write", [write_parquet, write_dataset])


@arrow_formats
def test_arrow_columns_give_the_ids_of_each_row(tmp_path: Path, write: WriteTable) -> None:
    path = write(tmp_path, {"label": [0, 1, 2], "input_ids": [[2, 4], [3], [5, 6, 7]]})
    assert as_lists(path) == [[2, 4], [3], [5, 6, 7]]
    assert as_lists(path, limit=1) == [[2, 4]]


@arrow_formats
def test_arrow_texts_and_masks_are_read_as_in_other_formats(
    tmp_path: Path, write: WriteTable, tokenizer: Path
) -> None:
    columns = {
        "input_ids": [None, [9, 8]],
        "attention_mask": [None, [0, 1]],
        "text": ["good", "bad"],
    }
    assert as_lists(write(tmp_path, columns), tokenizer=tokenizer) == [[2, 4, 3], [8]]


@arrow_formats
def test_arrow_lists_of_lists_feed_a_float_input(tmp_path: Path, write: WriteTable) -> None:
    path = write(tmp_path, {"frames": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]]})
    requests = list(stream_requests(path, inputs=(FRAMES, MASK)))
    assert [r["frames"].tolist() for r in requests] == [[[1, 2]], [[3, 4], [5, 6]]]
    assert {r["frames"].dtype.name for r in requests} == {"float32"}


@arrow_formats
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"ids": [[1]]}, "columns 'ids'; it needs 'input_ids' or 'text'", id="columns"),
        pytest.param({"input_ids": [[1], None]}, r"row 1 \(from 0\) has the keys none", id="null"),
        pytest.param({"input_ids": [[1], [2, None]]}, "row 1 .* float64", id="null-id"),
        pytest.param({"input_ids": [[1], [-1]]}, "row 1 .* the token id -1", id="negative"),
        pytest.param({"input_ids": [[1], []]}, "row 1 .* has no tokens", id="no-tokens"),
        pytest.param({"input_ids": [1, 2]}, "row 0 .* must be a list", id="no-list"),
        pytest.param({"text": ["good", None]}, "row 1 .* has the keys none", id="null-text"),
        pytest.param({"text": [7]}, "row 0 .* text is 7; it must be a string", id="number"),
    ],
)
def test_a_broken_arrow_row_is_named(
    tmp_path: Path, write: WriteTable, columns: dict[str, Any], message: str, tokenizer: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_sequences(write(tmp_path, columns), tokenizer=tokenizer)


@arrow_formats
def test_arrow_without_rows_is_empty(tmp_path: Path, write: WriteTable) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    nothing = pyarrow.array([], pyarrow.list_(pyarrow.int32()))
    with pytest.raises(InputError, match="holds no sequences"):
        read_sequences(write(tmp_path, {"input_ids": nothing}))


@pytest.mark.parametrize("kept", [0, 3, 100])
def test_a_truncated_parquet_is_refused(tmp_path: Path, kept: int) -> None:
    path = write_parquet(tmp_path, {"input_ids": [[1, 2, 3]] * 50})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="cannot be read as a Parquet file"):
        read_sequences(path)


@pytest.mark.parametrize("kept", [3, -60])
def test_a_truncated_dataset_names_its_file(tmp_path: Path, kept: int) -> None:
    write_dataset(tmp_path, {"input_ids": [[1, 2, 3]] * 4})
    last = tmp_path / "data-2.arrow"
    last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"data-2\.arrow cannot be read as an Arrow stream"):
        read_sequences(tmp_path)


def test_a_dataset_with_splits_asks_for_one(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_dataset(tmp_path / split, {"input_ids": [[1]]})
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UsageError, match=f"one of: {tmp_path}/test, {tmp_path}/train"):
        read_sequences(tmp_path)
    assert as_lists(tmp_path / "test") == [[1]]


@pytest.mark.parametrize("state", ["[]", "{", '{"_data_files": [{}]}'])
def test_a_broken_state_of_a_dataset_is_refused(tmp_path: Path, state: str) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(InputError, match=r"state\.json is not the state of a dataset"):
        read_sequences(tmp_path)


def test_a_dataset_whose_choice_of_rows_is_kept_apart_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    state = {"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="save the dataset again"):
        read_sequences(tmp_path)


def test_a_missing_file_of_a_dataset_is_a_usage_error(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"input_ids": [[1, 2, 3]] * 4})
    (tmp_path / "data-2.arrow").unlink()
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_sequences(tmp_path)


def test_a_file_of_a_dataset_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs /proc/self/mem, a file whose reads fail for root too")
    write_dataset(tmp_path, {"input_ids": [[1, 2, 3]] * 4})
    (tmp_path / "data-2.arrow").unlink()
    (tmp_path / "data-2.arrow").symlink_to("/proc/self/mem")
    with pytest.raises(UsageError, match=r"cannot be read: .*Input/output error"):
        read_sequences(tmp_path)


def test_a_missing_pyarrow_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # None makes an import fail as it does where the package is absent.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (tmp_path / "state.json").write_text("{}")
    for source in (tmp_path / "rows.parquet", tmp_path):
        with pytest.raises(MissingPackage, match=r"attn-export\[data\]"):
            read_sequences(source)


# Python functions


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module and say where its function ``rows`` is; import nothing twice."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(body: str) -> str:
        path = tmp_path / "calibration_rows.py"
        path.write_text(f"import numpy as np\n{body}\n")
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
        return f"{path}:rows"

    return write


def test_a_function_gives_ids_texts_and_mappings(
    factory: Callable[[str], str], tokenizer: Path
) -> None:
    source = factory(
        "def rows():\n"
        "    yield [1, np.int64(2)]\n"
        "    yield np.array([3, 4], np.uint16)\n"
        "    yield 'good'\n"
        "    yield {'input_ids': (5, 6, 7), 'attention_mask': np.array([True, False, True])}\n"
    )
    assert as_lists(source, tokenizer=tokenizer) == [[1, 2], [3, 4], [2, 4, 3], [5, 7]]


def test_a_module_of_the_current_folder_is_found(
    factory: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(factory("rows = lambda: [[1, 2]]").rpartition(":")[0])
    monkeypatch.chdir(place.parent)
    assert as_lists("calibration_rows:rows") == [[1, 2]]


def test_a_function_may_reuse_its_array(factory: Callable[[str], str]) -> None:
    source = factory(
        "def rows():\n"
        "    frame = np.zeros((1, 2), np.float32)\n"
        "    for value in (1, 2):\n"
        "        frame[:] = value\n"
        "        yield {'frames': frame}\n"
    )
    first, second = stream_requests(source, inputs=(FRAMES,))
    assert (first["frames"].tolist(), second["frames"].tolist()) == ([[1, 1]], [[2, 2]])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def other(): pass", r"has no function 'rows'; it has: other"),
        ("rows = 1", "has no function 'rows'"),
        ("1 / 0", r"importing .* raised ZeroDivisionError: division by zero"),
        ("import no_such_module_at_all", "raised ModuleNotFoundError"),
        ("def rows(): 1 / 0", r":rows raised ZeroDivisionError"),
        ("def rows():\n    yield [1]\n    1 / 0", r"item 1 \(from 0\) raised ZeroDivisionError"),
        ("def rows(): return 7", "returned int; it must return an iterable"),
        ("def rows(): return {'input_ids': [1]}", "returned dict; it must return an iterable"),
        ("def rows(): return []", "holds no sequences"),
        ("def rows(): return [[1], 7]", r"item 1 \(from 0\): input_ids must be a list"),
        ("def rows(): return [[1], None]", r"item 1 \(from 0\): input_ids must be a list"),
        ("def rows(): return [[1], [[1], [2, 3]]]", r"item 1 \(from 0\): input_ids must be"),
    ],
)
def test_a_broken_function_is_told_what_happened(
    factory: Callable[[str], str], body: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_sequences(factory(body))


def test_a_place_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*rows\.py"):
        read_sequences(f"{tmp_path}/rows.py:rows")
    with pytest.raises(UsageError, match=r"no module 'no_such_package\.rows'"):
        read_sequences("no_such_package.rows:rows")


# Named arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays_feed_the_inputs_of_their_names(tmp_path: Path, save: Any) -> None:
    pixels = np.arange(12.0).reshape(3, 2, 2)
    # A transposed array is stored in Fortran order, which cannot be streamed.
    save(tmp_path / "rows.npz", pixels=pixels.T.copy().T, input_ids=[[1, 2]] * 3)
    requests = list(stream_requests(tmp_path / "rows.npz", inputs=(PIXELS, IDS)))
    assert [r["pixels"].tolist() for r in requests] == pixels.tolist()
    assert [r["input_ids"].tolist() for r in requests] == [[1, 2]] * 3


def test_npz_arrays_along_the_sequence_are_flat_beside_offsets(tmp_path: Path) -> None:
    frames = np.arange(6.0).reshape(3, 2)
    np.savez(
        tmp_path / "rows.npz", frames=frames, offsets=[0, 1, 3], pixels=np.ones((2, 2, 2), int)
    )
    requests = list(stream_requests(tmp_path / "rows.npz", inputs=(FRAMES, PIXELS)))
    assert [r["frames"].tolist() for r in requests] == [[[0, 1]], [[2, 3], [4, 5]]]
    assert requests[1]["pixels"].tolist() == [[1, 1], [1, 1]]


def test_npz_padding_of_every_input_is_left_out_by_the_mask(tmp_path: Path) -> None:
    frames = np.array([[[1, 2], [np.nan, np.nan], [3, 4]]])
    np.savez(tmp_path / "rows.npz", frames=frames, attention_mask=[[1, 0, 1]])
    (request,) = stream_requests(tmp_path / "rows.npz", inputs=(FRAMES,))
    assert request["frames"].tolist() == [[1, 2], [3, 4]]


def test_npz_blocks_of_any_size_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 40)
    ids = rng.integers(0, 100, lengths.sum())
    offsets = np.cumsum([0, *lengths])
    np.savez(tmp_path / "rows.npz", input_ids=ids, offsets=offsets)
    expected = [part.tolist() for part in np.split(ids, offsets[1:-1])]
    for size in (1, 40, 1 << 20):
        monkeypatch.setattr("attn_export.calibration.npz_reader.BLOCK_BYTES", size)
        assert as_lists(tmp_path / "rows.npz") == expected


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        pytest.param({"x": [1]}, (FRAMES,), "holds no array 'frames'", id="none"),
        pytest.param(
            {"input_ids": [[1]], "pixels": np.ones((2, 2, 2))},
            (IDS, PIXELS),
            r"input_ids \(1, 1\), pixels \(2, 2, 2\); their first sizes differ",
            id="rows",
        ),
        pytest.param(
            {"frames": np.ones((3, 2)), "offsets": [0, 3], "pixels": np.ones((2, 2, 2))},
            (FRAMES, PIXELS),
            "offsets makes 1 rows, pixels 2",
            id="offsets",
        ),
        pytest.param({"frames": np.float32(1)}, (FRAMES,), r"frames has shape \(\)", id="scalar"),
    ],
)
def test_npz_arrays_that_do_not_fit_together_are_refused(
    tmp_path: Path, arrays: dict[str, Any], inputs: tuple[TensorSpec, ...], message: str
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(InputError, match=message):
        list(stream_requests(tmp_path / "rows.npz", inputs=inputs))
