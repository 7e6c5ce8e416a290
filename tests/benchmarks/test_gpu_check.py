"""The GPU check: its command, and its whole path on doubles of TensorRT and CUDA."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks import gpu_check
from attn_export.benchmarks.gpu_check_gates import GATES
from attn_export.benchmarks.gpu_check_outcome import Outcome
from attn_export.benchmarks.gpu_check_report import write_results
from attn_export.benchmarks.gpu_check_runner import run_tasks
from attn_export.benchmarks.gpu_check_tasks import STEPS, Plan, all_tasks

ROOT = Path(__file__).resolve().parent.parent.parent
TENSORRT = "10.16.1.11"
ChildEnvironment = Callable[..., dict[str, str]]
# What a rehearsal on a CPU cannot show: it has no faster precision, and its builds take no time.
TIMES = {"fp16_time_ratio", "cache_speedup", "overhead_us", "padded_vs_eager_fp16"}
TIMES |= {"padded_vs_eager_fp32", "bucketed_vs_padded"}


@pytest.fixture
def on_doubles(
    child_environment: ChildEnvironment,
    surface: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Children of this process find the doubles, and a T4."""
    for name, value in child_environment(TENSORRT).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ATTN_EXPORT_DOUBLE_LEAN_SURFACE", str(surface(f"lean-{TENSORRT}")))


def small_plan(work: Path) -> Plan:
    return Plan(torch_python=sys.executable, engine_python=sys.executable, work=work, small=True)


def assert_sound(outcomes: list[Outcome]) -> None:
    """Every task ran, and all that is no matter of time holds."""
    found = {outcome.name: outcome for outcome in outcomes}
    for name, outcome in found.items():
        if outcome.step == "opinion":
            assert "pip install polygraphy" in str(outcome.skipped)
        elif outcome.step == "layers":
            # The double of TensorRT runs no kernels, and so has no times to report.
            assert "reported the time of no layer" in str(outcome.error)
        else:
            assert outcome.is_finished, f"{name}: {outcome.error or outcome.skipped}"
        wrong = [gate for gate, v in outcome.values.items() if not GATES[gate].holds(v)]
        assert set(wrong) <= TIMES, f"{name}: {outcome.values}"
        assert {*outcome.values, *dict(outcome.missing())} == set(outcome.gates)


# The whole path


@pytest.mark.usefixtures("on_doubles")
def test_one_bundle_goes_from_pytorch_to_a_proven_engine(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "work")
    steps = ("export", "compile", "parity", "overhead", "layers", "opinion")
    wanted = ["host engine", "host torch", *(f"{step} mqa-fold" for step in steps)]
    tasks = [task for task in all_tasks(plan) if task.name in wanted]
    outcomes = run_tasks(plan, tasks, lambda text: None)
    assert sorted(outcome.name for outcome in outcomes) == sorted(wanted)
    assert_sound(outcomes)
    found = {outcome.name: outcome for outcome in outcomes}
    assert found["compile mqa-fold"].values["fp16_gemm_share"] == 1
    # Golden: 3 at length 1, 5 at each of two edges, 1 above the first; 2 a profile besides.
    assert {row["cases"] for row in found["parity mqa-fold"].numbers["engines"]} == {18}
    write_results(tmp_path / "out", plan, outcomes)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "Tesla T4, compute capability 7.5, 15109 MiB; TensorRT 10.16.1.11" in page
    assert "A rehearsal with models of two layers" in page
    assert "- layers mqa-fold: HostError: TensorRT reported the time of no layer" in page
    assert "- the step bench was not asked for" in page


@pytest.mark.slow
@pytest.mark.usefixtures("on_doubles")
def test_the_whole_check_runs_and_goes_on_where_it_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = ["--small", "--work", str(work), "--out", str(out)]
    assert gpu_check.main(arguments) == 1  # no times that hold, no layer times
    report = json.loads((out / "report.json").read_text())
    outcomes = [
        Outcome(**{key: value for key, value in task.items() if key != "state"})
        for task in report["tasks"]
    ]
    assert {outcome.step for outcome in outcomes} == set(STEPS)
    assert_sound(outcomes)
    assert report["in_order"] is False
    capfd.readouterr()
    assert gpu_check.main(arguments) == 1
    log = capfd.readouterr().err
    repeated = {line.split("] ")[1].split(":")[0] for line in log.splitlines() if "running" in line}
    not_done = {outcome.name for outcome in outcomes if not outcome.is_finished}
    assert repeated == {"host engine", "host torch", *not_done}


def test_a_stopped_check_leaves_no_task_behind(tmp_path: Path) -> None:
    hangs = tmp_path / "python"
    hangs.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    hangs.chmod(0o755)
    options = ["--engine-python", str(hangs), "--work", str(tmp_path)]
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check"), *options]
    check = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        check.terminate()
        assert check.wait(20) == 128 + signal.SIGTERM
    finally:
        check.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# The command


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert gpu_check.main(arguments) == 0
    return capsys.readouterr().out


def test_a_dry_run_shows_commands_and_gates_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    options = ["--torch-python", "/opt/torch/python", "--engine-python", "/opt/trt/python"]
    text = run(["--dry-run", "--work", str(work), *options], capsys)
    assert "/opt/torch/python" in text
    assert "/opt/trt/python -m attn_export.benchmarks.gpu_check_overhead" in text
    shown = {gate.meaning for gate in GATES.values() if f"gate: {gate.meaning}: {gate}" in text}
    assert shown == {gate.meaning for gate in GATES.values()}
    assert not work.exists()


def test_the_list_names_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(["--list"], capsys)
    assert [line.split()[0] for line in text.splitlines()] == list(STEPS)


def test_some_steps_come_with_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(["--dry-run", "--steps", "export"], capsys)
    steps = {line.split()[0] for line in text.splitlines() if line and line[0] != " "}
    assert steps == {"host", "export"}


def test_an_unknown_step_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--steps", "parity,overclock"])
    assert "unknown step 'overclock'; there are: host, export" in capsys.readouterr().err


def test_without_an_engine_interpreter_nothing_is_claimed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--steps", "compile,layers", "--engine-python", str(tmp_path / "none")]
    assert gpu_check.main([*arguments, "--work", str(tmp_path / "work"), "--out", str(out)]) == 1
    page = (out / "report.md").read_text()
    assert "The GPU and TensorRT of this machine are not known" in page
    assert "- host engine: the interpreter cannot be started" in page
    assert "- compile mqa-fold: it needs 'host engine', which is not done (fail)" in page
    assert "## compile" not in page


@pytest.mark.parametrize("module", ["host", "parity", "runtime", "memory", "overhead", "opinion"])
def test_an_engine_interpreter_needs_neither_torch_nor_the_command_lines_packages(
    fresh_python: Any, module: str
) -> None:
    code = (
        f"import sys, attn_export.benchmarks.gpu_check_{module};"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'click', 'rich'} & set(sys.modules)))"
    )
    assert fresh_python("-c", code).stdout == "[]\n"


def test_compiling_needs_them_neither(fresh_python: Any, root: Path) -> None:
    code = (
        "import runpy, sys; runpy.run_path('scripts/gpu_check_build.py');"
        "import attn_export.engines.tensorrt, attn_export.benchmarks.report_file;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'click', 'rich'} & set(sys.modules)))"
    )
    assert fresh_python("-c", code, cwd=root).stdout == "[]\n"
