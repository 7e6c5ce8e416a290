"""The OpenVINO session: right answers, in order, few in flight, and clear failures."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest

from attn_export.bundle import Bundle
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.openvino_session import OpenVinoSession
from attn_export.engines.session import Goal
from attn_export.errors import BundleError, HostError, InputError, UsageError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
Twin = Callable[[Any, Any], dict[str, Any]]
WAYS: list[tuple[int, Goal]] = [(1, "throughput"), (2, "throughput"), (2, "latency")]


def session_of(bundle: Bundle, threads: int = 1, goal: Goal = "throughput") -> OpenVinoSession:
    return OpenVinoSession(
        bundle.directory / "model.onnx",
        inputs=bundle.manifest.inputs,
        outputs=bundle.manifest.outputs,
        buckets=bundle.manifest.buckets["edges"],
        threads=threads,
        computes="f32",
        goal=goal,
    )


def batches_of(bundle: Bundle, count: int) -> list[dict[str, Any]]:
    """Batches that differ in shape, in content and in their masks."""
    batches = [seeded_feeds(bundle.manifest.inputs, 1 + n % 3, 1 + n % 16) for n in range(count)]
    for n, feeds in enumerate(batches):
        feeds["input_ids"] = (feeds["input_ids"] + n) % 50
        feeds["attention_mask"][0, 1 + n % 4 :] = 0
    return batches


@pytest.fixture(params=WAYS, ids=["one thread", "two streams", "latency"])
def session(bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[OpenVinoSession]:
    session = session_of(bundle, *request.param)
    yield session
    session.close()


def assert_equal_to_twin(outputs: dict[str, Any], feeds: dict[str, Any], twin: Twin) -> None:
    expected = twin(feeds["input_ids"], feeds["attention_mask"])
    assert list(outputs) == ["logits", "hidden"]
    for name, array in outputs.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, rtol=1e-5)


def test_run_equals_numpy(session: OpenVinoSession, bundle: Bundle, twin: Twin) -> None:
    for feeds in batches_of(bundle, 6):
        assert_equal_to_twin(session.run(feeds), feeds, twin)


def test_run_all_equals_numpy_and_keeps_the_order(
    session: OpenVinoSession, bundle: Bundle, twin: Twin
) -> None:
    batches = batches_of(bundle, 40)
    results = list(session.run_all(batches))
    for feeds, outputs in zip(batches, results, strict=True):
        assert_equal_to_twin(outputs, feeds, twin)


def test_results_stay_when_later_batches_run(
    session: OpenVinoSession, bundle: Bundle, twin: Twin
) -> None:
    first, second = batches_of(bundle, 6)[4:]
    outputs = session.run(first)
    session.run(second)
    list(session.run_all([second] * 6))
    assert_equal_to_twin(outputs, first, twin)


def test_threads_may_share_a_session(session: OpenVinoSession, bundle: Bundle, twin: Twin) -> None:
    """Each of 8 threads gets its own answers, also while others use the same infer requests."""
    batches = batches_of(bundle, 48)

    def work(thread: int) -> None:
        mine = batches[thread::8]
        for _ in range(5):
            for feeds, outputs in zip(mine, session.run_all(mine), strict=True):
                assert_equal_to_twin(outputs, feeds, twin)
            for feeds in mine:
                assert_equal_to_twin(session.run(feeds), feeds, twin)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize(("way", "most"), list(zip(WAYS, (1, 4, 1), strict=True)))
def test_few_batches_are_in_flight(bundle: Bundle, way: tuple[int, Goal], most: int) -> None:
    taken = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for feeds in batches_of(bundle, 20):
            taken += 1
            yield feeds

    results = session_of(bundle, *way).run_all(source())
    assert taken == 0
    ahead = []
    for done in range(1, 21):
        next(results)
        ahead.append(taken - done + 1)
    assert next(results, None) is None
    assert max(ahead) == most


def test_run_all_of_nothing_is_nothing(session: OpenVinoSession) -> None:
    assert list(session.run_all([])) == []


@pytest.mark.parametrize(("goal", "streams"), [("throughput", 2), ("latency", 1)])
def test_the_goal_decides_on_the_streams(bundle: Bundle, goal: Goal, streams: int) -> None:
    session = session_of(bundle, 2, goal)
    assert (session.streams, session.threads) == (streams, 2)
    found = session.settings()
    assert (found["streams"], found["threads"]) == (streams, 2)


# Failures


@pytest.mark.parametrize("wrong", [50, 10**8, -1, -(2**31)])
def test_ids_outside_the_vocabulary_are_refused(
    session: OpenVinoSession, bundle: Bundle, wrong: int
) -> None:
    """OpenVINO would read zeros for them, or count them from the end."""
    feeds = batches_of(bundle, 3)[2]
    feeds["input_ids"][1, 2] = wrong
    with pytest.raises(InputError, match=rf"id {wrong} at position \[1, 2\].*\[0, 50\)"):
        session.run(feeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": np.ones((1, 3), np.int32)}, r"attention_mask has shape \[1, 3\]"),
        ({"attention_mask": np.ones((2, 4), np.int32)}, r"attention_mask has shape \[2, 4\]"),
        ({"input_ids": np.ones(4, np.int32)}, r"input_ids has shape \[4\]"),
        ({"input_ids": np.ones((1, 4), np.float32)}, "input_ids has dtype float32"),
        ({"other": np.ones((1, 4), np.int32)}, "unknown inputs: other"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(
    session: OpenVinoSession, bundle: Bundle, change: dict[str, Any], message: str
) -> None:
    """OpenVINO itself would take most of them, and give some numbers."""
    feeds = seeded_feeds(bundle.manifest.inputs, 1, 4)
    with pytest.raises(InputError, match=message):
        session.run({**feeds, **change})


def test_a_feed_left_out_is_not_the_one_of_the_batch_before(
    session: OpenVinoSession, bundle: Bundle
) -> None:
    feeds = seeded_feeds(bundle.manifest.inputs, 1, 4)
    session.run(feeds)
    with pytest.raises(InputError, match="missing inputs: attention_mask"):
        session.run({"input_ids": feeds["input_ids"]})


def test_a_sequence_over_the_last_bucket_is_refused(
    session: OpenVinoSession, bundle: Bundle
) -> None:
    with pytest.raises(InputError, match="17 tokens; the buckets are 4, 8, 16"):
        session.run(seeded_feeds(bundle.manifest.inputs, 1, 17))


def test_the_first_error_ends_run_all_and_the_session_still_works(
    session: OpenVinoSession, bundle: Bundle, twin: Twin
) -> None:
    batches = batches_of(bundle, 12)
    batches[5]["input_ids"] = np.full_like(batches[5]["input_ids"], 99)
    results = session.run_all(batches)
    with pytest.raises(InputError, match="id 99"):
        list(results)
    assert next(results, None) is None
    assert_equal_to_twin(session.run(batches[0]), batches[0], twin)
    assert len(list(session.run_all(batches[6:]))) == 6


def test_an_error_of_the_source_reaches_the_caller(
    session: OpenVinoSession, bundle: Bundle
) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from batches_of(bundle, 3)
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        list(session.run_all(source()))


def test_a_failure_inside_the_graph_is_not_blamed_on_the_input(bundle: Bundle) -> None:
    """A Reshape to two columns holds for an even number of ids alone."""
    path = bundle.directory / "model.onnx"
    model = onnx.load(path)
    shape = onnx.numpy_helper.from_array(np.array([-1, 2]), "two")
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["input_ids", "two"], ["pairs"]))
    model.graph.node.append(onnx.helper.make_node("Cast", ["pairs"], ["floats"], to=1))
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["floats"], ["sum"], keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("sum", 1, []))
    onnx.save(model, path)
    bundle.manifest.outputs[:] = [
        bundle.manifest.outputs[0].__class__(name="sum", dtype="float32", shape=())
    ]
    session = session_of(bundle)
    feeds = seeded_feeds(bundle.manifest.inputs, 1, 4)
    assert session.run(feeds)["sum"] == feeds["input_ids"].sum()
    with pytest.raises(HostError, match=r"OpenVINO failed on the feeds input_ids \[1, 3\]") as e:
        session.run(seeded_feeds(bundle.manifest.inputs, 1, 3))
    assert "\n" not in str(e.value)


def test_closing_stops_runs_and_leaves_results_and_no_threads(bundle: Bundle, twin: Twin) -> None:
    before = threading.active_count()
    session = session_of(bundle, 2)
    batches = batches_of(bundle, 20)
    outputs = session.run(batches[7])
    unfinished = session.run_all(batches)
    first = next(unfinished)
    session.close()
    session.close()
    assert_equal_to_twin(outputs, batches[7], twin)
    assert_equal_to_twin(first, batches[0], twin)
    with pytest.raises(UsageError, match="the engine is closed; load the bundle again"):
        list(unfinished)
    with pytest.raises(UsageError, match="closed"):
        session.run(batches[0])
    with pytest.raises(UsageError, match="closed"):
        session.run_all(batches)
    assert threading.active_count() == before


def test_results_that_nobody_takes_do_no_harm(
    session: OpenVinoSession, bundle: Bundle, twin: Twin
) -> None:
    batches = batches_of(bundle, 20)
    for _ in range(3):
        left = session.run_all(batches)
        next(left)
        del left
    assert_equal_to_twin(session.run(batches[3]), batches[3], twin)


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
    session: OpenVinoSession, bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    session.run(batches_of(bundle, 1)[0])
    with pytest.raises(InputError):
        session.run({})
    assert capfd.readouterr() == ("", "")
