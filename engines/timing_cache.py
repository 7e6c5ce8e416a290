"""The timing cache: how long each tactic took on this GPU, kept in a file between builds.

With it a second build takes the same tactics and a fraction of the time. TensorRT takes a cache of
the same version and the same kind of GPU only, so both are in the file's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from attn_export.bundle import write_atomic
from attn_export.errors import HostError

from .cuda_driver import Gpu


def cache_file(folder: Path, version: str, gpu: Gpu) -> Path:
    """The cache of one TensorRT and one kind of GPU: ``timing-10.16.1-sm75-tesla-t4.bin``."""
    release = ".".join(version.split(".")[:3])
    sm = gpu.compute_capability.replace(".", "")
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return folder / f"timing-{release}-sm{sm}-{name}.bin"


class TimingCache:
    """A cache attached to a builder configuration.

    Attributes:
        state: ``"new"`` (nothing to begin with), ``"refused"`` (the file was not TensorRT's to
            use), and after :meth:`save` of one that was reused ``"complete"`` (it held every
            tactic) or ``"extended"``.
        notes: what a person should know.
    """

    def __init__(self, config: Any, path: Path) -> None:
        self.state = "new"
        self.notes: list[str] = []
        self._path = path
        self._found = self._read()
        self._cache = config.create_timing_cache(b"")
        if self._found and self._take_over(config):
            self.state = "reused"
            return
        if self._found:
            self.state, self._found = "refused", b""
            self.notes.append(
                f"{path} is broken, or of another TensorRT or GPU: a new timing cache is begun"
            )
            self._cache = config.create_timing_cache(b"")
        config.set_timing_cache(self._cache, ignore_mismatch=False)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.notes.append(f"the timing cache {self._path} cannot be read: {error.strerror}")
            return b""

    def _take_over(self, config: Any) -> bool:
        """Attach the cache with the file's entries.

        To combine checks the version of TensorRT, to attach the GPU.
        """
        try:
            found = config.create_timing_cache(self._found)
            combined = found is not None and self._cache.combine(found, ignore_mismatch=False)
            return bool(combined and config.set_timing_cache(self._cache, ignore_mismatch=False))
        except RuntimeError:
            return False

    def save(self) -> None:
        """Write the cache if it has grown; one that cannot be written is a note, no failure."""
        content = bytes(self._cache.serialize())
        if self.state == "reused":
            self.state = "complete" if content == self._found else "extended"
        if content == self._found:
            return
        try:
            write_atomic(self._path, content)
        except (HostError, OSError) as error:
            self.notes.append(f"the timing cache was not kept: {error}")
