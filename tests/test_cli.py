"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from attn_export import build as builder
from attn_export.cli import main
from attn_export.errors import BuildFailed, GateFailed, HostError, Inconclusive

ROOT = Path(__file__).resolve().parent.parent
DIMENSIONS = [
    "--hidden-size",
    "32",
    "--heads",
    "4",
    "--layers",
    "2",
    "--vocab-size",
    "60",
    "--positions",
    "16",
]
SMALL = [*DIMENSIONS, "--buckets", "2"]
# Every installed backend would be measured.
ONE_BACKEND = ["--backend", "onnxruntime"]
ODD = """
import torch

class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(16, 8)

    def forward(self, input_ids, attention_mask):
        keep = attention_mask.to(torch.int16).to(torch.float32)
        return {"out": self.table(input_ids) * keep[..., None]}

def make():
    return Odd().eval()
"""


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "bundle"
    result = call("build", "--fp16", "mqa", *SMALL, *ONE_BACKEND, "-o", directory)
    assert result.exit_code == 0, result.output
    return directory


def test_build_says_its_steps_on_stderr_and_the_verdict_on_stdout(tmp_path: Path) -> None:
    result = call("build", "--fp16", "gqa", *SMALL, *ONE_BACKEND, "-o", tmp_path / "b")
    assert result.exit_code == 0
    assert "[PASS] onnxruntime-fp16" in result.stdout
    assert "exporting to ONNX" in result.stderr
    assert "exporting to ONNX" not in result.stdout


def test_json_leaves_stdout_to_the_result(tmp_path: Path, made: Path) -> None:
    for arguments in (
        ["build", "mqa", *SMALL, *ONE_BACKEND, "-o", str(tmp_path / "b"), "--json"],
        ["parity", str(made), "--json"],
        ["compile", str(tmp_path / "b"), "--backend", "onnxruntime", "--json"],
        ["inspect", str(made), "--json"],
        ["inspect", str(made / "model.onnx"), "--json"],
        ["export", "mqa", *DIMENSIONS, "-o", str(tmp_path / "m.onnx"), "--json"],
        ["doctor", "--json"],
    ):
        result = call(*arguments)
        assert result.exit_code == 0, result.output
        assert isinstance(json.loads(result.stdout), dict)


def test_inspect_shows_a_bundle_and_a_graph(made: Path) -> None:
    shown = call("inspect", made).stdout
    for words in (
        "model mqa",
        "buckets ",
        "graph fp16: model.fp16.onnx",
        "FP32 islands (mask)",
        "engine onnxruntime-fp32: parity passed",
        "roles: ",
    ):
        assert words in shown
    graph = call("inspect", made / "model.fp16.onnx").stdout
    assert "opset 17" in graph
    assert "Softmax 2" in graph


@pytest.mark.parametrize("version", ["tensorrt-8.6", "tensorrt-10", "tensorrt-11"])
def test_inspect_says_that_a_bundle_fits_a_tensorrt(made: Path, version: str) -> None:
    result = call("inspect", made, "--for", version)
    assert result.exit_code == 0, result.output
    assert f"fits TensorRT {version.removeprefix('tensorrt-')}" in result.stdout.splitlines()[-1]
    data = json.loads(call("inspect", made, "--for", version, "--json").stdout)
    assert data["for"] == version
    assert set(data["graphs"]) == {"model.onnx", "model.fp16.onnx"}


def test_inspect_says_what_keeps_a_graph_from_a_tensorrt(made: Path, tmp_path: Path) -> None:
    graph = onnx.load(made / "model.onnx")
    graph.opset_import[0].version = 20
    graph.graph.node[-1].op_type = "Unique"
    path = tmp_path / "newer.onnx"
    onnx.save(graph, path)
    result = call("inspect", path, "--for", "tensorrt-8.6")
    assert result.exit_code == 1
    assert "newer.onnx: error: the graph is at opset 20" in result.stdout
    assert f"Error: {path} does not fit TensorRT 8.6: 2 errors" in result.stderr.replace("\n", " ")
    shown = call("inspect", path, "--for", "tensorrt-11", "--json")
    assert shown.exit_code == 1
    errors = [
        f for f in json.loads(shown.stdout)["graphs"]["newer.onnx"] if f["severity"] == "error"
    ]
    assert [(error["op"], error["node"]) for error in errors] == [("Unique", "classifier.gemm")]
    altered = shutil.copytree(made, tmp_path / "altered")
    shutil.copy(path, altered / "model.onnx")
    assert call("inspect", altered, "--for", "tensorrt-11").exit_code == 4
    assert call("inspect", path, "--for", "tensorrt-9").exit_code == 2


def test_export_notes_what_tensorrt_would_not_fuse(tmp_path: Path) -> None:
    small = call("export", "mqa", *DIMENSIONS, "-o", tmp_path / "m.onnx")
    assert small.exit_code == 0
    assert "note: TensorRT 8.6: warning: MatMul 'layers.0.attention.scores' and 1 more" in (
        small.stdout
    )
    sized = [*DIMENSIONS, "--hidden-size", "64", "--json"]
    fit = call("export", "mqa", *sized, "-o", tmp_path / "m.onnx")
    assert json.loads(fit.stdout)["notes"] == []


def test_a_bundle_records_who_cannot_read_its_graphs(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    directory = tmp_path / "bundle"
    model = f"{tmp_path / 'odd.py'}:make"
    result = call("build", model, "--max-length", "8", *ONE_BACKEND, "-o", directory)
    assert result.exit_code == 0, result.output
    graph = json.loads((directory / "manifest.json").read_text())["graphs"]["fp32"]
    assert set(graph["lint"]) == {"tensorrt-8.6", "tensorrt-10", "tensorrt-11"}
    assert "1 tensors are INT16" in graph["lint"]["tensorrt-8.6"][0]


def test_parity_exit_codes(made: Path, tmp_path: Path) -> None:
    assert call("parity", made).exit_code == 0
    tight = call("parity", made, "--engine", "onnxruntime-fp16", "--atol", "0", "--rtol", "0")
    assert tight.exit_code == 1
    assert "Error: parity failed: onnxruntime-fp16" in tight.stderr
    assert call("parity", made).exit_code == 0  # and the verdict in the bundle is good again
    loose = call("parity", made, "--engine", "onnxruntime-fp16", "--atol", "0.1")
    assert loose.exit_code == 2
    altered = shutil.copytree(made, tmp_path / "altered")
    content = bytearray((altered / "model.onnx").read_bytes())
    content[-1] ^= 1
    (altered / "model.onnx").write_bytes(content)
    refused = call("parity", altered)
    assert refused.exit_code == 4
    assert "was altered" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["build", "nonsense"], 2, "unknown model 'nonsense'"),
        (["build", "mha", "--heads", "5"], 2, "5 heads do not divide the hidden size 768"),
        (["build", "mqa", "--kv-heads", "3"], 2, "use the model gqa"),
        (["build", "absent.py:make"], 2, "no file absent.py"),
        (["build", "--fp16-io"], 2, "need --fp16"),
        (["build", "--minShapes", "x:1x1"], 2, "-b/--batch-size and -s/--seq-len"),
        (["build", "mqa", "--max-length", "4096"], 2, "over the model's maximum"),
        (["build", "--data", "absent.jsonl", *SMALL], 2, "absent.jsonl"),
        (["parity", "absent"], 4, "is not a bundle"),
        (["inspect", "absent"], 4, "is not a bundle"),
        (["bench", "absent"], 4, "is not a bundle"),
        (["compile", "absent"], 4, "is not a bundle"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_mistakes_are_one_line_and_a_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateFailed("x"), 1),
        (HostError("x"), 3),
        (BuildFailed("x"), 4),
        (Inconclusive("x"), 5),
        (RuntimeError("x"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_exit_code(
    made: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(builder, "compile_bundle", fail)
    result = call("compile", made)
    assert result.exit_code == code
    assert ("Traceback" in result.stderr) == (code == 70)


def test_a_reader_that_stops_early_is_no_defect(made: Path, root: Path) -> None:
    command = f"{sys.executable} -m attn_export inspect {made} | head -n 1"
    result = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
    )
    assert result.stdout.startswith("model mqa")
    assert result.stderr == ""


def test_a_graph_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph at all")
    result = call("inspect", tmp_path / "text.onnx")
    assert result.exit_code == 4
    assert "cannot be read as an ONNX graph" in result.stderr


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_build_that_is_stopped_leaves_the_old_bundle_and_can_be_repeated(
    made: Path, tmp_path: Path, root: Path, how: signal.Signals, code: int
) -> None:
    directory = shutil.copytree(made, tmp_path / "bundle")
    before = (directory / "manifest.json").read_bytes()
    command = [sys.executable, "-m", "attn_export", "build", "mqa", *SMALL, "-o", str(directory)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "exporting" in line:
                break
        time.sleep(0.2)
        process.send_signal(how)
        process.communicate()
    assert process.returncode == code
    if how != signal.SIGKILL:
        assert not list(directory.glob(".*"))
    assert (directory / "manifest.json").read_bytes() == before
    assert call("parity", directory).exit_code == 0
    assert call("build", "mqa", *SMALL, *ONE_BACKEND, "-o", directory).exit_code == 0
    assert not list(directory.glob(".*"))


def test_a_measurement_that_is_ended_takes_its_processes_along(made: Path, root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "attn_export", "bench", str(made), "--self-test"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
    ) as process:
        assert process.stderr is not None
        assert "run 1 of 20" in process.stderr.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(workers := children.read_text().split()) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_full_disk_is_the_machines_fault_and_leaves_nothing(tmp_path: Path, root: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("it takes root and unshare to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    build = [sys.executable, "-m", "attn_export", "build", "mqa", *SMALL, "-o", f"{disk}/bundle"]
    script = (
        'mount -t tmpfs -o size=64k tmpfs "$0" || exit 99; "$@"; code=$?; ls -A "$0"; exit $code'
    )
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(disk), *build],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
    )
    if result.returncode == 99:
        pytest.skip(f"cannot mount here: {result.stderr.strip()}")
    assert result.returncode == 3, result.stderr
    assert "has no space left" in result.stderr
    assert result.stdout == ""


def test_a_read_only_bundle_loads_and_proves(
    made: Path, tmp_path: Path, fresh_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if os.geteuid() == 0 and shutil.which("unshare") is None:
        pytest.skip("root ignores permissions and there is no unshare to mount read-only")
    directory = shutil.copytree(made, tmp_path / "bundle")
    command = [sys.executable, "-m", "attn_export", "parity", str(directory)]
    if os.geteuid() == 0:
        script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", script, str(directory), *command]
    else:
        for path in [directory, *directory.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")},
    )
    if "mount" in result.stderr and result.returncode not in (0, 1):
        pytest.skip(f"cannot mount read-only here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    assert "[PASS]" in result.stdout
    assert "not recorded in the bundle" in result.stderr


def test_a_build_that_cannot_be_stopped_does_not_cost_the_exit_code(tmp_path: Path) -> None:
    code = """
import sys, threading, time
from attn_export import build
from attn_export.cli import main
from attn_export.engines.build_thread import run_stoppable

def compile_bundle(*args, **kwargs):
    run_stoppable(lambda: time.sleep(600), what="building", stop=None, timeout_s=0.1, say=print)

build.compile_bundle = compile_bundle
main(["compile", "anything"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    assert "goes on in the background until this process ends" in done.stderr
