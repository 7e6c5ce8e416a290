"""``attn-export diagnose``: a bundle whose FP16 breaks is mended; a good one stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import attn_export
from attn_export.bundle import Bundle
from attn_export.cli import main

ONE = ["--backend", "onnxruntime"]
MODELS = Path(__file__).parent / "benchmarks" / "overflowing.py"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("model", "named"),
    [("large_scores", "scores"), ("growing_residual", "residual"), ("outlier_norm", "norm")],
)
def test_what_overflows_is_named_pinned_and_proven(tmp_path: Path, model: str, named: str) -> None:
    directory = tmp_path / "bundle"
    built = call("build", "--fp16", f"{MODELS}:{model}", *ONE, "--buckets", "1", "-o", directory)
    assert built.exit_code == 1, built.output
    result = call("diagnose", directory, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["fp16"]
    assert found["passed"]
    assert any(named in pin for pin in found["pins"])
    bundle = Bundle.open(directory)
    for record in bundle.manifest.files:
        bundle.verify(record)
    assert set(found["pins"]) <= set(bundle.manifest.graphs["fp16"].keep_fp32["excluded"])
    assert call("parity", directory).exit_code == 0
    attn_export.load(directory, precision="fp16").close()


def test_a_bundle_without_a_fault_stays_as_it_is(tmp_path: Path) -> None:
    sizes = ["--hidden-size", "32", "--heads", "4", "--layers", "2", "--vocab-size", "60"]
    directory = tmp_path / "bundle"
    made = call("build", "--fp16", "mqa", *sizes, *ONE, "--positions", "16", "-o", directory)
    assert made.exit_code == 0, made.output
    before = Bundle.open(directory).manifest.files
    result = call("diagnose", directory)
    assert result.exit_code == 0, result.output
    assert "nothing is wrong" in result.stdout
    assert Bundle.open(directory).manifest.files == before


def test_a_bundle_without_fp16_has_nothing_to_look_into(tmp_path: Path) -> None:
    sizes = ["--hidden-size", "32", "--heads", "4", "--layers", "1", "--vocab-size", "60"]
    made = call("build", "mqa", *sizes, *ONE, "--positions", "8", "-o", tmp_path / "b")
    assert made.exit_code == 0, made.output
    result = call("diagnose", tmp_path / "b")
    assert result.exit_code == 4
    assert "build it with --fp16" in result.stderr
