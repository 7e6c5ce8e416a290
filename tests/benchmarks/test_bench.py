"""A whole measurement with real workers, on a tiny model and for moments only."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from attn_export.benchmarks import bench as module
from attn_export.benchmarks import rounds
from attn_export.benchmarks.bench import run_bench
from attn_export.benchmarks.bench_report import BenchReport
from attn_export.benchmarks.bench_settings import data_sha256
from attn_export.benchmarks.report import render_bench
from attn_export.benchmarks.report_file import write_report
from attn_export.benchmarks.rounds import Plan
from attn_export.bundle import Bundle, write_manifest
from attn_export.errors import BundleError, HostError, InputError, UsageError
from attn_export.exporter.source import ModelSource, load_model, weights_sha256
from attn_export.manifest import EngineRecord

MOMENT = Plan(rounds=2, turn_s=0.02, all_s=0.02, warm_up_s=0.0, latency_s=0.0)
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
        assert (result.device, result.device_mib) == ("cpu", None)
        package = "onnxruntime" if result.engine else "torch"
        assert set(result.versions) == {"python", "numpy", package}
        assert 0 <= result.cv < 5
        assert not result.stable  # the warm-up had no time
    assert "gpu" not in report.environment
    assert any("the warm-up of these ended by its time limit" in note for note in report.notes)


def test_each_engine_and_eager_has_latencies(report: BenchReport) -> None:
    assert set(report.latencies) == {"eager-dynamic", "onnxruntime-fp32", "onnxruntime-fp16"}
    shapes = {
        name: [(x.batch, x.length) for x in found] for name, found in report.latencies.items()
    }
    assert shapes["eager-dynamic"] == [(1, 4), (1, 16)]
    assert shapes["onnxruntime-fp32"] == shapes["onnxruntime-fp16"] == [(1, 4), (1, 16), (4, 16)]
    for latency in (x for found in report.latencies.values() for x in found):
        assert sum(latency.histogram.counts) == latency.runs >= 10
        assert latency.device_ms is None


def test_what_a_comparison_needs_is_recorded(report: BenchReport) -> None:
    settings = report.settings
    assert settings["data_sha256"] == data_sha256(SEQUENCES)
    assert settings["model"] == "mqa"
    assert settings["parameters"] > 0
    assert len(settings["weights_sha256"]) == 64
    wanted = {"batch_size": 4, "threads": 1, "quick": True, "rounds": 2, "max_length": 16}
    assert wanted.items() <= settings.items()
    machine = report.environment["machine"]
    assert set(machine["cpus"]) == os.sched_getaffinity(0)
    assert 0 <= machine["stolen_share"] <= 1


def test_two_rounds_leave_every_ratio_open(report: BenchReport) -> None:
    for result in report.results:
        assert set(result.verdicts.values()) <= {"inconclusive"}


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
    assert kept["schema_version"] == 2
    assert BenchReport.from_json(kept) == report
    assert kept["data"] == "8 given sequences"
    assert (kept["threads"], kept["quick"], kept["batch_size"]) == (1, True, 4)
    assert kept["environment"]["packages"]["onnxruntime"]
    assert len(kept["load_average"]) == 2
    assert all("padded_share" in result for result in kept["results"])


def shown(report: BenchReport) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(render_bench(report))
    return captured.get()


def test_the_table_fits_a_terminal_of_80_columns(report: BenchReport) -> None:
    text = shown(report)
    for result in report.results:
        row = [line for line in text.splitlines() if line.startswith(result.candidate + " ")]
        assert any(f"{result.samples_per_s.median:.1f}" in line for line in row), text
    assert "…" not in text
    assert "engine-bucketed:onnxruntime-fp16: a CPU computes FP16 in FP32" in text
    assert "QUICK: 2 rounds of short turns are a first impression" in text
    assert "~" in text


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


FAULTY = """
import os
import time
import torch

class Model(torch.nn.Module):
    max_length = 16
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(50, 2)
        torch.nn.init.ones_(self.table.weight)
    def forward(self, input_ids, attention_mask):
        if len(input_ids) == 4:
            FAULT
        return self.table(input_ids).sum(1)

def make():
    return Model()
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("time.sleep(600)", "no answer to 'warm_up' within 1 s, so its process was ended"),
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL (is there enough memory?)"),
    ],
)
def test_a_candidate_that_hangs_or_crashes_has_a_row_and_the_rest_goes_on(
    fault: str, message: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL", MOMENT)
    monkeypatch.setattr(rounds, "LIMIT_S", 1.0)
    (tmp_path / "stuck.py").write_text(FAULTY.replace("FAULT", fault))
    source = ModelSource(model=f"{tmp_path / 'stuck.py'}:make")
    weights = weights_sha256(load_model(source).module)
    bundle.manifest.model |= {
        "source": source.to_json(),
        "weights_sha256": weights,
        "builtin": False,
    }
    write_manifest(bundle.directory, bundle.manifest)
    report = run_bench(
        bundle, sequences=SEQUENCES, engine="onnxruntime-fp16", rounds=1, threads=1, batch_size=4
    )
    assert [result.name for result in report.results] == ["engine-bucketed:onnxruntime-fp16"]
    for name in ("eager-padded", "eager-dynamic"):
        assert message in report.failed[name].reason
        assert report.failed[name].error == "HostError"
        assert name not in report.skipped
        assert f"[FAIL] {name}: " in shown(report)
    with pytest.raises(HostError, match=r"^2 of 3 candidates failed: eager-padded, eager-dynamic"):
        report.require_complete()


def damage(bundle: Bundle, name: str) -> None:
    with (bundle.directory / name).open("ab") as file:
        file.write(b"x")


def test_an_engine_that_cannot_be_loaded_does_not_end_the_others(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL", MOMENT)
    damage(bundle, "model.fp16.onnx")
    report = run_bench(bundle, sequences=SEQUENCES, rounds=1, threads=1, batch_size=4)
    assert "engine-bucketed:onnxruntime-fp32" in [result.name for result in report.results]
    assert list(report.failed) == ["engine-bucketed:onnxruntime-fp16"]
    assert report.skipped == {}
    with pytest.raises(BundleError, match=r"^1 of 7 candidates failed: .*fp16.* is truncated"):
        report.require_complete()


def test_no_engine_that_can_be_loaded_is_the_first_ones_error(bundle: Bundle) -> None:
    damage(bundle, "model.onnx")
    damage(bundle, "model.fp16.onnx")
    with pytest.raises(BundleError, match=r"engine-padded:onnxruntime-fp32: "):
        run_bench(bundle, sequences=SEQUENCES, threads=1)


def foreign(bundle: Bundle) -> str:
    """Add an engine for a GPU that is not here, or is another one."""
    record = EngineRecord(
        backend="tensorrt",
        precision="fp16",
        graph="fp16",
        variant="sm00-10.16.1",
        profiles=[{"batch": [1, 2, 2], "sequence": [1, 8, 8]}],
        environment={
            "compute_capability": "0.0",
            "gpu": "none",
            "tensorrt": "10.16.1",
            "version_compatible": None,
        },
    )
    bundle.manifest.engines[record.name] = record
    write_manifest(bundle.directory, bundle.manifest)
    return record.name


def test_an_engine_that_this_host_cannot_run_is_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL", MOMENT)
    name = foreign(bundle)
    del bundle.manifest.engines["onnxruntime-fp32"]
    bundle.manifest.model["name"] = "mha"  # one eager candidate less
    write_manifest(bundle.directory, bundle.manifest)
    short = [ids[:8] for ids in SEQUENCES]
    report = run_bench(bundle, sequences=short, rounds=1, threads=1, batch_size=4)
    assert [result.name for result in report.results] == [
        *("eager-padded", "eager-dynamic"),
        "engine-bucketed:onnxruntime-fp16",
    ]
    assert name in report.skipped[name]
    assert f"{name} left out: " in shown(report)


def test_the_engine_that_was_asked_for_must_run_here(bundle: Bundle) -> None:
    name = foreign(bundle)
    with pytest.raises(HostError, match=f"engine-padded:{name}: "):
        run_bench(bundle, engine=name, threads=1)
    del bundle.manifest.engines["onnxruntime-fp32"], bundle.manifest.engines["onnxruntime-fp16"]
    with pytest.raises(HostError, match=f"can run no engine of the bundle: {name}: "):
        run_bench(bundle, threads=1)


def test_sequences_must_fit_the_profiles_of_every_engine(bundle: Bundle) -> None:
    foreign(bundle)
    with pytest.raises(InputError, match="has 9 tokens; the engines take 1 to 8"):
        run_bench(bundle, sequences=SEQUENCES)


def test_an_interpreter_that_is_not_there(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no Python interpreter"):
        run_bench(bundle, sequences=SEQUENCES, engine_python="/no/python")


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
