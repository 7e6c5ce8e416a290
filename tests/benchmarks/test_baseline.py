"""What a baseline may be, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.baseline import BuildBaseline, RecordedBaseline, open_baseline
from attn_export.benchmarks.bench_report import BenchReport
from attn_export.benchmarks.candidates import BUCKETED, EAGER_PADDED, Settings
from attn_export.bundle import Bundle, write_manifest
from attn_export.errors import BundleError, UsageError

from .recorded_bench import recorded_bench

ENGINE = Settings(candidate=BUCKETED, engine="onnxruntime-fp32", threads=2, batch_size=64)
EAGER = Settings(candidate=EAGER_PADDED, engine=None, threads=2, batch_size=64)


@pytest.fixture
def old(bundle: Bundle, tmp_path: Path) -> Bundle:
    """Another build, with a record in its reports."""
    shutil.copytree(bundle.directory, tmp_path / "old")
    found = Bundle.open(tmp_path / "old")
    keep(found.directory / "reports" / "bench.json", recorded_bench(found))
    return found


def keep(path: Path, report: BenchReport) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report.to_json()))
    return path


def test_a_bundle_runs_beside(bundle: Bundle, old: Bundle) -> None:
    found = open_baseline(old.directory, bundle)
    assert isinstance(found, BuildBaseline)
    assert found.bundle.directory == old.directory
    assert found.engines == ["onnxruntime-fp32", "onnxruntime-fp16"]
    assert found.note == ""


def test_a_record_whose_bundle_is_there_becomes_that_build(bundle: Bundle, old: Bundle) -> None:
    found = open_baseline(old.directory / "reports" / "bench.json", bundle)
    assert isinstance(found, BuildBaseline)
    assert found.bundle.directory == old.directory


def test_a_record_alone_stays_one(bundle: Bundle, tmp_path: Path) -> None:
    path = keep(tmp_path / "bench.json", recorded_bench(bundle))
    found = open_baseline(path, bundle)
    assert isinstance(found, RecordedBaseline)
    assert (found.engines, found.note) == (["onnxruntime-fp32"], "")


def test_the_bundles_own_record_says_how_fast_it_was(bundle: Bundle) -> None:
    path = keep(bundle.directory / "reports" / "bench.json", recorded_bench(bundle))
    assert isinstance(open_baseline(path, bundle), RecordedBaseline)


def test_a_record_whose_bundle_was_altered_stays_one_and_says_so(
    bundle: Bundle, old: Bundle
) -> None:
    (old.directory / "model.onnx").write_bytes(b"altered")
    found = open_baseline(old.directory / "reports" / "bench.json", bundle)
    assert isinstance(found, RecordedBaseline)
    assert "its build cannot run: " in found.note
    with pytest.raises(BundleError, match="truncated or altered"):
        open_baseline(old.directory, bundle)


def test_a_record_of_other_weights_than_its_bundles_stays_one(bundle: Bundle, old: Bundle) -> None:
    old.manifest.model["weights_sha256"] = "0" * 64
    write_manifest(old.directory, old.manifest)
    found = open_baseline(old.directory / "reports" / "bench.json", bundle)
    assert isinstance(found, RecordedBaseline)
    assert "is not the one that it measured" in found.note


def test_another_model_is_noted_and_other_inputs_are_refused(bundle: Bundle, old: Bundle) -> None:
    old.manifest.model["name"] = "mha"
    write_manifest(old.directory, old.manifest)
    found = open_baseline(old.directory, bundle)
    assert "another model: mha with" in found.note
    data = json.loads((old.directory / "manifest.json").read_text())
    data["inputs"][0]["limit"] = 51
    (old.directory / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"below 51.*below 50.*cannot answer the same requests"):
        open_baseline(old.directory, bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a bundle's directory"),
        (b" \n", "is empty"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"{", "is not JSON"),
        (b"[1, 2]", r"bench.json: this is no report of 'attn-export bench' but \[1, 2\]"),
        (b'{"benchmarks": []}', "this is no report of 'attn-export bench'"),
    ],
)
def test_what_is_no_report_is_named(
    bundle: Bundle, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        open_baseline(path, bundle)


def test_a_newer_report_and_nothing_at_all(bundle: Bundle, tmp_path: Path) -> None:
    newer: dict[str, Any] = {**recorded_bench(bundle).to_json(), "schema_version": 99}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(newer))
    with pytest.raises(BundleError, match=r"bench.json: the report has schema 99"):
        open_baseline(path, bundle)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        open_baseline(tmp_path / "none", bundle)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder is a directory, but no bundle; give a bundle's"):
        open_baseline(tmp_path / "folder", bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": None}, "its environment is None"),
        ({"environment": {"cpu": "Xeon"}}, "its cpu is 'Xeon'"),
        ({"settings": []}, r"its settings is \[\]"),
    ],
)
def test_a_record_that_somebody_edited_is_refused(
    bundle: Bundle, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({**recorded_bench(bundle).to_json(), **change}))
    with pytest.raises(UsageError, match=f"bench.json was edited: {message}"):
        open_baseline(path, bundle)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf"), "10", None])
def test_rates_that_nobody_measured_are_refused(
    bundle: Bundle, tmp_path: Path, rate: object
) -> None:
    data = recorded_bench(bundle).to_json()
    data["results"][1]["rounds"][3] = rate
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"engine-bucketed:onnxruntime-fp32 has a round of"):
        open_baseline(path, bundle)


def test_rounds_that_have_no_partner_are_refused(bundle: Bundle) -> None:
    report = recorded_bench(bundle)
    report.results[0].rounds.pop()
    with pytest.raises(UsageError, match=r"holds 9 rounds of engine-bucketed.* and 8 of eager"):
        RecordedBaseline(path=Path("bench.json"), report=report).ratio(ENGINE, EAGER)


def test_a_bundle_beside_itself_is_noted(bundle: Bundle) -> None:
    assert "the checked bundle itself" in open_baseline(bundle.directory, bundle).note


def test_other_dimensions_of_as_many_parameters_are_noted(bundle: Bundle, old: Bundle) -> None:
    old.manifest.model["spec"] = {"num_heads": 1}
    write_manifest(old.directory, old.manifest)
    assert "num_heads 1" in open_baseline(old.directory, bundle).note


def test_the_recorded_ratio_by_hand(bundle: Bundle) -> None:
    # Eight rounds of 80 to 87 samples/s against 10: between the least and the largest.
    report = recorded_bench(bundle, engine=[80.0 + n for n in range(8)], eager=[10.0] * 8)
    found = RecordedBaseline(path=Path("bench.json"), report=report).ratio(ENGINE, EAGER)
    assert (found.low, found.median, found.high) == pytest.approx((8.0, 8.35, 8.7))


def test_too_few_rounds_and_no_eager_are_refused(bundle: Bundle) -> None:
    report = recorded_bench(bundle, engine=[80.0] * 6, eager=[10.0] * 6)
    baseline = RecordedBaseline(path=Path("bench.json"), report=report)
    with pytest.raises(UsageError, match="holds 6 rounds, which is too few"):
        baseline.ratio(ENGINE, EAGER)
    del report.results[0]
    with pytest.raises(UsageError, match="has no eager-padded; it has: engine-bucketed"):
        baseline.ratio(ENGINE, EAGER)
