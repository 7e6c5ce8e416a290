"""Token ids from a user's files: the sequences that calibration and measurement run on."""

from __future__ import annotations

import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.errors import InputError, UsageError
from attn_export.lazy import require

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int32]
# Where a row stands in its file, and its ids or its text.
Row = tuple[str, Ids | str]

LARGEST_ID = int(np.iinfo(np.int32).max)
# Bounds the tokenizer's working memory, which is far larger than the ids.
TEXTS_AT_ONCE = 4096
NPZ_ARRAYS = ("input_ids", "attention_mask", "offsets")


def read_sequences(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    limit: int | None = None,
) -> list[Ids]:
    """Read the sequences of a file, in its order, each an int32 array of shape [tokens].

    The suffix chooses the format:

    * ``.jsonl``: one JSON object a line with ``input_ids`` (a list of ids; with an
      ``attention_mask`` as long, only where it is 1) or, without them, a ``text``;
    * ``.txt``: one UTF-8 text a line; blank lines are skipped;
    * ``.npz``: ``input_ids`` [N, S] with an optional ``attention_mask`` [N, S] (without it all S
      tokens are real), or ``input_ids`` [tokens] with ``offsets`` [N + 1], where row n is
      ``input_ids[offsets[n]:offsets[n + 1]]``.

    Args:
        tokenizer: a ``tokenizer.json``, needed for texts only. Special tokens are added; the
            padding and truncation set in the file are switched off.
        max_length: the most tokens of a sequence. Texts are truncated to it (special tokens
            are kept); ids are never cut: longer ones are an error.
        limit: read this many sequences from the start of the file.

    Raises:
        UsageError: if an option, the suffix or the path is wrong, or texts have no tokenizer.
        InputError: if the content is broken; the message names the row.
        MissingPackage: if there are texts and ``tokenizers`` is not installed.
    """
    path = Path(path)
    for name, value in (("max_length", max_length), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    reader = _reader(path)
    try:
        rows = list(itertools.islice(reader(path), limit))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise InputError(f"{path} holds no sequences; give a file with at least one")
    texts = [(where, row) for where, row in rows if isinstance(row, str)]
    encoded = _encoded(texts, tokenizer, max_length)
    return [
        next(encoded) if isinstance(row, str) else _fitting(row, where, max_length)
        for where, row in rows
    ]


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    readers = {".jsonl": _jsonl_rows, ".txt": _txt_rows, ".npz": _npz_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{path} has the suffix {path.suffix!r}; the formats are: {', '.join(readers)}"
        )
    if not path.exists():
        raise UsageError(f"{path} does not exist; check the path")
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name one file in it")
    return reader


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise InputError(f"{where} is not UTF-8 ({error}); convert the file") from error
            if line:
                yield where, line


def _txt_rows(path: Path) -> Iterator[Row]:
    return _lines(path)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} is {line[:40]}; it must be an object, {{...}}")
        if "input_ids" in row:
            ids = _integers(row["input_ids"], f"{where}: input_ids")
            mask = None
            if "attention_mask" in row:
                mask = _integers(row["attention_mask"], f"{where}: attention_mask")
                if len(mask) != len(ids):
                    raise InputError(
                        f"{where} has {len(ids)} input_ids and {len(mask)} values in its "
                        "attention_mask; give as many"
                    )
            yield where, _real_ids(ids, mask, where)
        elif "text" in row:
            yield where, _text(row["text"], where)
        else:
            keys = ", ".join(map(repr, row)) or "none"
            raise InputError(f"{where} has the keys {keys}; it needs 'input_ids' or 'text'")


def _integers(values: object, where: str) -> Array:
    # bool is a subclass of int, hence the comparison of types.
    if not isinstance(values, list) or not set(map(type, values)) <= {int}:
        raise InputError(f"{where} must be a list of whole numbers")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        largest = max(values, key=abs)
        raise InputError(
            f"{where} holds {largest}; token ids are between 0 and {LARGEST_ID}"
        ) from error


def _text(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where}: text is {text!r:.40}; it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: text is not valid Unicode ({error}); correct it") from error
    return text


def _npz_rows(path: Path) -> Iterator[Row]:
    arrays = _npz_arrays(path)
    ids, mask, offsets = (arrays.get(name) for name in NPZ_ARRAYS)
    if ids is None:
        raise InputError(f"{path} holds no array 'input_ids'; save one with numpy.savez")
    rank = 2 if offsets is None else 1
    if ids.ndim != rank:
        raise InputError(
            f"{path}: input_ids has shape {ids.shape}; it must be [N, S], or [tokens] with an "
            "array 'offsets' [N + 1] beside it"
        )
    if mask is not None and mask.shape != ids.shape:
        raise InputError(
            f"{path}: attention_mask has shape {mask.shape}, input_ids has {ids.shape}; "
            "save both with the same shape"
        )
    bounds = (
        np.arange(ids.shape[0] + 1) * ids.shape[1]
        if offsets is None
        else _checked_offsets(offsets, len(ids), path)
    )
    flat_ids, flat_mask = ids.reshape(-1), None if mask is None else mask.reshape(-1)
    for row, (start, end) in enumerate(itertools.pairwise(bounds.tolist())):
        where = f"{path}, row {row} (from 0)"
        real = None if flat_mask is None else flat_mask[start:end]
        yield where, _real_ids(flat_ids[start:end], real, where)


def _npz_arrays(path: Path) -> dict[str, Array]:
    # numpy.load leaves a file open that it opened itself and could not read.
    with path.open("rb") as stream:
        try:
            stored = np.load(stream)
            if isinstance(stored, np.ndarray):
                return {}
            return {name: stored[name] for name in NPZ_ARRAYS if name in stored.files}
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path} cannot be read as npz ({error}); save it with numpy.savez"
            ) from error


def _checked_offsets(offsets: Array, tokens: int, path: Path) -> Array:
    bounds = offsets.astype(np.int64) if offsets.dtype.kind in "iu" else np.empty(0, np.int64)
    if (
        bounds.ndim != 1
        or bounds.size == 0
        or bounds[0] != 0
        or bounds[-1] != tokens
        or (np.diff(bounds) < 0).any()
    ):
        raise InputError(
            f"{path}: offsets must be whole numbers [N + 1] that rise from 0 to the {tokens} "
            "tokens of input_ids"
        )
    return bounds


def _real_ids(ids: Array, mask: Array | None, where: str) -> Ids:
    """The ids of the real tokens as int32, checked."""
    if mask is not None:
        if not np.isin(mask, (0, 1)).all():
            raise InputError(f"{where}: attention_mask must hold 1 (real token) and 0 (padding)")
        ids = ids[mask == 1]
    if ids.dtype.kind not in "iu":
        raise InputError(f"{where}: input_ids are {ids.dtype}; save them as whole numbers (int32)")
    if ids.size == 0:
        raise InputError(f"{where} has no tokens; remove it")
    wrong = (ids < 0) | (ids > LARGEST_ID)
    if wrong.any():
        raise InputError(
            f"{where} holds the token id {ids[wrong][0]}; ids are between 0 and {LARGEST_ID}"
        )
    return ids.astype(np.int32)


def _fitting(ids: Ids, where: str, max_length: int | None) -> Ids:
    if max_length is not None and len(ids) > max_length:
        raise InputError(
            f"{where} has {len(ids)} tokens, the maximum is {max_length}; shorten or remove "
            "that row, or raise the maximum length (ids are never cut)"
        )
    return ids


def _encoded(
    texts: list[tuple[str, str]], tokenizer: str | os.PathLike[str] | None, max_length: int | None
) -> Iterator[Ids]:
    if not texts:
        return
    if tokenizer is None:
        raise UsageError(
            f"{texts[0][0]} is a text and no tokenizer was given; give the model's "
            "tokenizer.json, or a file of input_ids"
        )
    encoder = _open_tokenizer(Path(tokenizer))
    if max_length is not None:
        special = encoder.num_special_tokens_to_add(is_pair=False)
        if max_length <= special:
            raise UsageError(
                f"max_length is {max_length} and {tokenizer} adds {special} special tokens; "
                f"it must be at least {special + 1}"
            )
        encoder.enable_truncation(max_length)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        encodings = encoder.encode_batch_fast([text for _, text in part])
        for (where, _), encoding in zip(part, encodings, strict=True):
            yield _real_ids(np.array(encoding.ids, dtype=np.int64), None, where)


def _open_tokenizer(path: Path) -> Any:
    tokenizers = require("tokenizers", extra="text")
    if not path.is_file():
        raise UsageError(f"the tokenizer {path} is not a file; name the model's tokenizer.json")
    try:
        encoder = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise InputError(
            f"{path} is not a tokenizer.json ({error}); save it with Tokenizer.save"
        ) from error
    encoder.no_padding()
    encoder.no_truncation()
    return encoder
