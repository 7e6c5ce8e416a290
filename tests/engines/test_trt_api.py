"""Finding TensorRT, and keeping what it logs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from attn_export.engines.trt_api import (
    BuildLog,
    is_strongly_typed,
    make_log,
    require_tensorrt,
    version,
)
from attn_export.errors import HostError, MissingPackage

VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
MakeDouble = Callable[[str], Any]


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, tensorrt_double: MakeDouble) -> Any:
    return tensorrt_double(request.param)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Put a module ``tensorrt`` of this code before the real one."""
    (folder / "tensorrt.py").write_text(code)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(str(folder))


def test_each_supported_version_is_taken(trt: Any) -> None:
    assert require_tensorrt() is trt
    assert version(trt) in VERSIONS


def test_only_8_needs_flags_for_its_precision(trt: Any) -> None:
    assert is_strongly_typed(trt) == (not version(trt).startswith("8"))


@pytest.mark.parametrize("found", ["7.2.3.4", "8.5.3.1", "12.0.0", "unknown"])
def test_other_versions_are_refused_with_what_is_supported(
    found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, f"__version__ = {found!r}")
    with pytest.raises(HostError, match=rf"^TensorRT {found} is installed; 8\.6 to 11 are supp"):
        require_tensorrt()


@pytest.mark.parametrize("found", ["8.6.0", "8.6.1.post1", "9.3.0", "10.0.1", "11.5.0.1"])
def test_the_versions_between_are_taken(
    found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, f"__version__ = {found!r}")
    assert isinstance(require_tensorrt(), ModuleType)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "libcublas.so.12: cannot open shared object file"
    install(monkeypatch, tmp_path, f"raise ImportError({text!r})")
    with pytest.raises(HostError, match=f"cannot be loaded: {text}") as caught:
        require_tensorrt()
    assert not isinstance(caught.value, MissingPackage)


def test_without_tensorrt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackage, match=r"pip install 'attn-export\[tensorrt\]'"):
        require_tensorrt()


def test_the_log_is_tensorrts_own_kind_and_keeps_lines_by_severity(trt: Any) -> None:
    passed_on: list[str] = []
    log = make_log(trt, passed_on.append)
    assert isinstance(log, trt.ILogger)
    severity = trt.ILogger.Severity
    for kind in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        log.log(getattr(severity, kind), f" {kind} \n")
    assert log.errors() == ["INTERNAL_ERROR", "ERROR"]
    assert log.warnings() == ["WARNING"]
    assert passed_on == ["INFO"]


def keep(log: BuildLog, kind: str, *texts: str) -> None:
    for text in texts:
        log.log(SimpleNamespace(name=kind), text)


def test_the_last_ten_errors_are_kept() -> None:
    log = BuildLog(None)
    keep(log, "ERROR", *(f"line {number}" for number in range(25)))
    assert log.errors() == [f"line {number}" for number in range(15, 25)]


def test_a_warning_is_kept_once_and_only_the_first_fifty() -> None:
    log = BuildLog(None)
    keep(log, "WARNING", *(f"line {number % 60}" for number in range(600)))
    assert log.warnings() == [f"line {number}" for number in range(50)]


def test_what_a_listener_raises_does_not_reach_tensorrt() -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError(text)

    keep(BuildLog(broken), "INFO", "a line")
