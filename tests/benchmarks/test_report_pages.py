"""The pages as a whole: what stands on them, what is missing, what is broken or hostile."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attn_export.benchmarks import report_limits
from attn_export.benchmarks.hardware import HERE, Limits
from attn_export.benchmarks.parity import run_parity
from attn_export.benchmarks.report_file import write_report
from attn_export.benchmarks.report_pages import write_reports
from attn_export.bundle import Bundle, write_manifest
from attn_export.cli_report import report as command
from attn_export.engines.doctor import examine
from attn_export.errors import HostError, UsageError
from attn_export.manifest import EngineRecord
from tests.benchmarks import report_results as made

VOID = {"meta", "img", "line", "rect", "circle", "polygon", "polyline", "br", "link"}
PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
HOSTILE = '</title><script>alert(1)</script><img src=x onerror="x()">|`*_[a](javascript:b)'


class Page(HTMLParser):
    """Tags, links and texts of a page; refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(directory: Path) -> tuple[Page, str]:
    html, markdown = write_reports(directory)
    return Page(html.read_text()), markdown.read_text()


@pytest.fixture(scope="module")
def finished(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every result that there is; tests copy it."""
    directory = tmp_path_factory.mktemp("finished") / "bundle"
    shutil.copytree(exported, directory)
    bundle = Bundle.open(directory)
    write_report(bundle, "parity", run_parity(bundle, reference="golden"))
    for name, content in {
        "bench": made.failed_bench(),
        "check": made.check(),
        "self-test": made.self_test(),
        "sensitivity": made.sensitivity(),
        "packing": made.packing(),
        "plan": {"gpu": "t4", "gpus": 2},
    }.items():
        made.put(directory, f"reports/{name}.json", content)
    return directory


@pytest.fixture
def full(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(finished, tmp_path / "full", ignore=shutil.ignore_patterns("*.onnx", "*.npz"))
    return tmp_path / "full"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A folder of the matrix with one bundle in it."""
    made.put(tmp_path / "run", "matrix.json", made.matrix())
    (tmp_path / "run" / "matrix.png").write_bytes(PNG)
    shutil.copytree(exported, tmp_path / "run" / "mqa")
    return tmp_path / "run"


def test_what_the_commands_write_is_read_without_a_complaint(full: Path, folder: Path) -> None:
    for directory in (full, folder):
        page, markdown = read(directory)
        assert "is not what this version" not in page.text + markdown
        assert "cannot be read" not in page.text + markdown


def test_the_verdicts_come_first_and_say_what_was_found(full: Path) -> None:
    page, markdown = read(full)
    for text in (page.text, markdown):
        assert text.index("1 failed") < text.index("Parity of onnxruntime-fp32") < text.index("CV")
    expected = (
        "Parity of onnxruntime-fp32 with eager PyTorch FP32 passed in 20 cases",
        # 500 and 485 to 515 are the median and the ends of 500 times the weather of 7 rounds.
        "onnxruntime-int8: 500 [485 to 515] samples/s; 50.0x [50.0 to 50.0] eager-mha-padded",
        "FP32 on the CPU: onnxruntime-fp32 is 1.25x [1.25 to 1.25] as fast as peer-openvino-fp32",
        "peer-torch-int8 failed: HostError: it was killed",
        "Gate speedup of onnxruntime-fp32: pass: 19.9 times eager-padded",
        "Self-test: onnxruntime-fp32 against itself showed 0 false differences in 2 runs",
    )
    for text in expected:
        assert text in page.text
        assert text in markdown


def test_what_is_absent_is_named_with_the_command_that_makes_it(bundle: Bundle) -> None:
    page, markdown = read(bundle.directory)
    for name in (
        "attn-export bench bundle",
        "attn-export parity bundle",
        "attn-export check bundle",
        "attn-export bench bundle --self-test",
        "attn-export calibrate bundle --data FILE",
        "attn-export plan bundle",
    ):
        assert name in page.text
        assert name in markdown
    assert "No engine was compared with eager PyTorch" in page.text
    assert "Packing" not in page.text + markdown  # few bundles have packed rows


def test_nothing_is_loaded_and_nothing_may_run(full: Path) -> None:
    page, _ = read(full)
    assert page.of("script") == page.of("link") == page.of("img") == []
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    style = (full / "reports" / "report.html").read_text().partition("<style>")[2]
    assert "url(" not in style.partition("</style>")[0]
    assert {link["href"] for link in page.of("a") if not str(link["href"]).startswith("#")} == {
        made.FACTS["docs"]
    }


def test_tables_and_charts_can_be_heard(full: Path) -> None:
    page, _ = read(full)
    assert {cell["scope"] for cell in page.of("th")} == {"col", "row"}
    drawn = [svg for svg in page.of("svg") if svg.get("role") == "img"]
    assert drawn
    assert all(svg["aria-label"] for svg in drawn)
    assert all(svg.get("aria-hidden") for svg in page.of("svg") if svg not in drawn)
    assert len(page.of("h1")) == 1
    names = {str(link["href"])[1:] for link in page.of("a") if str(link["href"]).startswith("#")}
    assert names == {heading["id"] for heading in page.of("h2")}


def test_a_hostile_name_stays_text(full: Path) -> None:
    bundle = Bundle.open(full)
    bundle.manifest.model["name"] = HOSTILE
    bundle.manifest.command = HOSTILE
    write_manifest(full, bundle.manifest)
    facts = {**made.FACTS, "how": HOSTILE, "docs": "javascript:alert(1)"}
    peer = made.candidate("peer-openvino-fp32", 900.0, facts=facts)
    results = [peer, made.candidate("engine-bucketed", 200.0, engine=HOSTILE)]
    changed = made.bench(results, notes=[HOSTILE], skipped={HOSTILE: HOSTILE})
    changed["latencies"][HOSTILE] = changed["latencies"].pop("onnxruntime-fp32")
    changed["environment"] = {**made.ENVIRONMENT, HOSTILE: HOSTILE}
    made.put(full, "reports/bench.json", changed)
    page, markdown = read(full)
    assert page.of("script") == page.of("img") == []
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not any("javascript" in str(link["href"]) for link in page.of("a"))
    assert "alert(1)" in page.text
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    for line in (line for line in tables if "script" in line):
        assert line.count("|") > line.count("\\|") > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "it holds no JSON object"),
        ('{"schema_version": 99}', "it has schema 99, this version of attn-export reads up to"),
        ('{"schema_version": 1, "results": 3}', "is not what this version of attn-export writes"),
        ("{}", "is not what this version of attn-export writes"),
    ],
)
@pytest.mark.parametrize(
    "name", ["bench", "parity", "check", "self-test", "sensitivity", "packing"]
)
def test_a_broken_file_is_a_warning_and_the_rest_stands(
    full: Path, name: str, content: str, said: str
) -> None:
    (full / "reports" / f"{name}.json").write_text(content)
    page, markdown = read(full)
    for text in (page.text, markdown):
        assert f"{name}.json" in text
        assert said in text
        assert "The bundle" in text
        assert "speedup" in text or name == "check"


def test_what_cannot_be_drawn_is_a_warning_in_its_place(full: Path, folder: Path) -> None:
    bench = made.bench()
    bench["latencies"]["onnxruntime-fp32"][0]["histogram"]["counts"] = [0] * 30
    made.put(full, "reports/bench.json", bench)
    matrix = made.matrix()
    matrix["cells"][0]["note"] = 3
    made.put(folder, "matrix.json", matrix)
    said = {
        full: "bench.json is not what this version of attn-export writes (ValueError: 30 counts",
        folder: "matrix.json is not what this version of attn-export writes (AttributeError",
    }
    for directory, text in said.items():
        page, markdown = read(directory)
        assert text in page.text
        assert text in " ".join(markdown.replace("\\", "").split())
    page, _ = read(full)
    assert "1 request of 30 tokens" in page.text  # the table of latencies stands
    page, _ = read(folder)
    assert "Improvement factors" in page.text
    assert "Every cell" not in page.text


def test_a_number_beyond_all_bounds_is_a_warning_too(full: Path) -> None:
    bench = made.bench()
    bench["latencies"]["onnxruntime-fp32"][0]["histogram"]["edges_ms"][-1] = float("inf")
    made.put(full, "reports/bench.json", bench)
    assert "bench.json is not what this version of attn-export writes" in read(full)[0].text


def test_a_warning_names_the_file_that_is_broken(full: Path) -> None:
    made.put(full, "matrix.json", {**made.matrix(), "environment": 3})
    bundle = Bundle.open(full)
    bundle.manifest.command = 3  # type: ignore[assignment]
    write_manifest(full, bundle.manifest)
    page, _ = read(full)
    broken = re.findall(
        r"(\S+) is not what this version .*?; write it again with: (.*?full)", page.text
    )
    assert broken == [
        ("matrix.json", "attn-export bench full"),
        ("manifest.json", "attn-export build -o full"),
    ]
    assert "The machine of reports/bench.json" in page.text


def test_names_that_are_no_utf8_are_written_with_escapes(full: Path) -> None:
    made.put(full, "reports/bench.json", made.bench(notes=["half of \ud800"]))
    bundle = Bundle.open(full)
    del bundle.manifest.model["name"]
    write_manifest(full, bundle.manifest)
    moved = full.with_name(os.fsdecode(b"b\xff"))
    full.rename(moved)
    page, markdown = read(moved)
    for text in (page.text, markdown):
        assert r"half of \ud800" in text
        assert r"b\udcff: speed and exactness" in text


def test_a_broken_manifest_is_a_warning_too(full: Path) -> None:
    (full / "manifest.json").write_text("{}")
    page, _ = read(full)
    assert "manifest.json cannot be read: the manifest has schema None" in page.text
    assert "500 [485 to 515] samples/s" in page.text


def test_results_of_another_build_are_told_apart(full: Path) -> None:
    path = full / "reports" / "parity.json"
    report = json.loads(path.read_text())
    report["engines"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(report))
    made.put(full, "reports/bench.json", made.bench(settings={"weights_sha256": "0" * 64}))
    page, _ = read(full)
    assert "parity.json speaks of another build of onnxruntime-fp32" in page.text
    assert "bench.json speaks of other weights" in page.text


def test_an_engine_that_failed_parity_is_not_the_best(full: Path) -> None:
    path = full / "reports" / "parity.json"
    report = json.loads(path.read_text())
    report["engines"].append({**report["engines"][0], "engine": "onnxruntime-int8"})
    report["engines"][-1]["passed"] = False
    path.write_text(json.dumps(report))
    page, _ = read(full)
    assert "Parity of onnxruntime-int8 with eager PyTorch FP32 FAILED" in page.text
    assert "Fastest engine that passed parity: onnxruntime-fp32: 200" in page.text


def test_a_faster_peer_is_a_failure_and_a_near_one_inconclusive(full: Path) -> None:
    ours = made.candidate("engine-bucketed", 200.0, engine="onnxruntime-fp32")
    fast = made.candidate("peer-openvino-fp32", 400.0, facts=made.FACTS)
    made.put(full, "reports/bench.json", made.bench([ours, fast]))
    assert "0.5x [0.5 to 0.5] as fast as peer-openvino-fp32, the fastest peer (slower)" in (
        read(full)[0].text
    )
    near = made.bench([ours, made.candidate("peer-openvino-fp32", 200.0, facts=made.FACTS)])
    made.put(full, "reports/bench.json", near)
    assert "the fastest peer (inconclusive)" in read(full)[0].text


def test_a_peer_on_another_device_is_no_rival(full: Path) -> None:
    peer = made.candidate("peer-openvino-fp32", 400.0, facts=made.FACTS)
    ours = [
        made.candidate("engine-bucketed", 900.0, engine="tensorrt-fp32-sm75", device="gpu"),
        made.candidate("engine-bucketed", 200.0, engine="onnxruntime-fp32"),
    ]
    made.put(full, "reports/bench.json", made.bench([*ours, peer]))
    page, _ = read(full)
    assert "FP32 on the CPU: onnxruntime-fp32 is 0.5x [0.5 to 0.5] as fast as peer-o" in page.text
    assert "tensorrt-fp32-sm75 is" not in page.text
    made.put(full, "reports/bench.json", made.bench([ours[0], peer]))
    assert "peer-openvino-fp32 computes in FP32 on the CPU; the bundle has no such engine" in (
        read(full)[0].text
    )


def test_an_engine_on_a_gpu_is_compared_with_eager_on_the_gpu(full: Path) -> None:
    engine = made.candidate("engine-bucketed", 900.0, engine="tensorrt-fp32-sm75", device="gpu")
    eager = made.candidate("eager-mha-padded", 10.0, device="gpu")
    made.put(
        full, "reports/bench.json", made.bench([engine, eager], environment=made.GPU_ENVIRONMENT)
    )
    page, markdown = read(full)
    assert "Times as fast as eager PyTorch 90.0x [90.0 to 90.0] against eager-mha-padded@gpu" in (
        page.text
    )
    # 900 of 10 and of 12: an engine that is faster than both is a pass.
    assert (
        "- **✓ pass** Fastest engine that passed parity: tensorrt-fp32-sm75: 900 [873 to 927] "
        "samples/s; 90.0x [90.0 to 90.0] eager-mha-padded@gpu, 75.0x [75.0 to 75.0] "
        "eager-padded@gpu"
    ) in markdown
    assert "900 [873 to 927] | 90.0x |" in markdown  # the bars
    assert "Tesla T4 · A CPU, 4 cores" in page.text


def test_few_rounds_are_no_pass_however_large_the_ratio(full: Path, folder: Path) -> None:
    ours = made.candidate(
        "engine-bucketed", 200.0, engine="onnxruntime-fp32", weather=made.WEATHER[:3]
    )
    made.put(full, "reports/bench.json", made.bench([ours], quick=True))
    _, markdown = read(full)
    assert "- **! warning** Fastest engine that passed parity: onnxruntime-fp32: 200" in markdown
    assert "A quick run gives a first impression" in markdown
    assert "A quick run" not in read(folder)[1]
    made.put(folder, "matrix.json", made.matrix(quick=True))
    _, markdown = read(folder)
    assert "- **! warning** A quick run gives a first impression" in markdown
    assert "- **! warning** Best at batch 64: MQA engine-int8 bucketed" in markdown


def test_peers_that_are_all_absent_are_named_with_their_reasons(full: Path) -> None:
    ours = made.candidate("engine-bucketed", 200.0, engine="onnxruntime-fp32")
    made.put(full, "reports/bench.json", made.bench([ours]))
    _, markdown = read(full)
    section = markdown.partition("## Peers")[2].partition("##")[0]
    assert "| peer-optimum | optimum is not installed |" in section
    assert "Samples/s" not in section


def test_packed_rows_stand_beside_buckets(full: Path) -> None:
    page, markdown = read(full)
    section = markdown.partition("## Packing")[2].partition("##")[0]
    # The interval is 3 % to both sides; 1.0 within its noise is no win.
    assert "Packing is faster beyond the noise in 1 of 2 cells" in section
    assert (
        "| tweets | all at once | 1.25x [1.21 to 1.29] | 2.00x [1.94 to 2.06] "
        "| 0.0% | 12.5% | 25.0% |"
    ) in section
    assert "| tweets | groups of 8 | 1.00x [0.97 to 1.03] |" in section
    assert "attn-export packing full" in page.text  # among the results on the page


def test_the_matrix_stands_beside_its_file_with_figure_and_bundles(folder: Path) -> None:
    written = write_reports(folder / "mqa")
    assert written == [folder / "mqa/reports/report.html", folder / "mqa/reports/report.md"]
    page, markdown = read(folder)
    assert (folder / "report.html").is_file()
    assert [str(img["src"])[:22] for img in page.of("img")] == ["data:image/png;base64,"]
    assert "![The matrix at a glance](matrix.png)" in markdown
    assert "mqa/reports/report.html" in {link["href"] for link in page.of("a")}
    charts = [svg for svg in page.of("svg") if svg.get("role") == "img"]
    assert len(charts) == 6  # three models, padded and bucketed
    # Bucketed INT8 MQA: 2 x 10 x 3 times eager MHA FP32 padded; the exercise's 1.47 beside ours.
    assert "Best at batch 64: MQA engine-int8 bucketed, 60.0x [60.0 to 60.0]" in page.text
    assert re.search(
        r"\| architecture \| MQA eager-fp32 padded .* \| 2\.00x \|.*1\.47x \|", markdown
    )
    assert "Matrix: 72 of 73 cells measured, 0 failed" in page.text


def test_a_picture_that_is_none_is_left_out(folder: Path) -> None:
    (folder / "matrix.png").write_text("<svg onload=x>")
    page, _ = read(folder)
    assert page.of("img") == []


# 10 tokens, one layer that computes one row (M 32, K 1, D 8): K and V 2·10·32·16, Q 2·32·32,
# attention 4·10·32, output 2·32·32, pooler 2·32·32, classifier 2·32·3.
FLOPS = 2 * 10 * 32 * 16 + 3 * 2 * 32 * 32 + 4 * 10 * 32 + 2 * 32 * 3


@pytest.fixture
def tiny(full: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of known dimensions, on a machine that does 400 samples' products a second."""
    bundle = Bundle.open(full)
    bundle.manifest.model["spec"] = {
        "num_kv_heads": 1,
        "vocab_size": 50,
        "hidden_size": 32,
        "num_heads": 4,
        "num_layers": 1,
        "max_length": 16,
        "num_classes": 3,
        "ffn_size": 0,
    }
    write_manifest(full, bundle.manifest)
    limits = Limits(
        name=HERE,
        tier="measured",
        flops={"fp32": 400.0 * FLOPS},
        bytes_per_s=1e12,
        launch_s=0.0,
        memory_bytes=None,
        watts=None,
        source="a test",
    )
    monkeypatch.setattr(report_limits, "known_ceilings", lambda: limits)
    return full


def ran_here(environment: dict[str, Any]) -> dict[str, Any]:
    cpu = examine().cpu
    return {**environment, "cpu": {"model": cpu.model, "cores": cpu.cores}}


def test_the_limits_of_the_machine_stand_beside_what_was_reached(tiny: Path) -> None:
    here = ran_here(made.ENVIRONMENT)
    made.put(tiny, "reports/bench.json", made.bench(environment=here))
    assert "50.0% of it" in read(tiny)[0].text  # 200 of 400 samples/s
    other = {**here, "cpu": {"model": "another", "cores": 4}}
    made.put(tiny, "reports/bench.json", made.bench(environment=other))
    assert "What this machine can do at most is not known" in read(tiny)[0].text


def test_each_engine_is_held_to_the_limits_of_its_own_device(tiny: Path) -> None:
    on_gpu = made.candidate(
        "engine-bucketed", 0.25 * 8.1e12 / FLOPS, engine="tensorrt-fp32-sm75", device="gpu"
    )
    on_cpu = made.candidate("engine-bucketed", 200.0, engine="onnxruntime-fp32")
    environment = ran_here(made.GPU_ENVIRONMENT)
    made.put(tiny, "reports/bench.json", made.bench([on_gpu, on_cpu], environment=environment))
    page, markdown = read(tiny)
    assert "Limits of T4 (datasheet)" in page.text
    assert "Limits of this machine (measured)" in page.text
    section = markdown.partition("## Limits")[2].partition("## Parity")[0]
    shares = re.findall(r"\| (\S+) \| engine: .*? \| (\S+) of it \|", section)
    # A T4's data sheet gives 8.1 TFLOP/s in FP32.
    assert shares == [("tensorrt-fp32-sm75", "25.0%"), ("onnxruntime-fp32", "50.0%")]


def test_a_gpu_without_a_known_data_sheet_is_named(tiny: Path) -> None:
    engine = made.candidate("engine-bucketed", 900.0, engine="tensorrt-fp32-sm61", device="gpu")
    environment = {**made.ENVIRONMENT, "gpu": {"before": {"name": "Tesla P4"}}}
    made.put(tiny, "reports/bench.json", made.bench([engine], environment=environment))
    page, _ = read(tiny)
    assert "The limits of Tesla P4 are not known; known are: T4, L4," in page.text
    assert "--gpu here --measure" not in page.text


def test_a_folder_without_results_and_none_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds neither a bundle nor results"):
        write_reports(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        write_reports(tmp_path / "missing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_error(full: Path) -> None:
    (full / "reports").chmod(0o500)
    with pytest.raises(HostError, match="may not be written"):
        write_reports(full)


def test_the_command_names_what_it_wrote(full: Path) -> None:
    done = CliRunner().invoke(command, [str(full), "--json"], catch_exceptions=False)
    written: Any = json.loads(done.output)["written"]
    assert [Path(path).name for path in written] == ["report.html", "report.md"]
    assert all(Path(path).is_file() for path in written)
    plain = CliRunner().invoke(command, [str(full)], catch_exceptions=False)
    assert plain.output.split() == written


def test_the_int8_engine_that_is_served_says_how_near_it_is(full: Path) -> None:
    def found(labels: float) -> dict[str, Any]:
        rest = {"cosine": 0.999, "least_cosine": 0.95, "sqnr_db": 33.0}
        return {"output": "logits", "requests": 2000, "labels": labels, **rest}

    manifest = Bundle.open(full).manifest
    manifest.graphs["fp32"].quantization = {
        "accuracy": [found(0.981)],
        "accepted": True,
        "method": "entropy",
    }
    for name, labels in (("onnxruntime", 0.982), ("openvino", 0.993)):
        record = EngineRecord(backend=name, precision="int8", graph="fp32")
        record.accuracy = {"accepted": labels > 0.99, "results": [found(labels)]}
        manifest.engines[record.name] = record
    manifest.choice = {"engine": "openvino-int8", "goal": "throughput", "reason": "faster"}
    write_manifest(full, manifest)
    page, _ = read(full)
    assert "INT8 gives FP32's label 99.3% of 2,000 requests, by openvino-int8" in page.text
    for row in (
        "graph fp32 logits yes entropy 2,000 98.1%",
        "onnxruntime-int8 logits NO entropy 2,000 98.2%",
        "openvino-int8 logits yes entropy 2,000 99.3%",
    ):
        assert row in page.text
