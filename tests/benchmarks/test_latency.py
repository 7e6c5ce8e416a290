"""Single batches: percentiles, the device's share, shapes that a profile takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from attn_export.benchmarks.latency import (
    LEAST_RUNS,
    WARM_UP,
    histogram,
    measure_call_latency,
    measure_latency,
)
from attn_export.engines.profiles import Profile
from attn_export.engines.session import Feeds, Outputs
from attn_export.spec import TensorSpec

IDS = TensorSpec(name="ids", dtype="int32", shape=("batch", "sequence"), role="ids", limit=9)


class Session:
    """Takes 2 ms a batch on the host."""

    inputs: tuple[TensorSpec, ...] = (IDS,)
    outputs: tuple[TensorSpec, ...] = ()
    buckets: tuple[int, ...] = (4, 8)
    batch_tokens = 32

    def __init__(self, *profiles: Profile) -> None:
        self.profiles: tuple[Profile, ...] = profiles
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: Feeds) -> Outputs:
        self.shapes.append(feeds["ids"].shape)
        time.sleep(0.002)
        return {}

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        return map(self.run, batches)

    def close(self) -> None:
        pass


class Timed(Session):
    """Its device works 0.5 ms of them."""

    def run_timed(self, feeds: Feeds) -> tuple[Outputs, float]:
        return {}, 0.5


def test_the_overhead_is_what_the_device_does_not_take() -> None:
    session = Timed()
    found = measure_latency(session, 1, 3, runs=21)
    assert (found.batch, found.length, found.runs) == (1, 3, 21)
    assert session.shapes == [(1, 3)] * (WARM_UP + 21)
    assert found.device_ms == {"p50": 0.5, "p90": 0.5, "p99": 0.5}
    assert 2 <= found.host_ms["p50"] <= found.host_ms["p90"] <= found.host_ms["p99"]
    assert found.overhead_us == pytest.approx((found.host_ms["p50"] - 0.5) * 1e3)


def test_a_session_that_cannot_tell_has_no_overhead() -> None:
    found = measure_latency(Session(), 2, 3, runs=3)
    assert (found.device_ms, found.overhead_us) == (None, None)
    assert found.host_ms["p50"] >= 2


def test_the_shape_grows_to_what_a_profile_takes() -> None:
    session = Session(Profile(batch=(2, 4, 4), sequence=(4, 8, 8)))
    found = measure_latency(session, 1, 3, runs=1)
    assert (found.batch, found.length) == (2, 4)
    assert np.all(np.array(session.shapes) == (2, 4))


def test_a_time_limit_leaves_the_least_number_of_runs() -> None:
    session = Session()
    found = measure_latency(session, 1, 3, limit_s=0.0)
    assert found.runs == LEAST_RUNS
    assert len(session.shapes) == 1 + LEAST_RUNS


def test_what_has_no_session_is_timed_by_its_call() -> None:
    shapes: list[tuple[int, ...]] = []
    found = measure_call_latency(
        lambda feeds: shapes.append(feeds["ids"].shape), [IDS], 2, 3, runs=5
    )
    assert shapes == [(2, 3)] * (WARM_UP + 5)
    assert (found.batch, found.length, found.runs, found.device_ms) == (2, 3, 5, None)


def test_the_bins_of_a_histogram_are_evenly_spaced_in_the_logarithm() -> None:
    found = histogram([1.0, 1.5, 2.5, 5.0, 7.9, 8.0], bins=3)
    assert found.edges_ms == pytest.approx([1, 2, 4, 8])
    assert found.counts == [2, 1, 3]


@pytest.mark.parametrize("values", [[0.1] * 7, [0.1, 0.3, 0.7], [1e-3, 1e3]])
def test_a_histogram_loses_no_value(values: list[float]) -> None:
    found = histogram(values)
    assert sum(found.counts) == len(values)
    assert len(found.edges_ms) == len(found.counts) + 1
    assert found.edges_ms == sorted(found.edges_ms)
