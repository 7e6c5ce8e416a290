"""A whole measurement with real workers, on a tiny model and for moments only."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from attn_export.benchmarks import bench as module
from attn_export.benchmarks.bench import BenchReport, run_bench
from attn_export.benchmarks.report import render_bench, write_report
from attn_export.benchmarks.rounds import Plan
from attn_export.bundle import Bundle, write_manifest
from attn_export.errors import BundleError, InputError, UsageError

MOMENT = Plan(rounds=2, turn_s=0.02, all_s=0.02, warm_up_s=0.0)
SEQUENCES = [np.full(n, 3, np.int32) for n in (2, 4, 4, 8, 9, 16, 3, 1)]


@pytest.fixture(scope="module")
def report(exported: object) -> BenchReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK", MOMENT)
        said: list[str] = []
        found = run_bench(
            Bundle.open(str(exported)),
            sequences=SEQUENCES,
            quick=True,
            batch_size=4,
            threads=1,
            say=said.append,
        )
    turns = [text.split() for text in said if text.startswith("round")]
    first, second = ([w[4] for w in turns if w[1] == number] for number in ("1", "2"))
    assert first == [result.name for result in found.results] == second[::-1]
    return found


def test_all_candidates_are_measured(report: BenchReport) -> None:
    assert [result.name for result in report.results] == [
        "eager-mha-padded",
        "eager-padded",
        "eager-dynamic",
        "engine-padded:onnxruntime-fp32",
        "engine-bucketed:onnxruntime-fp32",
        "hand-sorted:onnxruntime-fp32",
        "engine-bucketed:onnxruntime-fp16",
    ]
    for result in report.results:
        assert len(result.rounds) == 2
        assert result.samples_per_s.low <= result.samples_per_s.median <= result.samples_per_s.high
        assert 0 < result.cold_start_s < result.cold_start_with_imports_s
        assert result.peak_mib > 10
        assert 0 <= result.padded_share < 1


def test_ratios_are_of_the_same_rounds(report: BenchReport) -> None:
    results = {result.name: result for result in report.results}
    engine = results["engine-bucketed:onnxruntime-fp32"]
    for name in ("eager-mha-padded", "eager-padded", "hand-sorted:onnxruntime-fp32"):
        rounds = np.divide(engine.rounds, results[name].rounds)
        assert engine.ratios[name].median == pytest.approx(np.median(rounds))
    assert "engine-bucketed:onnxruntime-fp16" not in engine.ratios
    assert engine.name not in engine.ratios


def test_padded_shares_by_hand(report: BenchReport) -> None:
    # 47 tokens; to 16: 8 * 16. To the edges 4, 8, 16: 4 4 4 8 16 16 4 4.
    assert report.padded_shares["maximum"] == pytest.approx(1 - 47 / 128)
    assert report.padded_shares["bucket edges"] == pytest.approx(1 - 47 / 60)
    assert report.mean_length == pytest.approx(47 / 8)


def test_fp16_on_a_cpu_is_marked(report: BenchReport) -> None:
    assert report.results[-1].note == "a CPU computes FP16 in FP32"


def test_batch_times_are_given_where_batches_follow_each_other(report: BenchReport) -> None:
    times = {result.candidate: result.batch_ms for result in report.results}
    assert times["engine-bucketed"] is None
    padded = times["eager-padded"]
    assert padded
    assert 0 < padded["p50"] <= padded["p90"] <= padded["p99"]


def test_the_report_is_json_with_its_circumstances(report: BenchReport, bundle: Bundle) -> None:
    write_report(bundle, "bench", report)
    kept = json.loads((bundle.directory / "reports" / "bench.json").read_text())
    assert kept["schema_version"] == 1
    assert kept["data"] == "8 given sequences"
    assert (kept["threads"], kept["quick"], kept["batch_size"]) == (1, True, 4)
    assert kept["environment"]["packages"]["onnxruntime"]
    assert len(kept["load_average"]) == 2
    assert all("padded_share" in result for result in kept["results"])


def test_the_table_fits_a_terminal_of_80_columns(report: BenchReport) -> None:
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(render_bench(report))
    text = captured.get()
    for result in report.results:
        row = [line for line in text.splitlines() if line.startswith(result.candidate + " ")]
        assert any(f"{result.samples_per_s.median:.1f}" in line for line in row), text
    assert "…" not in text
    assert "engine-bucketed:onnxruntime-fp16: a CPU computes FP16 in FP32" in text
    assert "a quick run gives a first impression" in text


def test_an_eager_model_that_cannot_be_rebuilt_is_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL", MOMENT)
    bundle.manifest.model |= {"weights_sha256": "0" * 64, "name": "mha"}
    write_manifest(bundle.directory, bundle.manifest)
    report = run_bench(
        bundle, sequences=SEQUENCES, engine="onnxruntime-fp16", rounds=1, threads=1, batch_size=4
    )
    assert [result.name for result in report.results] == ["engine-bucketed:onnxruntime-fp16"]
    assert report.skipped["eager-mha-padded"] == "the model is that MHA itself: see eager-padded"
    for name in ("eager-padded", "eager-dynamic"):
        assert "has other weights than the bundle" in report.skipped[name]
    assert report.results[0].ratios == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "trt"}, "unknown engine 'trt'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 100_000}, "this process may use"),
    ],
)
def test_options_that_cannot_be(bundle: Bundle, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_bench(bundle, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "there are no sequences"),
        ([3, 0], r"sequence 1 \(from 0\) has 0 tokens"),
        ([3, 3, 17], r"sequence 2 \(from 0\) has 17 tokens; the engines take 1 to 16"),
    ],
)
def test_sequences_that_cannot_be(bundle: Bundle, lengths: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_bench(bundle, sequences=[np.ones(n, np.int32) for n in lengths])


def test_a_bundle_without_engines_says_how_to_make_one(bundle: Bundle) -> None:
    bundle.manifest.engines.clear()
    with pytest.raises(BundleError, match="attn-export compile"):
        run_bench(bundle)
