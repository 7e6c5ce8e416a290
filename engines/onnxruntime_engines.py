"""TensorRT engines that ONNX Runtime builds: kept in the bundle, taken from it unchanged."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attn_export.bundle import Bundle, file_record
from attn_export.errors import BuildFailed, HostError
from attn_export.manifest import EngineRecord, FileRecord

ENGINES = "*.engine"


@contextlib.contextmanager
def new_engines(directory: Path, folder: str) -> Iterator[Path]:
    """The folder to build into, emptied: ``directory / folder``.

    Raises:
        BuildFailed: if no engine was put there.
    """
    place = directory / folder
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    yield place
    if not any(place.glob(ENGINES)):
        raise BuildFailed(
            "TensorRT took no part of the graph, so ONNX Runtime would run all of it on CUDA; "
            "see its log on stderr, or use the provider cuda"
        )


def engine_files(directory: Path, folder: str) -> list[FileRecord]:
    """The engines that were built, then their profiles."""
    engines = sorted((directory / folder).glob(ENGINES))
    others = sorted(set((directory / folder).iterdir()) - set(engines))
    return [file_record(path, root=directory) for path in (*engines, *others)]


@contextlib.contextmanager
def linked_engines(bundle: Bundle, record: EngineRecord) -> Iterator[Path]:
    """A temporary folder in which ONNX Runtime finds the bundle's engines while a graph is opened.

    ONNX Runtime builds an engine that it does not find, and writes it there: so nothing is written
    to the bundle, it may be read-only, and an engine that was never proven is noticed.

    Raises:
        BundleError: if an engine is missing or was altered.
        HostError: if ONNX Runtime built another one.
    """
    with tempfile.TemporaryDirectory(prefix="attn-export-") as name:
        folder = Path(name)
        for file in record.files:
            path = bundle.verify(file)
            (folder / path.name).symlink_to(path.absolute())
        yield folder
        if any(not path.is_symlink() for path in folder.glob(ENGINES)):
            raise HostError(
                f"ONNX Runtime did not take the engines of {record.name} and built others, as it "
                "does under another TensorRT or CUDA; compile the bundle again on this host"
            )
