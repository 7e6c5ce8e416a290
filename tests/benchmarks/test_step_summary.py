"""Markdown for the page of a GitHub Actions job."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from attn_export.benchmarks.step_summary import append_step_summary, summary_markdown

from .check_results import CRASHED, PASSED, SLOWER, UNCLEAR, check_report


def test_it_is_appended_to_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    append_step_summary(check_report(PASSED, SLOWER))
    text = path.read_text()
    assert text.startswith("before\n## attn-export check: FAIL: 1 pass, 1 fail\n")
    assert "- a note\n" in text


def test_every_row_has_four_cells_whatever_a_process_printed() -> None:
    text = summary_markdown(check_report(PASSED, UNCLEAR, CRASHED))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
    assert r"1.2 \[0.9, 1.5] \| &lt;b&gt;" in text
    assert "ended by SIGKILL<br>" in text


def test_without_a_step_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    append_step_summary(check_report(PASSED))
    assert not any(tmp_path.iterdir())


def test_a_summary_that_cannot_be_written_changes_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with caplog.at_level(logging.WARNING, "attn_export"):
        append_step_summary(check_report(PASSED))
    assert "was not written: Is a directory" in caplog.text
