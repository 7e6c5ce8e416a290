"""Texts among the rows -> token ids, in batches and in their order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attn_export.errors import InputError, UsageError
from attn_export.lazy import require
from attn_export.spec import TensorSpec

from .records import IDS, TEXT, Record

# Bounds the tokenizer's working memory, which is far larger than the ids.
TEXTS_AT_ONCE = 512
SEGMENTS = "token_type_ids"


class _Text(NamedTuple):
    where: str
    text: str
    columns: Mapping[str, Any]


def encode_texts(
    records: Iterable[Record],
    tokens: TensorSpec | None,
    tokenizer: str | os.PathLike[str] | None,
    max_length: int | None,
) -> Iterator[Record]:
    """The same rows, with ``input_ids`` and ``token_type_ids`` in place of texts.

    Args:
        tokens: the input that the ids feed; None if the model takes none.
        tokenizer: a ``tokenizer.json``; opened at the first text.
        max_length: texts are truncated to it, special tokens included.

    Raises:
        UsageError: at the first text, if nothing can turn it into ids.
        InputError: if the tokenizer is broken.
        MissingPackage: if ``tokenizers`` is not installed.
    """
    encoder: Any = None
    waiting: list[Record | _Text] = []
    for record in records:
        row = _with_text(record, tokens)
        if isinstance(row, _Text):
            encoder = encoder or _encoder(row.where, tokens, tokenizer, max_length)
        elif not waiting:
            yield row
            continue
        waiting.append(row)
        if len(waiting) == TEXTS_AT_ONCE:
            yield from _encoded(encoder, waiting)
            waiting = []
    yield from _encoded(encoder, waiting)


def _with_text(record: Record, tokens: TensorSpec | None) -> Record | _Text:
    """A row whose ids have to come from its text as a text; others as they are."""
    where, content = record
    if isinstance(content, InputError):
        return record
    if isinstance(content, str):
        content = {TEXT: content}
    elif TEXT not in content or tokens is None or {IDS, tokens.name} & content.keys():
        return record
    text = content[TEXT]
    if not isinstance(text, str):
        return where, InputError(f"{where}: text is {text!r:.40}; it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return where, InputError(f"{where}: text is not valid Unicode ({error}); correct it")
    return _Text(where, text, content)


def _encoded(encoder: Any, rows: Sequence[Record | _Text]) -> Iterator[Record]:
    encodings = iter(_encode(encoder, [row.text for row in rows if isinstance(row, _Text)]))
    for row in rows:
        if not isinstance(row, _Text):
            yield row
            continue
        encoding = next(encodings)
        if isinstance(encoding, Exception):
            yield row.where, InputError(f"{row.where} cannot be tokenized: {encoding}")
            continue
        ids, segments = (np.array(v, np.int64) for v in (encoding.ids, encoding.type_ids))
        yield row.where, {SEGMENTS: segments, **row.columns, IDS: ids}


def _encode(encoder: Any, texts: list[str]) -> list[Any]:
    """The encoding of each text, or the error that it made."""
    if not texts:
        return []
    try:
        return list(encoder.encode_batch_fast(texts))
    except Exception as error:  # the package raises nothing narrower
        if len(texts) == 1:
            return [error]
    return [encoding for text in texts for encoding in _encode(encoder, [text])]


def _encoder(
    where: str,
    tokens: TensorSpec | None,
    tokenizer: str | os.PathLike[str] | None,
    max_length: int | None,
) -> Any:
    if tokens is None:
        raise UsageError(f"{where} is a text and the model takes no token ids; give its arrays")
    if tokenizer is None:
        raise UsageError(
            f"{where} is a text and no tokenizer was given; give the model's tokenizer.json, or "
            f"a file of {IDS}"
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
    return encoder


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
