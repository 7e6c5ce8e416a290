"""The Python that a worker runs in: this one, or another one with other packages."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import attn_export
from attn_export.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """How modules of this package are started.

    Args:
        python: the interpreter.
        path: its PYTHONPATH.
    """

    python: str
    path: str

    def command(self, module: str) -> list[str]:
        """The command that runs a module."""
        return [self.python, "-m", module]

    def environment(self) -> dict[str, str]:
        """This process's environment with that path."""
        return {**os.environ, "PYTHONPATH": self.path}


def this_interpreter() -> Interpreter:
    """A process that finds what this one finds, a user's own modules included."""
    path = os.pathsep.join([str(Path(entry or ".").absolute()) for entry in sys.path])
    return Interpreter(python=sys.executable, path=path)


def other_interpreter(python: str, folder: Path) -> Interpreter:
    """Another interpreter with its own packages, and this one's attn_export.

    Args:
        folder: an empty folder that lives as long as the interpreter is used. It holds a link to
            attn_export alone: this interpreter's site-packages would hide the other's own.

    Raises:
        UsageError: if there is no such interpreter.
    """
    found = shutil.which(python)
    if found is None:
        raise UsageError(f"there is no Python interpreter {python!r}; give the path of one")
    package = Path(attn_export.__file__).resolve().parent
    (folder / package.name).symlink_to(package)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, (str(folder), inherited)))
    return Interpreter(python=str(Path(found).absolute()), path=path)
