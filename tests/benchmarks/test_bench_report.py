"""Reading a report that anyone may have written, and showing one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from attn_export.benchmarks.bench_report import BenchReport, CandidateResult, Failure
from attn_export.benchmarks.latency import Histogram, Latency
from attn_export.benchmarks.loops import Prepared
from attn_export.benchmarks.report import render_bench
from attn_export.benchmarks.stats import Interval, median_interval, ratio_interval
from attn_export.errors import BuildFailed, BundleError, UsageError

EAGER = [10.0, 11.0, 12.0, 10.0, 11.0, 12.0]
RATES = {"eager-padded": EAGER, "engine-padded:e": [2 * rate for rate in EAGER]}


def candidate(name: str) -> CandidateResult:
    others = {other: rates for other, rates in RATES.items() if other != name}
    return CandidateResult(
        name=name,
        candidate=name.partition(":")[0],
        engine=None,
        note="",
        prepared=Prepared(samples=4, tokens=10, computed_tokens=40, batches=1),
        samples_per_s=median_interval(RATES[name]),
        rounds=RATES[name],
        batch_ms=None,
        ratios={other: ratio_interval(RATES[name], rates) for other, rates in others.items()},
        cold_start_s=0.1,
        cold_start_with_imports_s=0.2,
        peak_mib=50.0,
        facts={"max_abs": 1e-6},
    )


def make(**changed: Any) -> BenchReport:
    content: dict[str, Any] = {
        "model": "mqa",
        "data": "4 given sequences",
        "sequences": 4,
        "mean_length": 2.5,
        "max_length": 10,
        "batch_size": 4,
        "threads": 1,
        "rounds": 6,
        "quick": False,
        "padded_shares": {"maximum": 0.75},
        "results": [candidate(name) for name in RATES],
        "skipped": {"peer-x": "no package"},
        "environment": {"python": "3.11"},
        "load_average": (0.5, 1.5),
        "latencies": {
            "e": [
                Latency(
                    batch=1,
                    length=3,
                    runs=2,
                    host_ms={"p50": 1.0, "p90": 1.5, "p99": 1.9},
                    histogram=Histogram(edges_ms=[1.0, 2.0], counts=[2]),
                )
            ]
        },
        "settings": {"data_sha256": "0" * 64},
    }
    return BenchReport(**{**content, **changed})


def test_it_comes_back_from_its_json_as_it_was() -> None:
    report = make(failed={"hand-sorted:e": Failure(error="HostError", reason="b: killed")})
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_the_json_says_what_follows_from_the_rounds() -> None:
    eager, engine = make().to_json()["results"]
    assert engine["verdicts"] == {"eager-padded": "faster"}
    assert eager["verdicts"] == {"engine-padded:e": "slower"}
    assert engine["cv"] == eager["cv"] == pytest.approx(0.0813, rel=0.01)
    assert engine["padded_share"] == 0.75


@pytest.mark.parametrize(
    "foreign", [None, [], {}, "text", 7, {"schema_version": 2}, {"cases": 3, "schema_version": 1}]
)
def test_what_is_no_report_is_refused(foreign: Any) -> None:
    with pytest.raises(UsageError, match="this is no report of 'attn-export bench' but"):
        BenchReport.from_json(foreign)


def test_a_newer_report_asks_for_a_newer_tool() -> None:
    with pytest.raises(BundleError, match=r"has schema 3, .* reads 2; upgrade attn-export"):
        BenchReport.from_json({**make().to_json(), "schema_version": 3})


@pytest.mark.parametrize("version", [1, "2", None])
def test_an_older_report_is_measured_again(version: Any) -> None:
    with pytest.raises(UsageError, match="run 'attn-export bench' again"):
        BenchReport.from_json({**make().to_json(), "schema_version": version})


@pytest.mark.parametrize(
    "changed",
    [
        {"results": [{}]},
        {"load_average": [1]},
        {"latencies": 5},
        {"extra": 1},
        {"failed": {"x": 1}},
    ],
)
def test_an_edited_report_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="incomplete or was edited"):
        BenchReport.from_json({**make().to_json(), **changed})


def test_the_first_failure_gives_the_error() -> None:
    failed = {
        "a": Failure(error="BuildFailed", reason="a: exit 1"),
        "b": Failure(error="HostError", reason="b: killed"),
    }
    with pytest.raises(BuildFailed, match=r"2 of 4 .* failed: a, b; the first reason: a: exit 1"):
        make(failed=failed).require_complete()
    make().require_complete()


def test_peers_have_a_line_and_a_group_of_their_own() -> None:
    engine = replace(
        candidate("engine-padded:e"),
        candidate="engine-bucketed",
        engine="e",
        ratios={
            "eager-padded": Interval(median=2.0, low=1.9, high=2.1),
            "peer-slow": Interval(median=1.5, low=1.4, high=1.6),
            "peer-fast": Interval(median=0.9, low=0.8, high=1.1),
        },
    )
    peer = replace(
        candidate("eager-padded"),
        name="peer-fast",
        candidate="peer-fast",
        facts={"passed": False, "max_abs": 0.5},
    )
    environment = {"cpu": {"model": "a CPU", "cores": 4}}
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(render_bench(make(results=[peer, engine], environment=environment)))
    text = captured.get()
    assert "e beside its peers: 0.90 [0.80, 1.10] (inconclusive) x fast, 1.50" in text
    assert "; 2.00 [1.90, 2.10] x eager-padded\n" in text
    assert "\npeers on the CPU\nfast " in text
    assert (
        "peer-fast: its answers are not within the tolerance of eager FP32 (max abs 5.0e-01)"
        in text
    )
