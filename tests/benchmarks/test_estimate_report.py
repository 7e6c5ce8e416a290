"""An estimate as a person reads it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from attn_export.benchmarks.estimate_report import render_estimate
from attn_export.benchmarks.estimate_study import Study
from attn_export.spec import EncoderSpec
from tests.benchmarks.test_estimate_study import HERE, study

MHA = EncoderSpec(num_kv_heads=12)


def shown(found: Study, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(render_estimate(found))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_verdicts_come_first() -> None:
    lines = shown(study(MHA), width=200)
    assert lines[0].startswith("MHA FP32, batch 32 of 128 tokens on T4: at most 1,027 (datasheet)")
    assert lines[1] == "[WITHIN] 1,000 samples/s take 97% of its datasheet limit"
    assert lines[3].startswith("[BEYOND] 1,000 samples/s are 1.8 times its sustained limit: take")
    assert lines[5].startswith("bound by compute for 96% of the time (sustained; QKV GEMM 64%")


def test_the_memory_analysis_is_a_table_of_three_columns() -> None:
    rows = [line.split() for line in shown(study(MHA))]
    assert ["MHA", "GQA-4", "MQA"] in rows
    assert ["Q,", "K,", "V", "of", "a", "layer,", "MiB", "36.0", "20.0", "14.0"] in rows
    assert ["attention", "matrices,", "MiB", "24.0", "24.0", "24.0"] in rows
    assert ["less", "than", "MHA", "0.0%", "26.7%", "36.7%"] in rows
    assert ["parameters", "52,498,947", "43,049,475", "39,505,923"] in rows


def test_a_saving_is_said_against_mha() -> None:
    text = " ".join(shown(study()))
    assert "MQA saves 36.7% of MHA's Q, K, V and attention memory and 42.3% of its FLOPs" in text


@pytest.mark.parametrize(
    ("machine", "dtype"), [("t4", "fp32"), ("t4", "int8"), ("h100", "fp16"), ("here", "bf16")]
)
def test_tables_fit_a_terminal_of_eighty_columns(machine: str, dtype: str) -> None:
    spec = EncoderSpec(num_kv_heads=1, ffn_size=3072)
    text = "\n".join(shown(study(spec, dtype=dtype, machine=machine, here=HERE)))
    assert "residual + norm, last " in text
    assert "…" not in text


def test_what_is_not_known_is_a_dash_and_a_note() -> None:
    lines = shown(study(dtype="int8"), width=200)
    row = next(line.split() for line in lines if line.startswith("T4 "))
    assert row[2] == "-"
    assert any("T4, measured: no measured int8 speed is known" in line for line in lines)
    assert any(line.startswith("int8: the weights' products; Q, K, V") for line in lines)


def test_on_this_machine_the_products_alone_are_named_as_the_limit() -> None:
    text = " ".join(shown(study(machine="here", here=HERE)))
    assert "the products alone allow 143 samples/s" in text


def test_sparse_masks_are_a_table_with_their_meaning() -> None:
    lines = shown(study(sparse=("local:64", "block:32")), width=200)
    row = next(line.split() for line in lines if line.startswith("block:32 "))
    assert row[:4] == ["block:32", "4,096", "25.0%", "6.00"]
    assert "local:64: tokens at most 64/2 apart, rounded down" in {line.strip() for line in lines}


def test_without_sparse_patterns_there_is_no_word_of_them() -> None:
    assert "sparse" not in "\n".join(shown(study()))
