"""The study runs every way on every kind of requests, and its ratios have the right side up."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from attn_export.benchmarks import packing_study
from attn_export.benchmarks.packing_report import render_packing
from attn_export.benchmarks.packing_study import (
    BUCKETED,
    PACKED,
    PADDED,
    made_up,
    study_packing,
    ways,
)
from attn_export.bucketing import BucketOptions
from attn_export.bundle import Bundle, write_manifest
from attn_export.cli_packing import packing
from attn_export.engines import onnxruntime
from attn_export.engines.engine import load
from attn_export.engines.session import CompileOptions
from attn_export.errors import BundleError, InputError
from attn_export.exporter.source import ModelSource
from attn_export.portable import write_portable

TINY = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "vocab_size": 50, "max_length": 16}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packed")
    manifest = write_portable(
        ModelSource(model="mqa", options=TINY),
        directory,
        lowering="fold",
        buckets=BucketOptions(count=2),
        fp16=None,
        packed=True,
        command="",
        say=lambda text: None,
    )
    bundle = Bundle(directory, manifest)
    for precision in ("fp32", "packed"):
        record = onnxruntime.compile(bundle, precision, CompileOptions())
        record.parity = {"passed": True, "sha256": manifest.shipped(record).sha256}
        manifest.engines[record.name] = record
    write_manifest(directory, manifest)
    return directory


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COUNT": 12, "GROUPS": (4,), "QUICK_TURN_S": 1e-3}.items():
        monkeypatch.setattr(packing_study, name, value)


@pytest.mark.usefixtures("short")
def test_each_kind_of_lengths_is_measured_in_each_way_of_arriving(packed: Path) -> None:
    said: list[str] = []
    texts = [np.arange(n, dtype=np.int32) for n in (3, 16, 5, 1, 9, 2)]
    study = study_packing(Bundle.open(packed), sequences=texts, quick=True, say=said.append)
    kinds = ["given", "uniform", "equal", "bimodal", "long-tailed"]
    assert [(cell.lengths, cell.group) for cell in study.cells] == [
        (kind, group) for kind in kinds for group in (None, 4)
    ]
    assert (study.packed, study.bucketed) == ("onnxruntime-fp32-packed", "onnxruntime-fp32")
    for cell in study.cells:
        assert set(cell.ratios) == set(cell.cpu) == {PACKED, PADDED}
        assert all(found.low > 0 for found in cell.ratios.values())
        assert all(0 <= share < 1 for share in cell.empty.values())
    equal = next(cell for cell in study.cells if cell.lengths == "equal")
    assert equal.empty[PACKED] == equal.empty[BUCKETED] == 0
    assert said[:2] == ["given, all at once", "given, groups of 4"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_packing(study))
    text = console.export_text()
    lines = text.splitlines()
    rows = [line.split()[:2] for line in lines if line.startswith(tuple(kinds))]
    assert rows == [[kind, at] for kind in kinds for at in ("all", "4")]
    assert "…" not in text


def test_the_ratio_is_of_throughput() -> None:
    slow = {PACKED: 0.01, BUCKETED: 0.04, PADDED: 0.16}
    sleepers = {name: lambda _, s=s: time.sleep(s) for name, s in slow.items()}
    wall, _ = packing_study._race(sleepers, [[], []], 3)
    assert wall[PACKED].median > 1.5
    assert wall[PADDED].median < 0.7


def test_waiting_is_no_cpu_time() -> None:
    wall, cpu = packing_study._seconds(lambda _: time.sleep(0.05), [[]])
    assert wall >= 0.05
    assert cpu < 0.04


def test_the_ways_answer_the_same(packed: Path) -> None:
    texts = made_up(50, 16)["uniform"][:9]
    with load(packed, packed=True) as rows, load(packed) as padded:
        both = ways(rows, padded)
        a, b = (both[name](texts) for name in (PACKED, BUCKETED))
        np.testing.assert_allclose(a["logits"], b["logits"], atol=5e-6)  # type: ignore[index]
        both[PADDED](texts)


def test_made_up_requests_are_as_long_as_their_kind_says() -> None:
    lengths = {name: [len(text) for text in texts] for name, texts in made_up(9, 100).items()}
    assert all(min(of) >= 1 and max(of) <= 100 for of in lengths.values())
    assert set(lengths["equal"]) == {25}
    assert {n // 20 for n in lengths["bimodal"]} == {0, 3, 4, 5}
    assert 45 < np.mean(lengths["uniform"]) < 56
    assert 10 <= np.median(lengths["long-tailed"]) <= 12
    assert max(text.max() for text in made_up(9, 100)["uniform"]) == 8


def test_a_bundle_without_packed_rows_and_texts_that_do_not_fit_are_refused(
    packed: Path, exported: Path
) -> None:
    with pytest.raises(BundleError, match="no packed engine beside a padded one"):
        study_packing(Bundle.open(exported))
    with pytest.raises(InputError, match="17 tokens"):
        study_packing(Bundle.open(packed), sequences=[np.zeros(17, np.int32)], quick=True)


@pytest.mark.usefixtures("short")
def test_the_command_prints_json_and_keeps_it(packed: Path) -> None:
    result = CliRunner().invoke(packing, [str(packed), "--quick", "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((packed / "reports" / "packing.json").read_text())
    assert len(printed["cells"]) == 10
