"""Readers of Arrow's columns: .parquet, and a directory of ``Dataset.save_to_disk``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attn_export.errors import InputError, UsageError
from attn_export.lazy import require

from .records import Columns, Record, wanted_columns

ROWS_AT_ONCE = 1024
PAGE_BYTES = 1 << 20
# Layout of datasets 5.2, arrow_dataset.py (save_to_disk) and dataset_dict.py.
STATE = "state.json"
SPLITS = "dataset_dict.json"


def parquet_records(path: Path, columns: Columns) -> Iterator[Record]:
    """The rows of a Parquet file, some pages of it in memory at a time.

    Raises:
        InputError: if it is no Parquet file, or no column can be used.
        MissingPackage: if ``pyarrow`` is not installed.
    """
    pyarrow = require("pyarrow", extra="data")
    parquet = require("pyarrow.parquet", extra="data")
    with path.open("rb") as stream:
        try:
            # Pages of a column, instead of all columns of a row group at once.
            file = parquet.ParquetFile(stream, buffer_size=PAGE_BYTES, pre_buffer=False)
            names = wanted_columns(file.schema_arrow.names, columns, path)
            batches = file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False)
            yield from _records(pyarrow, batches, path)
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(path, "a Parquet file", error) from error


def is_dataset(path: Path) -> bool:
    """Whether a directory was written by ``save_to_disk``."""
    return (path / STATE).is_file() or (path / SPLITS).is_file()


def dataset_records(path: Path, columns: Columns) -> Iterator[Record]:
    """The rows of a dataset on disk, file after file; ``datasets`` itself is not needed.

    Raises:
        UsageError: if the directory holds several splits.
        InputError: if a file is broken, or no column can be used.
        MissingPackage: if ``pyarrow`` is not installed.
    """
    if (path / SPLITS).is_file():
        splits = ", ".join(str(state.parent) for state in sorted(path.glob(f"*/{STATE}")))
        raise UsageError(f"{path} holds the splits of a dataset; name one of: {splits}")
    pyarrow = require("pyarrow", extra="data")
    ipc = require("pyarrow.ipc", extra="data")
    yield from _records(pyarrow, _stored_batches(pyarrow, ipc, path, columns), path)


def _stored_batches(pyarrow: Any, ipc: Any, path: Path, columns: Columns) -> Iterator[Any]:
    for name in _data_files(path / STATE):
        file = path / name
        with file.open("rb") as stream:
            try:
                with ipc.open_stream(stream) as batches:
                    names = wanted_columns(batches.schema.names, columns, file)
                    for batch in batches:
                        yield batch.select(names)
            except (pyarrow.ArrowException, OSError) as error:
                raise _broken(file, "an Arrow stream", error) from error


def _data_files(state: Path) -> list[str]:
    try:
        content = json.loads(state.read_bytes())
        files = [entry["filename"] for entry in content["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{state} is not the state of a dataset: {error!r}") from error
    if content.get("_indices_data_files"):
        raise InputError(
            f"{state}: the rows were chosen or shuffled and an old version of datasets kept the "
            "choice apart; save the dataset again with datasets 2.0 or later"
        )
    return files


def _records(pyarrow: Any, batches: Iterable[Any], path: Path) -> Iterator[Record]:
    row = 0
    for batch in batches:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for index in range(batch.num_rows):
            values = {name: _value(pyarrow, column[index]) for name, column in columns.items()}
            # A missing value is a column that the row does not have.
            given = {name: value for name, value in values.items() if value is not None}
            yield f"{path}, row {row} (from 0)", given
            row += 1


def _value(pyarrow: Any, scalar: Any) -> Any:
    """A list of numbers as an array, anything else as Python's own."""
    if scalar.is_valid and pyarrow.types.is_nested(scalar.type):
        values = getattr(scalar, "values", None)
        if isinstance(values, pyarrow.Array) and pyarrow.types.is_primitive(values.type):
            return values.to_numpy(zero_copy_only=False)
    return scalar.as_py()


def _broken(path: Path, kind: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return InputError(f"{path} cannot be read as {kind} ({error}); write it again")
