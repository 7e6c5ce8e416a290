"""What Linux says of the CPU, and how many threads may be asked for."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from attn_export.engines.cpu import examine_cpu, usable_threads
from attn_export.errors import UsageError


def test_features_are_read_from_the_flags_of_the_first_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: fpu avx2 avx512f\n\n"
        "processor\t: 1\nmodel name\t: Other\nflags\t\t: amx_int8\n"
    )
    cpu = examine_cpu(cpuinfo)
    assert cpu.model == "Some CPU @ 2.00GHz"
    assert [name for name, present in cpu.features.items() if present] == ["avx2", "avx512f"]


@pytest.mark.parametrize("text", ["processor\t: 0\nFeatures\t: fp asimd\n", None])
def test_a_processor_of_which_nothing_is_said_is_named_by_its_kind(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    cpu = examine_cpu(tmp_path / "cpuinfo")
    assert cpu.model == platform.machine()
    assert not any(cpu.features.values())


@pytest.mark.parametrize(
    ("flags", "computes"),
    [
        ("avx2 avx512f avx512_vnni", False),
        ("avx512f avx512_bf16", True),
        ("amx_bf16", True),
        ("amx_int8", False),
    ],
)
def test_bf16_takes_a_unit_that_multiplies_it(tmp_path: Path, flags: str, computes: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    assert examine_cpu(tmp_path / "cpuinfo").computes_bf16 is computes


def test_without_a_number_each_cpu_of_this_process_has_a_thread() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_threads(None) == 1
        with pytest.raises(UsageError, match="threads is 2; this process may use 1 CPUs"):
            usable_threads(2)
    finally:
        os.sched_setaffinity(0, before)
    assert usable_threads(None) == examine_cpu().cores == len(before)


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_other_numbers_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=rf"threads is {threads}; .*give 1 to \d+"):
        usable_threads(threads)
