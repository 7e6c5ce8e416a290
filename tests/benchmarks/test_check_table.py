"""A check on the terminal."""

from __future__ import annotations

from rich.console import Console

from attn_export.benchmarks.check_table import render_check

from .check_results import CRASHED, PASSED, SLOWER, UNCLEAR, check_report


def test_the_verdict_is_first_and_the_numbers_stand_as_they_are() -> None:
    console = Console(width=120, force_terminal=False)
    with console.capture() as captured:
        console.print(render_check(check_report(PASSED, SLOWER, UNCLEAR, CRASHED)))
    lines = captured.get().splitlines()
    assert lines[0] == "ERROR: 1 pass, 1 fail, 1 inconclusive, 1 error"
    assert "[FAIL] regression:onnxruntime-fp32: 0.870 [0.850, 0.890] times the baseline" in lines
    assert "[????] speedup:onnxruntime-fp32: 1.2 [0.9, 1.5] | <b>" in lines
    assert lines[-2:] == ["baseline: the build old-bundle", "a note"]
