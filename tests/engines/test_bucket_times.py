"""What is run to time the buckets, on a real session that is listened to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from attn_export.bundle import Bundle
from attn_export.engines.bucket_times import RUNS, time_buckets
from attn_export.engines.onnxruntime_session import OnnxRuntimeSession


class Heard(OnnxRuntimeSession):
    """Writes down the shapes of each call."""

    alone: list[tuple[int, ...]]
    together: list[list[tuple[int, ...]]]

    def run(self, feeds: Any) -> Any:
        self.alone.append(feeds["input_ids"].shape)
        return super().run(feeds)

    def run_all(self, batches: Iterable[Any]) -> Iterator[Any]:
        given = list(batches)
        self.together.append([feeds["input_ids"].shape for feeds in given])
        return super().run_all(given)


@pytest.fixture
def session(bundle: Bundle) -> Heard:
    session = Heard(
        bundle.directory / "model.onnx",
        inputs=bundle.manifest.inputs,
        outputs=bundle.manifest.outputs,
        buckets=bundle.manifest.buckets["edges"],
        threads=2,
    )
    session.alone, session.together = [], []
    return session


SHAPES = [(96, 4), (48, 8), (24, 16)]


def test_alone_each_bucket_is_run_as_one_batch(session: Heard) -> None:
    times = time_buckets(session, "fp32")
    assert [(bucket["batch"], bucket["edge"]) for bucket in times] == SHAPES
    assert session.alone == [shape for shape in SHAPES for _ in range(RUNS)]
    assert session.together == []


def test_at_a_time_each_bucket_is_run_beside_itself(session: Heard) -> None:
    times = time_buckets(session, "fp32", at_a_time=3)
    assert [(bucket["batch"], bucket["edge"]) for bucket in times] == SHAPES
    assert all(bucket["ms"] > 0 for bucket in times)
    assert session.together == [[shape] * 3 for shape in SHAPES for _ in range(RUNS)]
    assert session.alone == []
