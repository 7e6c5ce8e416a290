"""A file is opened only while it is the one that was checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attn_export.engines.unchanged_file import UnchangedFile
from attn_export.errors import BundleError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"checked")
    return tmp_path / "model.onnx"


def test_an_unchanged_file_is_where_it_was(path: Path) -> None:
    file = UnchangedFile(path)
    path.read_bytes()
    assert file.path() == path


def test_another_file_of_the_same_size_and_time_is_told_apart(path: Path) -> None:
    file = UnchangedFile(path)
    stat = path.stat()
    other = path.with_suffix(".new")
    other.write_bytes(b"CHECKED")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    with pytest.raises(BundleError, match="was replaced since it was loaded; load the bundle"):
        file.path()


def test_a_file_written_over_is_told_apart(path: Path) -> None:
    file = UnchangedFile(path)
    path.write_bytes(b"longer than before")
    with pytest.raises(BundleError, match="was replaced"):
        file.path()


def test_a_file_that_is_gone_is_missing(path: Path) -> None:
    file = UnchangedFile(path)
    path.unlink()
    for look in (file.path, lambda: UnchangedFile(path)):
        with pytest.raises(BundleError, match="is missing; rebuild the bundle"):
            look()
