"""A real worker: what it answers, and what is said when it fails or dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.benchmarks.candidates import Settings
from attn_export.benchmarks.interpreter import Interpreter, other_interpreter
from attn_export.benchmarks.process import Worker
from attn_export.benchmarks.workload import save_sequences
from attn_export.bundle import Bundle, write_manifest
from attn_export.errors import BuildFailed, BundleError, HostError


def orders(bundle: Bundle, folder: Path, **changed: Any) -> dict[str, Any]:
    save_sequences(folder / "data.npz", [np.full(n, 3, np.int32) for n in (1, 5, 16, 8)])
    settings = Settings(
        candidate="engine-bucketed", engine="onnxruntime-fp32", threads=1, batch_size=2
    )
    return {
        "settings": asdict(settings),
        "bundle": str(bundle.directory),
        "data": str(folder / "data.npz"),
        "first_length": 5,
        **changed,
    }


def test_a_worker_answers_from_its_start_to_its_end(bundle: Bundle, tmp_path: Path) -> None:
    with Worker("engine") as worker:
        started = worker.start(orders(bundle, tmp_path))
        warm = worker.ask({"do": "warm_up", "samples": 4, "limit_s": 0.1})
        prepared = worker.ask({"do": "prepare", "samples": 4})
        turn = worker.ask({"do": "turn", "repeats": 2})
        stopped = worker.ask({"do": "stop"})
    assert 0 < started["cold_start_s"] < started["cold_start_with_imports_s"] < 60
    assert warm["samples_per_s"] > 0
    assert (prepared["samples"], prepared["tokens"]) == (4, 30)
    assert turn["seconds"] > 0
    assert 10 < stopped["peak_mib"] < 4096


def test_an_error_of_ours_comes_back_as_itself(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.directory / "model.onnx").write_bytes(b"short")
    with Worker("engine") as worker, pytest.raises(BundleError, match=r"engine: .*truncated"):
        worker.start(orders(bundle, tmp_path))


def test_another_error_shows_the_end_of_its_traceback(bundle: Bundle, tmp_path: Path) -> None:
    with (
        Worker("engine") as worker,
        pytest.raises(BuildFailed, match=r"(?s)exit code 1.*TypeError.*surprise"),
    ):
        worker.start(orders(bundle, tmp_path, settings={"surprise": 1}))


def test_a_killed_worker_says_by_what(bundle: Bundle, tmp_path: Path) -> None:
    with Worker("engine") as worker:
        worker.start(orders(bundle, tmp_path))
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(HostError, match=r"ended by SIGKILL \(is there enough memory\?\)"):
            worker.ask({"do": "turn", "repeats": 2})


def test_leaving_early_ends_the_process(bundle: Bundle, tmp_path: Path) -> None:
    worker = Worker("engine")
    worker.start(orders(bundle, tmp_path))
    with pytest.raises(KeyboardInterrupt), worker:
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_what_a_users_model_prints_does_not_disturb_the_answers(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "noisy.py").write_text(
        "import os\nprint('{}')\nos.write(1, b'more\\n')\ndef make():\n    raise ValueError('no')\n"
    )
    content = orders(bundle, tmp_path)
    content["settings"] |= {"candidate": "eager-padded", "engine": None}
    manifest = bundle.manifest
    manifest.model["source"]["model"] = f"{tmp_path / 'noisy.py'}:make"
    manifest.model["source"]["options"] = {}
    write_manifest(bundle.directory, manifest)
    with Worker("eager") as worker, pytest.raises(BuildFailed, match=r"eager: .*ValueError: no"):
        worker.start(content)


def script(path: Path, text: str) -> Interpreter:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    folder = path.with_suffix(".packages")
    folder.mkdir()
    return other_interpreter(str(path), folder)


def test_a_worker_that_hangs_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    python = script(tmp_path / "python", "echo loading the moon >&2\nexec sleep 600")
    with Worker("engine", python) as worker:
        time.sleep(0.3)
        with pytest.raises(HostError, match=r"no answer to 'turn' within 0 s(?s:.*)the moon"):
            worker.ask({"do": "turn"}, 0.3)
        assert worker.died
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)


def test_a_worker_runs_in_another_interpreter(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    python = script(tmp_path / "python", f'echo "$@" > {log}\nexec {sys.executable} "$@"')
    with Worker("engine", python) as worker:
        started = worker.start(orders(bundle, tmp_path))
    assert log.read_text() == "-m attn_export.benchmarks.worker\n"
    assert set(started["versions"]) == {"python", "numpy", "onnxruntime"}


LIGHT = """
import sys
from contextlib import ExitStack
import attn_export.benchmarks.worker
from attn_export.benchmarks.candidates import ENGINE, Settings, make
from attn_export.bundle import Bundle
from attn_export.engines.feeds import seeded_feeds

bundle = Bundle.open(sys.argv[1])
for name in ENGINE:
    settings = Settings(candidate=name, engine="onnxruntime-fp32", threads=1, batch_size=2)
    with ExitStack() as stack:
        made = make(bundle, settings, stack)
        made.candidate.first(seeded_feeds(made.inputs, 1, 3))
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_an_engine_candidate_needs_few_packages(bundle: Bundle, fresh_python: Any) -> None:
    found = set(fresh_python("-c", LIGHT, str(bundle.directory)).stdout.split())
    assert {"attn_export", "numpy", "onnxruntime"} <= found
    assert sorted(found & {"click", "rich", "torch", "onnx", "tokenizers"}) == []
