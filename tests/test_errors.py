"""The error tree: exit codes, and messages that say what to do."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from attn_export import errors, lazy

EXIT_CODES = {
    "AttnExportError": 4,
    "GateFailed": 1,
    "UsageError": 2,
    "InputError": 2,
    "HostError": 3,
    "MissingPackage": 3,
    "BuildFailed": 4,
    "BundleError": 4,
    "Inconclusive": 5,
}


def test_every_error_has_its_exit_code() -> None:
    found = {
        name: error.exit_code
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.AttnExportError)
    }
    assert found == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_the_drawn_tree_names_every_error_and_its_code(name: str) -> None:
    lines = [line.strip("│├└─ ") for line in (errors.__doc__ or "").splitlines()]
    drawn = [line.split()[:2] for line in lines if line.split()[:1] == [name]]
    code = [] if name == "AttnExportError" else [str(EXIT_CODES[name])]
    assert drawn == [[name, *code]]


def test_a_wrong_input_is_also_a_value_error() -> None:
    assert issubclass(errors.InputError, ValueError)


def test_an_absent_package_names_the_extra_that_installs_it() -> None:
    with pytest.raises(errors.MissingPackage, match=r"pip install 'attn-export\[cpu\]'") as caught:
        lazy.require("no_such_package.part", extra="cpu")
    assert caught.value.module == "no_such_package"
    assert caught.value.extra == "cpu"


def test_a_present_package_is_returned() -> None:
    assert lazy.require("inspect", extra="cpu") is inspect


def test_a_package_that_is_broken_inside_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_package.py").write_text("import its_missing_library\n")
    with pytest.raises(ModuleNotFoundError, match="its_missing_library"):
        lazy.require("broken_package", extra="cpu")
