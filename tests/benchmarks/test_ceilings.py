"""The limits of this machine, measured by real processes for a moment, and kept."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_export.benchmarks import ceilings
from attn_export.benchmarks.ceilings import known_ceilings, measure_ceilings
from attn_export.benchmarks.hardware_products import WORK
from attn_export.errors import HostError

Restrict = Callable[..., None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "attn-export"


@pytest.fixture
def restrict(monkeypatch: pytest.MonkeyPatch) -> Restrict:
    """Measure only some work, shortly and on one CPU."""

    def to(*work: str) -> None:
        monkeypatch.setattr(ceilings, "WORK", {name: WORK.get(name) for name in work})
        monkeypatch.setattr(ceilings, "ROUNDS", 1)
        monkeypatch.setattr(ceilings, "ROUND_S", 0.01)
        cpu = min(os.sched_getaffinity(0))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {cpu})

    return to


def test_what_is_measured_is_kept_for_the_next_time(restrict: Restrict, cache: Path) -> None:
    restrict("numpy-fp32", "numpy-copy")
    assert known_ceilings() is None
    said: list[str] = []
    limits = measure_ceilings(said.append)
    assert (limits.name, limits.tier) == ("here", "measured")
    assert list(limits.flops) == ["fp32"]
    assert limits.flops["fp32"] > 0
    assert limits.bytes_per_s > 0
    assert limits.memory_bytes
    assert "fp32 by numpy" in limits.source
    assert said[-3:-1] == ["measuring numpy-fp32", "measuring numpy-copy"]
    assert f"numpy-fp32 {limits.flops['fp32'] / 1e9:,.0f}, numpy-copy" in said[-1]
    assert known_ceilings() == limits
    assert len(list(cache.iterdir())) == 1


def test_a_library_that_is_missing_or_fails_is_named_and_the_rest_goes_on(
    restrict: Restrict,
) -> None:
    restrict("absent_library-fp32", "numpy-nothing", "numpy-fp32", "numpy-copy")
    said: list[str] = []
    measure_ceilings(said.append)
    assert "absent_library-fp32: not measured, absent_library is not installed" in said
    assert "numpy-nothing: not measured, its process ended with exit code 1" in said


def test_without_any_product_there_are_no_limits(restrict: Restrict, cache: Path) -> None:
    restrict("numpy-copy")
    with pytest.raises(HostError, match="no library could multiply"):
        measure_ceilings(lambda _: None)
    assert not cache.exists()


def test_the_best_library_counts() -> None:
    rates = {"a-fp32": 1.0, "b-fp32": 3.0, "c-fp32": 2.0, "a-int8": 9.0, "numpy-copy": 5.0}
    limits = ceilings._limits(rates, [0, 1], 0.25)
    assert limits.flops == {"fp32": 3.0, "int8": 9.0}
    assert limits.bytes_per_s == 5.0
    assert "fp32 by b" in limits.source
    assert "load average 0.2 before" in limits.source


def test_other_work_on_the_machine_is_said(
    restrict: Restrict, monkeypatch: pytest.MonkeyPatch
) -> None:
    restrict("numpy-fp32", "numpy-copy")
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    said: list[str] = []
    measure_ceilings(said.append)
    assert said[0] == "other work runs here (load average 3.0): the limits will be too low"


def test_other_versions_are_measured_anew(
    restrict: Restrict, monkeypatch: pytest.MonkeyPatch
) -> None:
    restrict("numpy-fp32", "numpy-copy")
    measure_ceilings(lambda _: None)
    machine = ceilings._machine()
    machine["versions"]["numpy"] = "0.1"
    monkeypatch.setattr(ceilings, "_machine", lambda: machine)
    assert known_ceilings() is None


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 1}', "\udcff"])
def test_a_broken_cache_is_as_none_with_a_warning(
    content: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    ceilings._cache_file().write_bytes(content.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING, "attn_export"):
        assert known_ceilings() is None
    assert "measure again" in caplog.text


def test_another_schema_is_as_none(restrict: Restrict) -> None:
    restrict("numpy-fp32", "numpy-copy")
    measure_ceilings(lambda _: None)
    path = ceilings._cache_file()
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, "schema_version": 99}), encoding="utf-8")
    assert known_ceilings() is None


def test_a_cache_that_cannot_be_written_costs_a_warning_only(
    restrict: Restrict, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    restrict("numpy-fp32", "numpy-copy")
    cache.write_text("a file where the folder should be", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "attn_export"):
        limits = measure_ceilings(lambda _: None)
    assert limits.flops["fp32"] > 0
    assert "what was measured is not kept" in caplog.text


def test_a_process_that_hangs_is_ended(restrict: Restrict, monkeypatch: pytest.MonkeyPatch) -> None:
    restrict("numpy-fp32", "numpy-copy")
    monkeypatch.setattr(ceilings, "PATIENCE_S", 0.01)
    said: list[str] = []
    with pytest.raises(HostError, match="no library could multiply"):
        measure_ceilings(said.append)
    assert "numpy-fp32: not measured, its process ended with exit code -9" in said
