"""The whole matrix with real workers, on tiny models and for moments only."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from attn_export.benchmarks import matrix as module
from attn_export.benchmarks.devices import CPU
from attn_export.benchmarks.matrix import run_matrix
from attn_export.benchmarks.matrix_cell import BUCKETED, MODELS, PADDED, Place
from attn_export.benchmarks.matrix_lineup import Contestant
from attn_export.benchmarks.matrix_report import MatrixReport, require_measured
from attn_export.benchmarks.matrix_rounds import Entry, MatrixPlan, MatrixRounds, Setting
from attn_export.benchmarks.workload import save_sequences
from attn_export.bundle import Bundle
from attn_export.errors import HostError, InputError, UsageError

from .matrix_samples import tiny_bundles

MOMENT = MatrixPlan(rounds=2, samples=4, turn_s=0.0, warm_up_s=0.0)
SEQUENCES = [np.full(n, 3, np.int32) for n in (2, 4, 4, 8, 9, 16, 3, 1)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("matrix")
    tiny_bundles(directory)
    return directory


@pytest.fixture
def bundles(kept: Path, tmp_path: Path) -> dict[str, Bundle]:
    """Copies that a test may change."""
    shutil.copytree(kept, tmp_path / "matrix")
    return {name: Bundle.open(tmp_path / "matrix" / name) for name in MODELS}


@pytest.fixture(scope="module")
def report(kept: Path) -> Iterator[MatrixReport]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK", MOMENT)
        models = {name: Bundle.open(kept / name) for name in MODELS}
        yield run_matrix(models, sequences=SEQUENCES, quick=True, batches=(4, 2), threads=1)


def test_every_cell_is_measured_or_says_why_not(report: MatrixReport) -> None:
    assert len(report.cells) == 3 * 5 * 2 * 2
    for cell in report.cells:
        assert cell.failed is None
        if cell.variant in ("engine-fp16", "engine-int8"):
            assert cell.samples_per_s is None
            assert cell.note
            continue
        assert cell.samples_per_s
        assert len(cell.rounds) == 2
        assert cell.samples_per_s.low <= cell.samples_per_s.median <= cell.samples_per_s.high
        assert cell.latency_ms
        assert 0 < cell.latency_ms["p50"] <= cell.latency_ms["p90"] <= cell.latency_ms["p99"]
        assert cell.groups == 2 * {2: 2, 4: 1}[cell.batch]  # 4 samples a turn, two turns
        assert cell.peak_mib
        assert cell.peak_mib > 10
        assert cell.engine == ("onnxruntime-fp32" if cell.variant == "engine-fp32" else None)
    require_measured(report)


def test_throughput_and_latency_speak_of_the_same_turns(report: MatrixReport) -> None:
    for cell in report.cells:
        if cell.batch == 4 and cell.samples_per_s and cell.latency_ms:
            answered = [4 / rate * 1e3 for rate in cell.rounds]  # one group a round
            assert cell.latency_ms["p50"] == pytest.approx(np.median(answered))


def test_the_report_is_json_with_its_settings(report: MatrixReport) -> None:
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert MatrixReport.from_json(data) == report
    settings = data["settings"]
    assert (settings["data"], settings["sequences"]) == ("8 given sequences", 8)
    assert settings["mean_length"] == pytest.approx(47 / 8)
    assert (settings["max_length"], settings["batches"]) == (16, [2, 4])
    assert (settings["threads"], settings["rounds"], settings["quick"]) == (1, 2, True)
    assert (settings["device"], settings["eager-autocast"]) == ("cpu", "bf16")
    assert settings["models"]["mqa"]["parameters"] < settings["models"]["mha"]["parameters"]
    assert data["environment"]["packages"]["onnxruntime"]
    names = {(factor["name"], factor["batch"]) for factor in data["factors"]}
    assert names >= {("architecture", 2), ("precision", 4), ("combined", 4), ("engine", 2)}


def test_without_data_it_is_as_large_as_the_exercises(bundles: dict[str, Bundle]) -> None:
    found = module._sequences(bundles, 128, None)
    assert len(found) == 2500
    assert np.mean([len(ids) for ids in found]) == pytest.approx(29.9, abs=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "there are no batch sizes"),
        ({"batches": (4, 0)}, "batch_size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 100_000}, "threads is 100000; this process may use"),
    ],
)
def test_options_that_cannot_be(
    bundles: dict[str, Bundle], options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_matrix(bundles, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"sequence 1 \(from 0\) has 0 tokens; the models take 1 to 16"),
        ([1] * 17, r"sequence 1 \(from 0\) has 17 tokens"),
        ([1, 50], r"sequence 1 \(from 0\) has the id 50; the models take 0 to 49"),
        ([1, -2], r"has the id -2"),
    ],
)
def test_sequences_that_cannot_be(bundles: dict[str, Bundle], ids: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_matrix(bundles, sequences=[np.ones(3, np.int32), np.array(ids, np.int32)])
    with pytest.raises(InputError, match="there are no sequences"):
        run_matrix(bundles, sequences=[])


# What goes wrong in a worker


ENGINE = Contestant(model="mha", variant="engine-fp32", engine="onnxruntime-fp32")
OTHER = Contestant(model="mqa", variant="engine-fp32", engine="onnxruntime-fp32")
PLACES = [Place(batch, mode) for batch in (2, 4) for mode in (BUCKETED, PADDED)]


@pytest.fixture
def field(bundles: dict[str, Bundle], tmp_path: Path) -> Iterator[MatrixRounds]:
    save_sequences(tmp_path / "data.npz", SEQUENCES)
    setting = Setting(bundles=bundles, data=tmp_path / "data.npz", length=16, device=CPU, threads=1)
    with ExitStack() as stack:
        yield MatrixRounds(
            [ENGINE, OTHER], (2, 4), setting, MOMENT, say=lambda text: None, stack=stack
        )


def kill(entry: Entry) -> None:
    assert entry.worker
    os.kill(entry.worker.pid, signal.SIGKILL)


def test_a_worker_that_dies_in_a_round_comes_back_for_smaller_batches(field: MatrixRounds) -> None:
    field.prepare()
    field.run("round 1")
    turn = field._turn

    def die_and_turn(entry: Entry, place: Place) -> None:
        if entry is field.entries[0] and place == Place(4, BUCKETED):
            kill(entry)
        turn(entry, place)

    field._turn = die_and_turn  # type: ignore[method-assign]
    field.run("round 2")
    field.run("round 3")
    first, second = (entry.cells() for entry in field.entries)
    *smaller, bucketed, padded = first
    assert "ended by SIGKILL (is there enough memory?)" in (bucketed.failed or "")
    assert "its process died at batch 4, bucketed: " in (padded.failed or "")
    assert [len(cell.rounds) for cell in smaller] == [3, 3]
    assert [len(cell.rounds) for cell in second] == [3, 3, 3, 3]


def test_a_worker_that_dies_while_it_warms_up_comes_back_for_smaller_batches(
    field: MatrixRounds,
) -> None:
    entry, heard = field.entries[0], list[Place]()
    ask = field._ask

    def ask_and_die(entry: Entry, place: Place, do: str, limit_s: float) -> object:
        """The kernel takes the memory of whoever runs padded batches of 4."""
        if entry.contestant == ENGINE and place == Place(4, PADDED):
            kill(entry)
        heard.append(place)
        return ask(entry, place, do, limit_s)

    field._ask = ask_and_die  # type: ignore[method-assign, assignment]
    field.prepare()
    field.run("round 1")
    assert heard[: len(PLACES) + 3] == [*PLACES, *PLACES[:3]]
    *smaller, largest = entry.cells()
    assert "ended by SIGKILL" in (largest.failed or "")
    assert all(cell.samples_per_s and cell.failed is None for cell in smaller)


def test_an_engine_that_cannot_be_loaded_fails_with_its_reason(
    field: MatrixRounds, bundles: dict[str, Bundle]
) -> None:
    (bundles["mha"].directory / "model.onnx").write_bytes(b"short")
    field.prepare()
    field.run("round 1")
    first, second = (entry.cells() for entry in field.entries)
    assert all("truncated" in (cell.failed or "") for cell in first)
    assert all(cell.samples_per_s for cell in second)


def test_the_order_of_a_round_is_the_opposite_of_the_last_one(field: MatrixRounds) -> None:
    heard = []
    ask = field._ask

    def listen(entry: Entry, place: Place, do: str, limit_s: float) -> object:
        if do == "turn" and place == PLACES[0]:
            heard.append(entry.contestant.model)
        return ask(entry, place, do, limit_s)

    field.prepare()
    field._ask = listen  # type: ignore[method-assign, assignment]
    field.run("round 1")
    field.run("round 2")
    assert heard == ["mha", "mqa", "mqa", "mha"]


def test_what_failed_is_an_error_in_the_end(report: MatrixReport) -> None:
    cells = [*report.cells]
    cells[0] = type(cells[0])(model="mha", variant="v", engine=None, batch=2, mode="m", failed="x")
    with pytest.raises(HostError, match="1 of 60 cells of the matrix failed; the first: mha v"):
        require_measured(type(report)(**{**vars(report), "cells": cells}))
