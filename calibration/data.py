"""A user's data as requests: what ranges, buckets and measurements are computed from."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attn_export.errors import InputError, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .arrow_readers import dataset_records, is_dataset, parquet_records
from .data_factory import factory_records, is_factory
from .npz_reader import npz_records
from .records import Columns, Record
from .requests import Request, RequestMaker
from .text_readers import csv_records, jsonl_records, txt_records
from .texts import encode_texts

Ids = npt.NDArray[np.int32]
Source = str | os.PathLike[str]

READERS: dict[str, Callable[[Path, Columns], Iterator[Record]]] = {
    ".jsonl": jsonl_records,
    ".csv": csv_records,
    ".parquet": parquet_records,
    ".txt": txt_records,
    ".npz": npz_records,
}
TOKENS = TensorSpec(name="input_ids", dtype="int32", shape=(BATCH, SEQUENCE), role="ids")


def stream_requests(
    source: Source,
    *,
    inputs: Sequence[TensorSpec],
    tokenizer: Source | None = None,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
    on_skip: Callable[[InputError], None] | None = None,
) -> Iterator[Request]:
    """Read requests one after another; the memory used does not grow with the data.

    A request maps each input that is no mask to one sample without its batch axis. The suffix of
    the source chooses the format; a column or key is named as the input it feeds, and
    ``input_ids`` always feeds the token ids:

    * ``.jsonl``: one JSON object a line with ``input_ids`` (a list of ids) or a ``text``;
    * ``.csv``: a header line, then ``input_ids`` as a JSON list or numbers between spaces, or a
      ``text``;
    * ``.parquet``, and a directory written by ``Dataset.save_to_disk`` of the ``datasets``
      package: the columns ``input_ids`` or ``text``;
    * ``.txt``: one UTF-8 text a line; blank lines are skipped;
    * ``.npz``: ``input_ids`` [N, S], or ``input_ids`` [tokens] with ``offsets`` [N + 1], where row
      n is ``input_ids[offsets[n]:offsets[n + 1]]``; other inputs [N, ...], or flat as well where
      their first axis is the sequence;
    * ``package.module:function`` or ``file.py:function``: returns an iterable of ids, texts or
      mappings.

    An ``attention_mask`` as long as the ids leaves only what stands where it is 1.

    Args:
        inputs: what the model takes; ids have to be in ``[0, limit)``.
        tokenizer: a ``tokenizer.json``, needed for texts only. Special tokens are added; the
            padding and truncation set in the file are switched off.
        max_length: the most tokens of a request. Texts are truncated to it (special tokens are
            kept); ids are never cut: longer ones are a broken row.
        skip_bad_rows: leave broken rows out instead of stopping at the first one.
        on_skip: called with the error of each row that was left out; it names the row.

    Raises:
        UsageError: if an option, the suffix or the path is wrong, or texts have no tokenizer.
        InputError: if a row is broken (the message names it), or no row is left.
        MissingPackage: if ``tokenizers`` or ``pyarrow`` is needed and not installed.
    """
    maker = RequestMaker(inputs, max_length)
    records = _records(source, maker.columns)
    texts = encode_texts(_named_errors(source, records), maker.tokens, tokenizer, max_length)
    return _requests(source, texts, maker, skip_bad_rows, on_skip or _ignore)


def read_sequences(
    path: Source,
    *,
    tokenizer: Source | None = None,
    max_length: int | None = None,
    limit: int | None = None,
) -> list[Ids]:
    """Read all token ids of a source, in its order, each an int32 array of shape [tokens].

    The formats, ``tokenizer`` and ``max_length`` are those of :func:`stream_requests`; the
    vocabulary is not known here, so any id from 0 to 2**31 - 1 is taken.

    Args:
        limit: read this many sequences from the start of the source.

    Raises:
        UsageError: if an option, the suffix or the path is wrong, or texts have no tokenizer.
        InputError: if the content is broken; the message names the row.
        MissingPackage: if ``tokenizers`` or ``pyarrow`` is needed and not installed.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    maker = RequestMaker((TOKENS,), max_length)
    records = itertools.islice(_named_errors(path, _records(path, maker.columns)), limit)
    texts = encode_texts(records, TOKENS, tokenizer, max_length)
    return [request[TOKENS.name] for request in _requests(path, texts, maker, False, _ignore)]


def _ignore(error: InputError) -> None:
    """What ``on_skip`` does where none is given."""


def _records(source: Source, columns: Columns) -> Iterator[Record]:
    text = os.fspath(source)
    if is_factory(text):
        return factory_records(text)
    path = Path(text)
    if is_dataset(path):
        return dataset_records(path, columns)
    reader = READERS.get(path.suffix.lower())
    if reader is None and not path.is_dir():
        raise UsageError(
            f"{path} has the suffix {path.suffix!r}; the formats are: {', '.join(READERS)}, a "
            "directory of Dataset.save_to_disk, package.module:function and file.py:function"
        )
    if reader is None or path.is_dir():
        raise UsageError(
            f"{path} is a directory; name one file in it, or a directory of Dataset.save_to_disk"
        )
    if not path.exists():
        raise UsageError(f"{path} does not exist; check the path")
    return reader(path, columns)


def _named_errors(source: Source, records: Iterator[Record]) -> Iterator[Record]:
    try:
        yield from records
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror or error}") from error


def _requests(
    source: Source,
    records: Iterable[Record],
    maker: RequestMaker,
    skip_bad_rows: bool,
    on_skip: Callable[[InputError], None],
) -> Iterator[Request]:
    made, skipped = 0, 0
    first: InputError | None = None
    for record in records:
        try:
            request = maker.make(record)
        except InputError as error:
            if not skip_bad_rows:
                raise
            first = first or error
            skipped += 1
            on_skip(error)
            continue
        made += 1
        yield request
    if first is not None and not made:
        raise InputError(f"all {skipped} rows of {source} are broken; the first: {first}")
    if not made:
        raise InputError(f"{source} holds no sequences; give a file with at least one")
