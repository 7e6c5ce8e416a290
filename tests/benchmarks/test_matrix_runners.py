"""How a group of requests is cut, and that every way answers all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.benchmarks.devices import CPU
from attn_export.benchmarks.matrix_memory import ProcessMemory
from attn_export.benchmarks.matrix_runners import (
    EagerRunner,
    EngineRunner,
    Runner,
    bucket_batches,
    eager_runner,
    engine_runner,
)
from attn_export.benchmarks.workload import Workload, save_sequences
from attn_export.bundle import Bundle
from attn_export.calibration.data import read_sequences
from attn_export.engines import onnxruntime
from attn_export.engines.engine import Engine
from attn_export.engines.profiles import Profile
from attn_export.engines.session import Feeds, LoadOptions, Outputs, Session
from attn_export.errors import InputError

LENGTHS = np.array([3, 9, 4, 16, 5, 8, 1, 2])


def test_a_group_is_sorted_and_cut_by_the_edges() -> None:
    batches = bucket_batches(LENGTHS, np.array([0, 1, 2, 4, 5, 6]), (4, 8, 16))
    # 9 alone; 8 and 5 up to 8; 4, 3 and 1 up to 4: each padded to its longest.
    assert [(batch.indices.tolist(), batch.length) for batch in batches] == [
        ([1], 9),
        ([5, 4], 8),
        ([2, 0, 6], 4),
    ]


def test_a_group_of_one_bucket_is_one_batch() -> None:
    (batch,) = bucket_batches(LENGTHS, np.array([6, 7]), (4, 16))
    assert (batch.indices.tolist(), batch.length) == ([7, 6], 2)


def test_a_request_over_the_last_edge_is_refused() -> None:
    with pytest.raises(InputError, match="9 tokens; the buckets are 4, 8"):
        bucket_batches(LENGTHS, np.array([0, 1]), (4, 8))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 50, length).astype(np.int32) for length in LENGTHS]
    save_sequences(tmp_path / "data.npz", sequences)
    return tmp_path / "data.npz"


def test_eager_runs_one_batch_padded_and_one_a_bucket(bundle: Bundle, data: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    def run(feeds: Feeds) -> None:
        shapes.append(feeds["input_ids"].shape)

    workload = Workload(bundle.manifest.inputs, read_sequences(data))
    runner = EagerRunner(run, workload, (4, 8, 16), ProcessMemory())
    runner.padded(np.arange(8), 16)()
    assert shapes == [(8, 16)]
    runner.bucketed(np.arange(8))()
    assert shapes[1:] == [(2, 16), (2, 8), (4, 4)]


def answers(runner: Runner) -> dict[str, Callable[[], object]]:
    group = np.array([7, 3, 0, 5])
    return {"padded": runner.padded(group, 16), "bucketed": runner.bucketed(group)}


def test_eager_and_engine_answer_alike(bundle: Bundle, data: Path) -> None:
    with ExitStack() as stack:
        engine = answers(engine_runner(bundle, "onnxruntime-fp32", data, 1, stack))
        logits = {mode: call()["logits"] for mode, call in engine.items()}  # type: ignore[index]
        np.testing.assert_allclose(logits["padded"], logits["bucketed"], atol=1e-5)
        eager = answers(eager_runner(bundle, "eager-fp32", data, CPU, 1))["padded"]()
        np.testing.assert_allclose(eager["logits"], logits["padded"], atol=1e-4)  # type: ignore[index]


class Narrow:
    """A session that takes no more than 3 samples at a time, as a plan may."""

    profiles = (Profile(batch=(1, 2, 3), sequence=(1, 8, 16)),)

    def __init__(self, session: Session) -> None:
        self._session, self.samples = session, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        for feeds in batches:
            self.samples.append(len(feeds["input_ids"]))
            yield self._session.run(feeds)


def test_batches_that_the_profiles_do_not_take_run_in_parts(bundle: Bundle, data: Path) -> None:
    record = bundle.manifest.engines["onnxruntime-fp32"]
    session: Any = Narrow(onnxruntime.load(bundle, record, LoadOptions(threads=1)))
    workload = Workload(bundle.manifest.inputs, read_sequences(data))
    with Engine(session, record, check_ids=False) as engine:
        runner = EngineRunner(session, engine, workload, ProcessMemory())
        runner.padded(np.arange(8), 16)()
    assert session.samples == [3, 3, 2]
    assert runner.remark(3) is None
    assert runner.remark(4) == "in batches of 3: its profiles take no more"


def test_autocast_computes_in_bf16_on_a_cpu(bundle: Bundle, data: Path) -> None:
    logits = [
        answers(eager_runner(bundle, variant, data, CPU, 1))["padded"]()["logits"]  # type: ignore[index]
        for variant in ("eager-fp32", "eager-autocast")
    ]
    difference = np.abs(logits[0] - logits[1]).max()
    assert 1e-4 < difference < 0.1  # 8 bits of mantissa
