"""The matrix on a terminal."""

from __future__ import annotations

from rich.console import Console

from attn_export.benchmarks.matrix_report import MatrixReport
from attn_export.benchmarks.matrix_table import render_matrix

from .matrix_samples import sample_cell, sample_report


def shown(report: MatrixReport) -> list[str]:
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(render_matrix(report))
    return captured.get().splitlines()


def test_every_number_fits_a_terminal_of_80_columns() -> None:
    lines = shown(sample_report())
    assert not [line for line in lines if "…" in line or len(line) > 80]
    assert "mqa eager-fp32         padded 1.40 [1.40, 1.40]                 -     1.47" in lines
    throughput = lines[lines.index("real samples/s, padded") :]
    assert throughput[1].split() == ["batch", "16", "32", "64", "128"]
    assert throughput[2].split() == ["mha", "eager-fp32", "50", "50", "50", "50"]
    assert any(line.split()[2:] == [*["427/469/512"] * 3, "-"] for line in lines)


def test_what_is_missing_says_why() -> None:
    text = " ".join(" ".join(shown(sample_report())).split())
    assert "gqa engine-int8 failed failed failed failed" in text
    assert (
        "mha engine-int8, gqa engine-int8, mqa engine-int8 left out: its process was ended by "
        "SIGKILL"
    ) in text
    assert ("mha eager-autocast (128 padded, 128 bucketed) left out: out of memory: 8 GB") in text
    assert "mha engine-fp16, gqa engine-fp16, mqa engine-fp16 left out: a CPU computes" in text
    assert "the machine had other work" in text


def test_what_is_special_about_a_measured_cell_is_said() -> None:
    cells = [sample_cell(50.0, note="in batches of 8: its profiles take no more")]
    text = " ".join(" ".join(shown(sample_report(cells=cells))).split())
    assert "mha eager-fp32, batch 64 padded: in batches of 8: its profiles take no more" in text


def test_memory_says_what_it_is_and_what_is_saved() -> None:
    text = " ".join(" ".join(shown(sample_report())).split())
    # 120 MiB of 600 + 64.
    assert "eager MQA FP32 needs 18% less memory than MHA at batch 64, padded (the source" in text
    assert "memory: the process's peak" in text


def test_a_quick_run_is_marked_and_nothing_measured_is_no_error() -> None:
    report = sample_report()
    quick = sample_report(settings=report.settings | {"quick": True})
    assert any("a quick run gives a first impression" in line for line in shown(quick))
    cells = [cell for cell in report.cells if not cell.samples_per_s]
    assert any("left out" in line for line in shown(sample_report(cells=cells)))
