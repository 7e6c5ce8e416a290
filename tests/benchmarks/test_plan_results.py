"""Options from results: what is read, and what may not stand side by side."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.latency import Latency, histogram
from attn_export.benchmarks.plan_option import Basis, Option
from attn_export.benchmarks.plan_results import measured_basis
from attn_export.engines.doctor import examine
from attn_export.errors import BundleError, UsageError

from . import report_results as made

T4 = {"gpus": [{"name": "Tesla T4"}]}


def put(folder: Path, content: Any, name: str = "bench.json") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def on_t4(report: dict[str, Any], device: str = "gpu") -> dict[str, Any]:
    """The same report of a machine with a T4."""
    results = [{**result, "device": device} for result in report["results"]]
    return {**report, "results": results, "environment": {**made.ENVIRONMENT, "cuda": T4}}


def bench(**changed: Any) -> dict[str, Any]:
    """FP32 alone: one request takes about 5.6 ms, a full load 200 samples/s."""
    return {**made.bench(), **changed}


def matrix(**settings: Any) -> dict[str, Any]:
    report = made.matrix()
    return {**report, "settings": {**report["settings"], **settings}}


def named(options: list[Option]) -> dict[str, Option]:
    return {option.name: option for option in options}


def reasons(found: Basis) -> dict[str, str]:
    return {item.name: item.reason for item in found.refused}


def latency(batch: int, length: int, p50: float, p99: float) -> Latency:
    """In milliseconds."""
    times = histogram([p50, p99])
    host = {"p50": p50, "p90": p99, "p99": p99}
    return Latency(batch=batch, length=length, runs=2, host_ms=host, histogram=times)


def test_a_bench_gives_a_line_from_one_request_to_a_full_load(tmp_path: Path) -> None:
    found = measured_basis([put(tmp_path, bench())])
    assert [option.name for option in found.options] == ["mqa onnxruntime-fp32, buckets"]
    service = found.options[0].service
    # 5.6 ms alone, but 1/200 s is 5 ms: then 5 ms more for each request.
    assert service.seconds[0] == pytest.approx(0.0056)
    assert service.seconds[1] == pytest.approx(0.0056 + 127 * 0.005)
    assert service.p99_s[0] == pytest.approx(0.0062, rel=0.01)
    assert found.hardware == "A CPU (4 cores)"
    assert found.unit == "machine"
    # INT8 has samples/s and no latency in these numbers.
    assert reasons(found) == {"mqa onnxruntime-int8": "the latency of one request was not measured"}


def test_the_p99_of_one_request_is_that_of_a_long_one(tmp_path: Path) -> None:
    ways = [latency(1, 24, 10.0, 12.0), latency(1, 90, 30.0, 36.0), latency(64, 128, 900.0, 950.0)]
    found = measured_basis([put(tmp_path, made.bench(latencies={"onnxruntime-fp32": ways}))])
    service = found.options[0].service
    assert service.seconds == pytest.approx((0.010, 0.010 + 127 * 0.005))
    # 24 ms from lengths alone, of a full load an 11.3th part: 12 + 2.12 ms for each 10 ms.
    assert service.p99_s == pytest.approx((0.036, 0.645 * 1.4121), rel=1e-4)
    assert not any("typical length" in note for note in found.notes)


def test_a_bench_without_a_long_request_says_that_lengths_are_not_in_its_p99(
    tmp_path: Path,
) -> None:
    ways = [latency(1, 24, 10.0, 12.0), latency(64, 128, 900.0, 950.0)]
    found = measured_basis([put(tmp_path, made.bench(latencies={"onnxruntime-fp32": ways}))])
    assert found.options[0].service.p99_s == pytest.approx((0.012, 0.645 * 1.2))
    (note,) = [note for note in found.notes if "typical length" in note]
    assert "run 'attn-export bench' again" in note


def test_eager_on_the_cpu_and_on_the_gpu_are_two_options(tmp_path: Path) -> None:
    results = [
        made.candidate("eager-dynamic", 20.0),
        replace(made.candidate("eager-dynamic", 90.0), name="eager-dynamic@gpu", device="gpu"),
        made.candidate("engine-bucketed", 200.0, engine="onnxruntime-fp32"),
        replace(made.candidate("engine-bucketed", 2e3, engine="tensorrt-fp16"), device="gpu"),
    ]
    names = ["eager-dynamic", "eager-dynamic@gpu", "onnxruntime-fp32", "tensorrt-fp16"]
    timed = {name: [latency(1, 24, 5.0, 6.0)] for name in names}
    environment = {**made.ENVIRONMENT, "cuda": T4}
    report = made.bench(results, latencies=timed, environment=environment)
    found = measured_basis([put(tmp_path, report)])
    assert [option.runner for option in found.options] == ["eager-dynamic@gpu", "tensorrt-fp16"]
    del report["latencies"]["eager-dynamic"], report["latencies"]["eager-dynamic@gpu"]
    found = measured_basis([put(tmp_path, report)])
    assert list(reasons(found)) == ["mqa eager-dynamic", "mqa eager-dynamic@gpu"]


def test_a_batch_is_not_faster_than_the_full_load(tmp_path: Path) -> None:
    slow = made.candidate("engine-bucketed", 50.0, engine="onnxruntime-fp32")
    service = measured_basis([put(tmp_path, made.bench([slow]))]).options[0].service
    assert service.seconds == pytest.approx((0.02, 0.02 * 128))


def test_a_matrix_gives_the_batches_that_it_measured(tmp_path: Path) -> None:
    found = measured_basis([put(tmp_path, matrix(), "matrix.json")])
    option = named(found.options)["mqa onnxruntime-fp32, buckets"]
    assert option.precision == "int8"  # what the variant says
    assert option.service.batches == (16, 32, 64, 128)
    rate = 2.0 * 50.0 * 3.0 * 64**0.2
    assert option.service.seconds[2] == pytest.approx(64 / rate)
    assert "a CPU computes FP16 in FP32" in reasons(found)["mha engine-fp16, padded"]
    assert {option.model for option in found.options} == {"mha", "gqa", "mqa"}


def test_one_model_may_be_kept(tmp_path: Path) -> None:
    path = put(tmp_path, matrix(), "matrix.json")
    found = measured_basis([path], model="gqa")
    assert {option.model for option in found.options} == {"gqa"}
    assert not found.refused
    kept = measured_basis([path], model="mha").refused
    assert [(item.model, item.name) for item in kept] == [("mha", "mha engine-fp16, padded")]
    with pytest.raises(UsageError, match="of mha, gqa, mqa, not of bert"):
        measured_basis([path], model="bert")


def test_a_matrix_learns_of_single_requests_from_a_bench_of_the_same_weights(
    tmp_path: Path,
) -> None:
    models = {"mqa": {"weights_sha256": "abc", "edges": [8, 16]}}
    one = put(tmp_path / "m", matrix(models=models), "matrix.json")
    two = put(tmp_path / "b", bench(settings={"weights_sha256": "abc"}))
    found = measured_basis([two, one], model="mqa")
    option = named(found.options)["mqa onnxruntime-fp32, buckets"]
    assert option.service.batches == (1, 16, 32, 64, 128)
    assert option.service.seconds[0] == pytest.approx(0.0056)
    assert option.edges == (8, 16)
    other = put(tmp_path / "b", bench(settings={"weights_sha256": "xyz"}))
    with pytest.raises(UsageError, match="more than one result"):
        measured_basis([other, one])


def test_the_same_result_twice_is_refused(tmp_path: Path) -> None:
    paths = [put(tmp_path / name, bench()) for name in ("a", "b")]
    with pytest.raises(UsageError, match="give one of them"):
        measured_basis(paths)


def test_other_hardware_is_never_mixed(tmp_path: Path) -> None:
    paths = [put(tmp_path / "a", bench()), put(tmp_path / "b", on_t4(bench()))]
    with pytest.raises(UsageError, match=r"different hardware.*Tesla T4"):
        measured_basis(paths)


def test_a_gpu_asked_for_must_be_the_one_that_was_measured(tmp_path: Path) -> None:
    path = put(tmp_path, on_t4(bench()))
    found = measured_basis([path], machine="t4")
    assert (found.hardware, found.unit) == ("Tesla T4", "GPU")
    with pytest.raises(UsageError, match=r"measured on Tesla T4.*not on a L4"):
        measured_basis([path], machine="l4")
    with pytest.raises(UsageError, match="not on a T4"):
        measured_basis([put(tmp_path / "cpu", bench())], machine="t4")
    on_cpu = put(tmp_path / "idle", on_t4(bench(), device="cpu"))
    with pytest.raises(UsageError, match="no engine that ran on the GPU"):
        measured_basis([on_cpu], machine="t4")


def test_here_is_this_machine_and_no_other(tmp_path: Path) -> None:
    report = examine()
    environment = {"cpu": asdict(report.cpu), "cuda": asdict(report.cuda)}
    path = put(tmp_path, bench(environment=environment))
    assert measured_basis([path], machine="here").unit == "machine"
    with pytest.raises(UsageError, match="this machine is"):
        measured_basis([put(tmp_path / "other", bench())], machine="here")


def test_other_lengths_are_other_work(tmp_path: Path) -> None:
    path = put(tmp_path, bench())
    assert measured_basis([path], mean_length=10.3).options
    with pytest.raises(UsageError, match=r"80\.0 tokens on average.*10\.0"):
        measured_basis([path], mean_length=80.0)


def test_fp16_on_a_cpu_is_no_option(tmp_path: Path) -> None:
    half = made.candidate("engine-bucketed", 300.0, engine="onnxruntime-fp16")
    full = made.candidate("engine-bucketed", 200.0, engine="onnxruntime-fp32")
    found = measured_basis([put(tmp_path, made.bench([half, full]))])
    assert "a CPU computes FP16 in FP32" in reasons(found)["mqa onnxruntime-fp16"]


def test_a_bundles_engine_without_passed_parity_is_no_option(
    exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "bundle")
    made.put(tmp_path / "bundle", "reports/bench.json", bench())
    with pytest.raises(UsageError, match="onnxruntime-fp32: parity was not passed"):
        measured_basis([tmp_path / "bundle"])


def test_an_engine_that_the_bundle_lost_is_no_option(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "bundle")
    lost = made.candidate("engine-bucketed", 200.0, engine="openvino-fp32")
    ways = {"openvino-fp32": [latency(1, 24, 10.0, 12.0)]}
    made.put(tmp_path / "bundle", "reports/bench.json", made.bench([lost], latencies=ways))
    with pytest.raises(UsageError, match="openvino-fp32: the bundle no longer has it"):
        measured_basis([tmp_path / "bundle"])


def test_a_file_in_a_bundles_reports_is_held_to_its_parity(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, tmp_path / "bundle")
    made.put(tmp_path / "bundle", "reports/bench.json", bench())
    monkeypatch.chdir(tmp_path / "bundle" / "reports")
    for path in (tmp_path / "bundle" / "reports" / "bench.json", Path("bench.json")):
        with pytest.raises(UsageError, match="onnxruntime-fp32: parity was not passed"):
            measured_basis([path])


def test_a_file_of_no_bundle_says_that_parity_is_not_known(tmp_path: Path) -> None:
    found = measured_basis([put(tmp_path / "reports", bench())])
    assert any("passed parity is not known" in note for note in found.notes)


def test_a_quick_result_says_so(tmp_path: Path) -> None:
    found = measured_basis([put(tmp_path, bench(quick=True))])
    assert found.notes[0].startswith("QUICK:")


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        pytest.param("", UsageError, "is not JSON", id="empty"),
        pytest.param("{", UsageError, "is not JSON", id="cut"),
        pytest.param("[]", UsageError, "no report of 'attn-export bench'", id="list"),
        pytest.param("{}", UsageError, "no report of 'attn-export bench'", id="foreign"),
        pytest.param(bench(schema_version=1), UsageError, "older", id="older"),
        pytest.param(bench(schema_version=99), BundleError, "upgrade", id="newer"),
        pytest.param(
            {"cells": 3, "settings": {}, "schema_version": 1}, UsageError, "broken", id="c"
        ),
        pytest.param(bench(results=[]), UsageError, "nothing that a plan can use", id="no-results"),
    ],
)
def test_what_is_no_result_is_refused_by_its_name(
    content: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    path = put(tmp_path, content)
    with pytest.raises(error, match=said) as raised:
        measured_basis([path])
    assert str(path) in str(raised.value)


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            measured_basis([path])
