"""Work in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attn_export.benchmarks.cases import load_reference
from attn_export.benchmarks.peer_conversion import converted
from attn_export.errors import BundleError, HostError
from attn_export.lazy import require


def test_it_runs_elsewhere_and_its_result_comes_back() -> None:
    assert converted(os.getpid) != os.getpid()


def test_an_error_of_ours_is_raised_here() -> None:
    with pytest.raises(BundleError, match="cannot be read as a golden file"):
        converted(load_reference, Path("not-there.npz"))


def test_any_other_error_is_raised_here_as_well() -> None:
    with pytest.raises(FileNotFoundError):
        converted(os.listdir, "not-there")


def test_a_missing_package_keeps_its_message() -> None:
    with pytest.raises(HostError, match=r"pip install 'attn-export\[peers\]'"):
        converted(require, "a_package_that_is_not_there", extra="peers")
