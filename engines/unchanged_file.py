"""A file that is checked now and opened later."""

from __future__ import annotations

from pathlib import Path

from attn_export.errors import BundleError


class UnchangedFile:
    """Tells a file from the one that takes its name later.

    Raises:
        BundleError: if there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def path(self) -> Path:
        """Where it is.

        Raises:
            BundleError: if it is gone, or another file has its name now.
        """
        if _identity(self._path) != self._identity:
            raise BundleError(
                f"{self._path} was replaced since it was loaded; load the bundle again"
            )
        return self._path


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise BundleError(f"{path} is missing; rebuild the bundle") from error
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
