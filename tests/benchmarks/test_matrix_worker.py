"""A real worker of the matrix: what it answers, and what a lack of memory leaves of it."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.benchmarks.matrix_rounds import WORKER
from attn_export.benchmarks.process import Worker
from attn_export.benchmarks.workload import save_sequences
from attn_export.bundle import Bundle
from attn_export.errors import BuildFailed, BundleError

SMALL = {"batch": 4, "first": 0, "groups": 2, "seconds": 0.0}


def content(bundle: Bundle, folder: Path, **changed: Any) -> dict[str, Any]:
    save_sequences(folder / "data.npz", [np.full(n, 3, np.int32) for n in (1, 5, 16, 8, 2)])
    return {
        "do": "start",
        "bundle": str(bundle.directory),
        "variant": "engine-fp32",
        "engine": "onnxruntime-fp32",
        "data": str(folder / "data.npz"),
        "length": 16,
        "device": "cpu",
        "threads": 1,
        **changed,
    }


@pytest.mark.parametrize("engine", ["onnxruntime-fp32", None])
def test_a_worker_warms_up_and_takes_turns(
    bundle: Bundle, tmp_path: Path, engine: str | None
) -> None:
    variant = "engine-fp32" if engine else "eager-fp32"
    with Worker("mqa", module=WORKER) as worker:
        started = worker.ask(content(bundle, tmp_path, engine=engine, variant=variant))
        for mode in ("bucketed", "padded"):
            warm = worker.ask({"do": "prepare", "mode": mode, **SMALL})
            turn = worker.ask({"do": "turn", "mode": mode, **SMALL})
            assert warm["seconds"] > 0
            assert 10 < warm["peak_mib"] < 4096
            assert len(turn["ms"]) == 2
            assert min(turn["ms"]) > 0
        longer = worker.ask({"do": "turn", "mode": "padded", **SMALL, "seconds": 0.2})
    assert "peak resident size" in started["memory"]
    assert len(longer["ms"]) > 2
    assert len(longer["ms"]) % 2 == 0


def test_a_lack_of_memory_is_an_answer_and_smaller_batches_go_on(
    bundle: Bundle, tmp_path: Path
) -> None:
    with Worker("mqa", module=WORKER) as worker:
        worker.ask(content(bundle, tmp_path, engine=None, variant="eager-fp32"))
        worker.ask({"do": "prepare", "mode": "padded", **SMALL})
        status = Path(f"/proc/{worker.pid}/status").read_text(encoding="utf-8")
        size = next(line for line in status.splitlines() if line.startswith("VmSize:"))
        limit = (int(size.split()[1]) << 10) + (256 << 20)
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (limit, limit))
        huge = worker.ask({"do": "prepare", "mode": "padded", **SMALL, "batch": 200_000})
        assert set(huge) == {"out_of_memory"}
        assert worker.ask({"do": "turn", "mode": "padded", **SMALL})["ms"]


def test_an_error_of_ours_comes_back_as_itself(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.directory / "model.onnx").write_bytes(b"short")
    with Worker("mqa", module=WORKER) as worker, pytest.raises(BundleError, match=r"mqa: .*trunc"):
        worker.ask(content(bundle, tmp_path))


def test_another_error_ends_it_with_its_traceback(bundle: Bundle, tmp_path: Path) -> None:
    with Worker("mqa", module=WORKER) as worker:
        worker.ask(content(bundle, tmp_path))
        with pytest.raises(BuildFailed, match=r"(?s)exit code 1.*AttributeError.*'surprise'"):
            worker.ask({"do": "surprise"})
        assert worker.died
