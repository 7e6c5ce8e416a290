"""The bundle: one directory with graphs, engines and the manifest that binds them by hash.

Files are written to a staging folder inside the bundle. One rename marks it ready; then its files
move in, manifest last, under an flock on the bundle's directory. A build that is interrupted before
that rename changed nothing, and after it the next build finishes the move: no half bundle, no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attn_export.errors import BundleError, HostError
from attn_export.manifest import FileRecord, GraphRecord, Manifest, read_manifest

MANIFEST = "manifest.json"
REFERENCE = "reference.npz"
REPORTS = "reports"
CACHE = "cache"
STAGING = ".staging-"
READY = ".ready-"
RETIRED = ".retired-manifest.json"


class Bundle:
    """A bundle on disk, open for reading."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Bundle:
        """Read a bundle's manifest; nothing else is touched.

        Raises:
            BundleError: if there is no manifest, or it cannot be read.
        """
        path = Path(directory)
        try:
            return cls(path, read_manifest(path / MANIFEST))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(
                f"{path} is not a bundle: it has no {MANIFEST}; make one with "
                f"'attn-export build -o {path}'"
            ) from error
        except OSError as error:
            raise BundleError(f"{path / MANIFEST} cannot be read: {error.strerror}") from error

    def graph(self, precision: str) -> GraphRecord:
        """The graph of one precision.

        Raises:
            BundleError: if the bundle has none.
        """
        try:
            return self.manifest.graphs[precision]
        except KeyError:
            have = ", ".join(self.manifest.graphs)
            raise BundleError(
                f"{self.directory} holds no {precision} graph (it holds: {have}); "
                f"rebuild it with that precision"
            ) from None

    def verify(self, record: FileRecord) -> Path:
        """Check one file against the manifest and return its path.

        Raises:
            BundleError: if it is missing, truncated or altered.
        """
        path = self.directory / record.file
        try:
            size = path.stat().st_size
            if size != record.bytes:
                raise BundleError(
                    f"{path} has {size} bytes, the manifest says {record.bytes}: it is truncated "
                    "or altered; copy the bundle again or rebuild it"
                )
            found = sha256(path)
        except FileNotFoundError as error:
            raise BundleError(f"{path} is missing; copy the bundle again or rebuild it") from error
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
        if found != record.sha256:
            raise BundleError(
                f"{path} was altered: its sha256 is {found[:12]}…, the manifest says "
                f"{record.sha256[:12]}…; copy the bundle again or rebuild it"
            )
        return path

    def verify_graph(self, record: GraphRecord) -> Path:
        """Check a graph and its external data; return the model file's path."""
        paths = [self.verify(item) for item in record.files]
        return paths[0]


def sha256(path: Path) -> str:
    """The hex digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_record(path: Path, *, root: Path) -> FileRecord:
    """Hash a file; its name is kept relative to ``root``."""
    return FileRecord(
        file=path.relative_to(root).as_posix(), sha256=sha256(path), bytes=path.stat().st_size
    )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the one lock of a bundle's directory, which exists only while a process does.

    Raises:
        HostError: if another build holds it, or the directory may not be opened.
    """
    with disk_errors(directory):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError(
                f"another attn-export is writing {directory}; wait for it, or choose another "
                "directory with -o"
            ) from error
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """Yield a staging folder; on success its files replace the bundle's, manifest last.

    On any error, and on Ctrl-C, the bundle stays as it was, and directories made for it are
    removed. What a killed process left behind is finished or removed by the next one.

    Raises:
        HostError: if the directory cannot be written, the disk is full, it is locked, or it
            holds other files and no bundle.
    """
    with disk_errors(directory):
        created = _make_directory(directory)
    with locked(directory):
        try:
            with disk_errors(directory):
                _recover(directory)
                _refuse_other_files(directory)
                staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=directory))
                try:
                    yield staging
                    _publish(staging, directory)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
        except BaseException:
            with contextlib.suppress(OSError):
                for path in created:
                    path.rmdir()
            raise


@contextlib.contextmanager
def extended(directory: Path) -> Iterator[Bundle]:
    """Yield a staged copy of a bundle, to add engines to; on success it replaces the bundle.

    The copy's files are the bundle's own under a second name. Nothing that the copy's manifest
    does not name is taken over.

    Raises:
        BundleError: if there is no bundle, or a file of it is missing.
        HostError: as :func:`staged` does.
    """
    Bundle.open(directory)
    with staged(directory) as staging:
        manifest = Bundle.open(directory).manifest
        for record in manifest.files:
            target = staging / record.file
            target.parent.mkdir(parents=True, exist_ok=True)
            _second_name(directory / record.file, target)
        yield Bundle(staging, manifest)
        write_manifest(staging, manifest)


def _second_name(source: Path, target: Path) -> None:
    if not source.is_file():
        raise BundleError(f"{source} is missing; copy the bundle again or rebuild it")
    try:
        target.hardlink_to(source)
    except OSError:  # some file systems have no second names
        shutil.copy2(source, target)


def _make_directory(directory: Path) -> list[Path]:
    """Make a directory and its parents; return those that were new, deepest first."""
    missing = []
    for path in (directory, *directory.parents):
        if path.exists():
            break
        missing.append(path)
    directory.mkdir(parents=True, exist_ok=True)
    return missing


def _recover(directory: Path) -> None:
    """Finish what a killed process was publishing; remove what it had not finished."""
    for ready in directory.glob(f"{READY}*"):
        _move_in(ready, directory)
    for stale in directory.glob(f"{STAGING}*"):
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()


def _refuse_other_files(directory: Path) -> None:
    if (directory / MANIFEST).exists():
        return
    others = sorted(path.name for path in directory.iterdir() if path.name != CACHE)
    if others:
        raise HostError(
            f"{directory} holds other files ({', '.join(others[:3])}) and no bundle; "
            "choose a new or empty directory with -o"
        )


def _publish(staging: Path, directory: Path) -> None:
    if not (staging / MANIFEST).exists():
        raise FileNotFoundError(errno.ENOENT, "a bundle was staged without", MANIFEST)
    ready = staging.rename(directory / staging.name.replace(STAGING, READY))
    try:
        _move_in(ready, directory)
    except KeyboardInterrupt:
        _move_in(ready, directory)  # too late to go back: the old files are going
        raise


def _move_in(ready: Path, directory: Path) -> None:
    """Replace the old bundle's files by the ready ones; may be repeated from any point.

    Without a manifest the directory is no bundle, so a reader never sees a mixed one.
    """
    if (ready / MANIFEST).exists():
        retired = ready / RETIRED
        with contextlib.suppress(FileNotFoundError):
            (directory / MANIFEST).replace(retired)
        for name in _owned_files(retired):
            (directory / name).unlink(missing_ok=True)
        if retired.exists():
            if _graphs(retired) != _graphs(ready / MANIFEST):
                shutil.rmtree(directory / REPORTS, ignore_errors=True)  # they speak of the old ones
            retired.unlink()
        for path in sorted(ready.rglob("*")):
            if path.is_file() and path.name != MANIFEST:
                target = directory / path.relative_to(ready)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        (ready / MANIFEST).replace(directory / MANIFEST)
    shutil.rmtree(ready)


def _owned_files(path: Path) -> list[str]:
    """The files that a manifest names; none if it is absent or cannot be read."""
    try:
        manifest = read_manifest(path)
    except (OSError, BundleError):
        return []
    return [record.file for record in manifest.files]


def _graphs(path: Path) -> dict[str, GraphRecord] | None:
    try:
        return read_manifest(path).graphs
    except (OSError, BundleError):
        return None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step.

    Raises:
        HostError: if the directory cannot be written.
    """
    write_atomic(directory / MANIFEST, json.dumps(manifest.to_json(), indent=2) + "\n")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        HostError: if the directory cannot be written or the disk is full.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{STAGING}{path.name}.{os.getpid()}")
        try:
            partial.write_bytes(content if isinstance(content, bytes) else content.encode())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _inside(path: Path, directory: Path) -> bool:
    """Whether a refused write concerns this directory (or a parent it would be made in)."""
    path, directory = path.absolute(), directory.absolute()
    return path.is_relative_to(directory) or directory.is_relative_to(path)


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a HostError."""
    refusals = {
        errno.EROFS: "is on a read-only file system",
        errno.EACCES: "may not be written",
        errno.EPERM: "may not be written",
        errno.ENOENT: "cannot be written",
        errno.ENOSPC: "has no space left",
        errno.EDQUOT: "is over its quota",
        errno.EFBIG: "does not take a file this large",
        errno.ENAMETOOLONG: "is too long a name",
        errno.ENOTDIR: "is not a directory",
        errno.EEXIST: "is not a directory",
    }
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if error.filename else where
        if error.errno not in refusals or not _inside(named, where):
            raise
        raise HostError(
            f"{where} {refusals[error.errno]}; nothing was changed: choose another "
            "directory or make room"
        ) from error
