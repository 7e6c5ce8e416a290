"""What a user reads: tables and JSON files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

from attn_export.benchmarks.parity import run_parity
from attn_export.benchmarks.report import render_parity
from attn_export.benchmarks.report_file import write_report
from attn_export.bundle import Bundle
from attn_export.manifest import FileRecord


def shown(renderable: RenderableType, width: int = 200) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_a_pass_on_the_terminal(bundle: Bundle) -> None:
    text = shown(render_parity(run_parity(bundle, reference="golden")))
    assert "[PASS] onnxruntime-fp32: 20 cases, 62 rows against the golden file" in text
    assert "[PASS] onnxruntime-fp16: 20 cases" in text
    assert "allowed 0.005 + 0.005·|reference|; its rounding twin must pass too" in text
    assert "eager FP16 for comparison is not available: it needs eager PyTorch" in text


def test_the_parity_table_fits_a_terminal_of_80_columns(bundle: Bundle) -> None:
    text = shown(render_parity(run_parity(bundle)), 80)
    rows = [line for line in text.splitlines() if line.startswith(("fp32 ", "fp16 ", "  rounding"))]
    assert [row.split()[-1] for row in rows] == ["pass"] * 3
    assert "…" not in text
    assert " x the error of eager FP16" in text


def test_a_failure_says_how_much_and_where(
    bundle: Bundle, edit_graph: Callable[[str, float], FileRecord]
) -> None:
    bundle.graph("fp32").files[0] = edit_graph("model.onnx", 0.5)
    text = shown(
        render_parity(run_parity(bundle, engines=["onnxruntime-fp32"], reference="golden"))
    )
    assert "[FAIL] onnxruntime-fp32" in text
    assert "logits: 186 of 186 values are outside the tolerance; worst case b" in text


def test_masked_rows_of_a_users_model_are_reported(bundle: Bundle) -> None:
    bundle.manifest.model["builtin"] = False
    text = shown(
        render_parity(run_parity(bundle, engines=["onnxruntime-fp32"], reference="golden"))
    )
    assert "rows without any real token are reported, not held" in text


def test_the_json_file_holds_the_report(bundle: Bundle) -> None:
    report = run_parity(bundle, reference="golden")
    write_report(bundle, "parity", report)
    kept = json.loads((bundle.directory / "reports" / "parity.json").read_text())
    assert kept == json.loads(json.dumps(report.to_json()))
    assert kept["schema_version"] == 1


def test_a_report_that_cannot_be_written_is_a_warning(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    (bundle.directory / "reports").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="attn_export"):
        write_report(bundle, "parity", run_parity(bundle, reference="golden"))
    assert "parity.json was not kept" in caplog.text
