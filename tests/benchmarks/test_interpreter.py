"""Workers in another Python: its own packages, and of this one attn_export alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attn_export.benchmarks.interpreter import other_interpreter, this_interpreter
from attn_export.benchmarks.torch_probe import probe_torch
from attn_export.errors import UsageError

SHOW = "import attn_export, os, sys; print(os.path.realpath(attn_export.__file__)); print(sys.path)"


def test_another_interpreter_finds_this_package_and_its_own_packages(tmp_path: Path) -> None:
    found = other_interpreter(sys.executable, tmp_path)
    done = subprocess.run(
        [found.python, "-c", SHOW],
        env=found.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    package, path = done.stdout.splitlines()
    import attn_export

    assert package == str(Path(attn_export.__file__).resolve())
    assert str(Path(attn_export.__file__).resolve().parent.parent) not in path


def test_what_the_user_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/their/modules")
    assert other_interpreter(sys.executable, tmp_path).path == f"{tmp_path}:/their/modules"


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Python interpreter '/no/python'"):
        other_interpreter("/no/python", tmp_path)


def test_this_interpreter_is_this_one() -> None:
    found = this_interpreter()
    assert found.command("m") == [sys.executable, "-m", "m"]
    assert str(Path(sys.path[-1]).absolute()) in found.path


def test_a_torch_that_cannot_be_asked_is_no_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 3\n")
    python.chmod(0o755)
    found = probe_torch(other_interpreter(str(python), tmp_path))
    assert not found.available
    assert found.problem == "asking torch ended with exit code 3: no such module"
