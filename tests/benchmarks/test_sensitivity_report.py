"""The report as a table, as JSON and as a file for the next build."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from attn_export.benchmarks.accuracy import Accuracy
from attn_export.benchmarks.sensitivity_report import (
    Row,
    SensitivityReport,
    render_sensitivity,
    write_excludes,
)


def accuracy(labels: float | None, sqnr_db: float | None) -> Accuracy:
    return Accuracy(
        output="logits",
        requests=500,
        labels=labels,
        cosine=0.9876,
        least_cosine=0.5,
        sqnr_db=sqnr_db,
    )


REPORT = SensitivityReport(
    rows=(
        Row(
            name="layers.1",
            kind="layer",
            nodes=("layers.1.query.gemm", "layers.1.value.gemm"),
            sqnr_db=12.34,
            labels=0.875,
            cosine=0.99123,
        ),
        Row(
            name="layers.0",
            kind="layer",
            nodes=("layers.0.query.gemm",),
            sqnr_db=None,
            labels=None,
            cosine=1.0,
        ),
        Row(
            name="layers.*.query.gemm",
            kind="role",
            nodes=("layers.0.query.gemm", "layers.1.query.gemm"),
            sqnr_db=40.0,
            labels=1.0,
            cosine=0.99999,
        ),
    ),
    excludes=("layers.1.value.gemm",),
    nodes=3,
    before=(accuracy(0.9, 11.0),),
    after=(accuracy(0.998, 35.0),),
    min_agreement=0.995,
    min_cosine=None,
    requests=500,
    sampled=200,
    evaluations=9,
    notes=("a note",),
)


@pytest.fixture
def text() -> str:
    return shown(REPORT)


def shown(report: SensitivityReport) -> str:
    console = Console(width=80, record=True)
    with console.capture() as capture:
        console.print(render_sensitivity(report))
    return capture.get()


@pytest.mark.parametrize(
    "expected",
    [
        r"layers\.1 +12\.3 0\.8750 0\.99123 1 of 2",
        r"layers\.0 +no noise +1\.00000 *\n",
        r"layers\.\*\.query\.gemm +40\.0 1\.0000 0\.99999 *\n",
        r"all 3 nodes in INT8: logits: same label 0\.9000, cosine 0\.98760, 11\.0 dB",
        r"2 in INT8, 1 kept in FP32: logits: same label 0\.9980, cosine 0\.98760, 35\.0 dB",
        r"over 500 requests; one part alone: 200 of them",
        r"a note",
    ],
)
def test_the_tables_say_what_each_part_costs_and_what_is_kept(text: str, expected: str) -> None:
    assert re.search(expected, text)
    assert max(map(len, text.splitlines())) <= 80


def test_without_excludes_it_says_so() -> None:
    found = shown(replace(REPORT, excludes=(), sampled=500))
    assert "nothing has to be excluded" in found
    assert "kept in FP32:" not in found
    assert "one part alone" not in found


def test_json_holds_everything() -> None:
    found = json.loads(json.dumps(REPORT.to_json(), allow_nan=False))
    assert found["rows"][0] == {
        "name": "layers.1",
        "kind": "layer",
        "nodes": ["layers.1.query.gemm", "layers.1.value.gemm"],
        "sqnr_db": 12.34,
        "labels": 0.875,
        "cosine": 0.99123,
    }
    assert found["excludes"] == ["layers.1.value.gemm"]
    assert (found["before"][0]["labels"], found["after"][0]["labels"]) == (0.9, 0.998)
    assert set(found) == set(vars(REPORT))


def test_excludes_are_names_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "excludes.txt"
    write_excludes(replace(REPORT, excludes=("a.gemm", "b.gemm")), path)
    assert path.read_text() == "a.gemm\nb.gemm\n"
    write_excludes(replace(REPORT, excludes=()), path)
    assert path.read_text() == ""


def test_patterns_match_the_excluded_alone() -> None:
    (pattern,) = REPORT.patterns()
    assert re.fullmatch(pattern, "layers.1.value.gemm")
    assert not re.fullmatch(pattern, "layersx1.value.gemm")
