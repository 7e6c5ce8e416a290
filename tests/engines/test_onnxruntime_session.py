"""The ONNX Runtime session: right answers, in order, few in flight, and clear failures."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from attn_export.bundle import Bundle
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.onnxruntime import open_graph
from attn_export.engines.onnxruntime_session import OnnxRuntimeSession
from attn_export.errors import BundleError, HostError, InputError, UsageError

Twin = Callable[[Any, Any], dict[str, Any]]


def session_of(bundle: Bundle, threads: int | None = None) -> OnnxRuntimeSession:
    return open_graph(
        bundle.directory / "model.onnx",
        inputs=bundle.manifest.inputs,
        outputs=bundle.manifest.outputs,
        buckets=bundle.manifest.buckets["edges"],
        threads=threads,
    )


def batches_of(bundle: Bundle, count: int) -> list[dict[str, Any]]:
    """Batches that differ in shape and in content."""
    batches = [seeded_feeds(bundle.manifest.inputs, 1 + n % 3, 1 + n % 16) for n in range(count)]
    for n, feeds in enumerate(batches):
        feeds["input_ids"] = (feeds["input_ids"] + n) % 50
    return batches


@pytest.fixture(params=[1, 2])
def session(bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[OnnxRuntimeSession]:
    """A session of the tiny encoder, with one thread and with two."""
    session = session_of(bundle, request.param)
    yield session
    session.close()


def assert_equal_to_twin(outputs: dict[str, Any], feeds: dict[str, Any], twin: Twin) -> None:
    expected = twin(feeds["input_ids"], feeds["attention_mask"])
    assert list(outputs) == ["logits", "hidden"]
    for name, array in outputs.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, rtol=1e-5)


def test_run_equals_numpy(session: OnnxRuntimeSession, bundle: Bundle, twin: Twin) -> None:
    for feeds in batches_of(bundle, 6):
        feeds["attention_mask"][0, 1:] = 0
        assert_equal_to_twin(session.run(feeds), feeds, twin)


def test_run_all_equals_numpy_and_keeps_the_order(
    session: OnnxRuntimeSession, bundle: Bundle, twin: Twin
) -> None:
    batches = batches_of(bundle, 40)
    results = list(session.run_all(batches))
    assert len(results) == 40
    for feeds, outputs in zip(batches, results, strict=True):
        assert_equal_to_twin(outputs, feeds, twin)


def test_for_latency_batches_run_one_after_the_other(bundle: Bundle, twin: Twin) -> None:
    taken: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for feeds in batches_of(bundle, 6):
            taken.append(len(taken))
            yield feeds

    path, manifest = bundle.directory / "model.onnx", bundle.manifest
    session = open_graph(
        path,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        buckets=manifest.buckets["edges"],
        threads=2,
        goal="latency",
    )
    assert (session.streams, session.threads) == (1, 2)
    before = threading.active_count()
    for done, outputs in enumerate(session.run_all(source()), start=1):
        assert len(taken) == done
        assert_equal_to_twin(outputs, batches_of(bundle, 6)[done - 1], twin)
    assert done == 6
    assert threading.active_count() == before
    session.close()


def test_run_all_of_nothing_is_nothing(session: OnnxRuntimeSession) -> None:
    assert list(session.run_all([])) == []


def test_run_all_takes_batches_only_as_it_needs_them(
    session: OnnxRuntimeSession, bundle: Bundle
) -> None:
    taken = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for feeds in batches_of(bundle, 30):
            taken += 1
            yield feeds

    results = session.run_all(source())
    assert taken == 0
    for done in range(1, 31):
        next(results)
        assert done <= taken <= done + 2 * session.threads
    assert next(results, None) is None


def test_the_first_error_ends_run_all_and_the_session_still_works(
    session: OnnxRuntimeSession, bundle: Bundle, twin: Twin
) -> None:
    batches = batches_of(bundle, 12)
    batches[5]["input_ids"] = np.full_like(batches[5]["input_ids"], 99)
    results = session.run_all(batches)
    for feeds in batches[:5]:
        assert_equal_to_twin(next(results), feeds, twin)
    with pytest.raises(InputError, match=r"input_ids \[3, 6\].*out of data bounds"):
        next(results)
    assert next(results, None) is None
    assert_equal_to_twin(session.run(batches[0]), batches[0], twin)


def test_an_error_of_the_source_reaches_the_caller(
    session: OnnxRuntimeSession, bundle: Bundle
) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from batches_of(bundle, 3)
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        list(session.run_all(source()))


def test_closing_stops_runs_and_leaves_results_and_no_threads(bundle: Bundle, twin: Twin) -> None:
    before = threading.active_count()
    session = session_of(bundle, 2)
    batches = batches_of(bundle, 20)
    outputs = session.run(batches[7])
    unfinished = session.run_all(batches)
    first = next(unfinished)
    session.close()
    session.close()
    gc.collect()
    assert_equal_to_twin(outputs, batches[7], twin)
    assert_equal_to_twin(first, batches[0], twin)
    with pytest.raises(UsageError, match="the engine is closed; load the bundle again"):
        list(unfinished)
    with pytest.raises(UsageError, match="closed"):
        session.run(batches[0])
    with pytest.raises(UsageError, match="closed"):
        session.run_all(batches)
    assert threading.active_count() == before


def test_a_session_with_one_thread_stops_when_closed(bundle: Bundle) -> None:
    session = session_of(bundle, 1)
    unfinished = session.run_all(batches_of(bundle, 2))
    next(unfinished)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        next(unfinished)


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads_outside_this_host_are_refused(bundle: Bundle, threads: int) -> None:
    with pytest.raises(UsageError, match=rf"threads is {threads}; .*give 1 to \d+"):
        session_of(bundle, threads)


def test_a_graph_replaced_after_loading_is_never_mixed_in(bundle: Bundle) -> None:
    session = session_of(bundle)
    path = bundle.directory / "model.onnx"
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.replace(path)
    with pytest.raises(BundleError, match="was replaced since it was loaded"):
        session.run(batches_of(bundle, 1)[0])


def test_a_missing_graph_is_refused_at_once(bundle: Bundle) -> None:
    (bundle.directory / "model.onnx").unlink()
    with pytest.raises(BundleError, match="is missing"):
        session_of(bundle)


def test_neither_runs_nor_failures_print_anything(
    session: OnnxRuntimeSession, bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    good = batches_of(bundle, 1)[0]
    session.run(good)
    with pytest.raises(InputError, match="out of data bounds"):
        session.run({**good, "input_ids": np.full_like(good["input_ids"], 99)})
    assert capfd.readouterr() == ("", "")


def test_a_failure_inside_the_graph_is_not_blamed_on_the_input(
    session: OnnxRuntimeSession, bundle: Bundle
) -> None:
    feeds = batches_of(bundle, 1)[0]
    with pytest.raises(HostError, match=r"attention_mask \[1, 3\].*node"):
        session.run({**feeds, "attention_mask": np.ones((1, 3), np.int32), "input_ids": ids(5)})


def ids(length: int) -> Any:
    return np.ones((1, length), np.int32)


@pytest.mark.parametrize("disabled", [True, False])
def test_the_slow_fusion_is_off(
    disabled: bool, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would fuse this very graph, and is told not to."""
    optimized = tmp_path / "optimized.onnx"

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.optimized_model_filepath = str(optimized)

    path = bundle.directory / "model.onnx"
    if disabled:
        monkeypatch.setattr(ort, "SessionOptions", Options)
        session_of(bundle, 1).run(batches_of(bundle, 1)[0])
    else:
        options = Options()
        options.log_severity_level = 4
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ops = {node.op_type for node in onnx.load(optimized).graph.node}
    assert ("SkipLayerNormalization" in ops) is not disabled
    assert ("LayerNormalization" in ops) is disabled
