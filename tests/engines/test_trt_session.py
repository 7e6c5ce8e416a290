"""TensorRT sessions on the doubles: right answers, fair sharing, and nothing left behind."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attn_export.bundle import Bundle
from attn_export.engines.profiles import Profile
from attn_export.errors import BundleError, HostError, InputError, MissingPackage, UsageError

from .tiny_plan import PROFILES, TinyPlan, assert_equal, build_tiny

Twin = Callable[[Any, Any], dict[str, Any]]
# Least, optimal and largest shape of both profiles, and one in between.
SHAPES = [(1, 1), (2, 3), (4, 4), (2, 5), (3, 8), (4, 16), (3, 7)]


@pytest.fixture
def tiny(
    bundle: Bundle, tensorrt_double: Callable[[str], Any], tensorrt_version: str, cuda_double: Any
) -> TinyPlan:
    return build_tiny(bundle, tensorrt_double(tensorrt_version))


@pytest.fixture
def tiny_10(bundle: Bundle, tensorrt_double: Callable[[str], Any], cuda_double: Any) -> TinyPlan:
    """Only TensorRT 10, where versions make no difference."""
    return build_tiny(bundle, tensorrt_double("10.16.1.11"))


def check(outputs: dict[str, Any], feeds: dict[str, Any], twin: Twin) -> None:
    assert_equal(outputs, twin(feeds["input_ids"], feeds["attention_mask"]))


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_runs_equal_numpy_at_every_profile_s_limits_again_and_again(
    tiny: TinyPlan, twin: Twin, cuda_graphs: bool
) -> None:
    session = tiny.open(cuda_graphs=cuda_graphs, streams=1)
    for seed in range(4):
        for batch, length in SHAPES:
            feeds = tiny.feeds(batch, length, seed)
            check(session.run(feeds), feeds, twin)
    session.close()


def test_nothing_is_live_after_close_and_close_may_be_repeated(
    tiny: TinyPlan, cuda_double: Any
) -> None:
    session = tiny.open()
    for _ in range(3):
        session.run(tiny.feeds(2, 4))
    assert cuda_double.live
    session.close()
    session.close()
    assert cuda_double.live == []


def test_a_forgotten_session_frees_everything(tiny: TinyPlan, cuda_double: Any) -> None:
    session = tiny.open()
    unfinished = session.run_all([tiny.feeds(1, 2), tiny.feeds(2, 2), tiny.feeds(3, 2)])
    next(unfinished)
    del session, unfinished
    gc.collect()
    assert cuda_double.live == []


def test_calls_after_close_are_refused_and_results_stay(tiny: TinyPlan, twin: Twin) -> None:
    session = tiny.open()
    feeds = tiny.feeds(2, 4)
    outputs = session.run(feeds)
    session.close()
    check(outputs, feeds, twin)
    for call in (session.run, session.run_timed, lambda feeds: session.run_all([feeds])):
        with pytest.raises(UsageError, match="the engine is closed; load the bundle again"):
            call(feeds)
    with pytest.raises(UsageError, match="closed"):
        session.inspector_json()


@pytest.mark.parametrize("threads", [2, 10])
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_threads_share_a_session(tiny_10: TinyPlan, twin: Twin, threads: int, streams: int) -> None:
    session = tiny_10.open(streams=streams)
    start = threading.Barrier(threads)

    def work(seed: int) -> None:
        start.wait()
        for turn in range(12):
            feeds = tiny_10.feeds(*SHAPES[(seed + turn) % len(SHAPES)], seed + turn)
            check(session.run(feeds), feeds, twin)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    session.close()


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_run_all_equals_numpy_and_keeps_the_order(tiny: TinyPlan, twin: Twin, streams: int) -> None:
    session = tiny.open(streams=streams)
    batches = [tiny.feeds(*SHAPES[n % len(SHAPES)], n) for n in range(20)]
    results = list(session.run_all(batches))
    assert len(results) == 20
    for feeds, outputs in zip(batches, results, strict=True):
        check(outputs, feeds, twin)
    assert list(session.run_all([])) == []
    session.close()


@pytest.mark.parametrize("streams", [1, 2])
def test_run_all_takes_batches_only_as_it_needs_them(tiny_10: TinyPlan, streams: int) -> None:
    session = tiny_10.open(streams=streams)
    taken = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for seed in range(12):
            taken += 1
            yield tiny_10.feeds(2, 3, seed)

    results = session.run_all(source())
    assert taken == 0
    for done in range(1, 13):
        next(results)
        assert done <= taken <= done + streams
    assert next(results, None) is None
    session.close()


@pytest.mark.parametrize("streams", [1, 2])
def test_the_first_error_ends_run_all_after_the_results_before_it(
    tiny_10: TinyPlan, twin: Twin, streams: int
) -> None:
    session = tiny_10.open(streams=streams, wait_s=1)
    batches = [tiny_10.feeds(2, 3, seed) for seed in range(6)]
    batches[3] = tiny_10.feeds(1, 5)
    results = session.run_all(batches)
    for feeds in batches[:3]:
        check(next(results), feeds, twin)
    with pytest.raises(InputError, match="a batch of 1 with 5 tokens is outside every profile"):
        next(results)
    assert next(results, None) is None
    check(session.run(batches[0]), batches[0], twin)
    session.close()


def test_an_error_of_the_source_reaches_the_caller(tiny_10: TinyPlan) -> None:
    session = tiny_10.open()

    def source() -> Iterator[dict[str, Any]]:
        yield tiny_10.feeds(1, 1)
        yield tiny_10.feeds(1, 1)
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        list(session.run_all(source()))
    session.close()


def test_a_consumer_that_stops_early_leaves_the_streams_free(tiny_10: TinyPlan, twin: Twin) -> None:
    session = tiny_10.open(streams=2, wait_s=0)
    results = session.run_all([tiny_10.feeds(2, 3, seed) for seed in range(9)])
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert sum(1 for _ in session.run_all([tiny_10.feeds(2, 3)] * 4)) == 4
    session.close()


@pytest.mark.parametrize("streams", [1, 2])
def test_a_consumer_that_pauses_keeps_no_one_waiting(
    tiny_10: TinyPlan, twin: Twin, streams: int
) -> None:
    session = tiny_10.open(streams=streams, wait_s=0)
    batches = [tiny_10.feeds(2, 1 + seed % 4, seed) for seed in range(9)]
    results = session.run_all(batches)
    outputs = []
    for _ in batches:
        outputs.append(next(results))
        check(session.run(batches[0]), batches[0], twin)
    for feeds, found in zip(batches, outputs, strict=True):
        check(found, feeds, twin)
    session.close()


def test_two_consumers_may_take_turns(tiny_10: TinyPlan, twin: Twin) -> None:
    session = tiny_10.open(streams=2, wait_s=0)
    batches = [tiny_10.feeds(2, 1 + seed % 4, seed) for seed in range(9)]
    pairs = zip(session.run_all(batches), session.run_all(batches[::-1]), strict=True)
    for n, (one, other) in enumerate(pairs):
        check(one, batches[n], twin)
        check(other, batches[8 - n], twin)
    session.close()


def test_closing_while_a_consumer_pauses_keeps_the_results_in_flight(
    tiny_10: TinyPlan, twin: Twin, cuda_double: Any
) -> None:
    session = tiny_10.open(streams=2)
    batches = [tiny_10.feeds(2, 3, seed) for seed in range(9)]
    results = session.run_all(batches)
    check(next(results), batches[0], twin)
    session.close()
    assert cuda_double.live == []
    for feeds in batches[1:3]:
        check(next(results), feeds, twin)
    with pytest.raises(UsageError, match="closed"):
        next(results)


def test_a_shape_outside_every_profile_is_refused(tiny: TinyPlan, twin: Twin) -> None:
    session = tiny.open()
    for batch, length in [(5, 4), (1, 5), (4, 17)]:
        with pytest.raises(InputError, match=f"batch of {batch} with {length} tokens.*-b and -s"):
            session.run(tiny.feeds(batch, length))
    feeds = tiny.feeds(4, 16)
    check(session.run(feeds), feeds, twin)
    session.close()


def test_feeds_that_do_not_fit_are_refused_and_the_stream_stays(
    tiny_10: TinyPlan, twin: Twin
) -> None:
    session = tiny_10.open(streams=1, wait_s=0)
    good = tiny_10.feeds(2, 3)
    mask, ids = good["attention_mask"], good["input_ids"]
    for feeds, said in [
        ({"input_ids": ids}, "attention_mask is missing; the engine takes int32 of shape"),
        (
            {"attention_mask": mask},
            r"the feeds are attention_mask \[2, 3\]; the engine takes inp",
        ),
        ({**good, "input_ids": ids[0]}, r"the feeds are input_ids \[3\], attention_mask"),
        ({**good, "attention_mask": mask[:1]}, r"int32 of shape \[1, 3\]; .* \[2, 3\] in this"),
        ({**good, "attention_mask": mask.astype("int64")}, "int64 of shape .* takes int32"),
    ]:
        with pytest.raises(InputError, match=said):
            session.run(feeds)
    check(session.run(good), good, twin)
    session.close()


def test_a_failed_run_is_an_error_and_the_next_one_works(tiny: TinyPlan, twin: Twin) -> None:
    session = tiny.open(streams=1, wait_s=0)
    feeds = tiny.feeds(2, 3)
    tiny.trt.double.fail_execute = True
    with pytest.raises(HostError, match=r"failed on a batch of 2 with 3 tokens: .*unspecified lau"):
        session.run(feeds)
    with pytest.raises(HostError, match="unspecified launch"):
        list(session.run_all([feeds]))
    tiny.trt.double.fail_execute = False
    for _ in range(3):
        check(session.run(feeds), feeds, twin)
    session.close()


def test_a_timed_run_gives_device_milliseconds(tiny: TinyPlan, twin: Twin) -> None:
    session = tiny.open()
    feeds = tiny.feeds(2, 3)
    for _ in range(3):
        outputs, ms = session.run_timed(feeds)
        check(outputs, feeds, twin)
        assert 0 < ms < 10_000
    session.close()


def test_a_session_says_what_it_is(tiny: TinyPlan) -> None:
    session = tiny.open()
    assert (session.inputs, session.outputs) == (tiny.inputs, tiny.outputs)
    assert (session.buckets, session.profiles) == ((4, 16), PROFILES)
    assert session.batch_tokens == 64  # 4 sequences of 16 tokens: the profiles end below 8192
    # Activations as the double asks for them, 512 bytes for each token of both inputs; two inputs
    # of 4 x 16 int32; 4 x 3 logits, whose buffer has the least size; 4 x 16 x 8 FP32.
    assert session.device_bytes == 512 * 128 + 2 * 256 + 48 + 2048
    session.close()


def test_the_inspector_shows_the_layers_at_the_smallest_shape(tiny: TinyPlan) -> None:
    session = tiny.open()
    layers = json.loads(session.inspector_json() or "")["Layers"]
    taken = [tensor for layer in layers for tensor in layer["Inputs"]]
    assert {tuple(t["Dimensions"]) for t in taken if t["Name"] == "input_ids"} == {(1, 1)}
    session.close()


def test_a_batch_of_run_all_has_at_most_8192_tokens(tiny_10: TinyPlan, bundle: Bundle) -> None:
    large = (Profile(batch=(1, 1, 1024), sequence=(1, 16, 16)),)
    session = build_tiny(bundle, tiny_10.trt, profiles=large).open()
    assert session.batch_tokens == 8192
    session.close()


@pytest.mark.parametrize("streams", [0, -1])
def test_there_is_at_least_one_stream(tiny_10: TinyPlan, streams: int) -> None:
    with pytest.raises(UsageError, match=f"streams is {streams}; it must be at least 1"):
        tiny_10.open(streams=streams)


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "empty"])
def test_a_corrupted_plan_is_refused(tiny: TinyPlan, damage: str, cuda_double: Any) -> None:
    plan = {"truncated": tiny.plan[:-1], "other bytes": b"x" + tiny.plan[1:], "empty": b""}[damage]
    with pytest.raises(BundleError, match=r"corrupted or was built .*attn-export compile.*assert"):
        replace(tiny, plan=plan).open()
    assert cuda_double.live == []


def test_a_plan_for_another_gpu_is_refused(tiny: TinyPlan) -> None:
    tiny.trt.double.compute_capability = "8.9"
    with pytest.raises(BundleError, match=r"another TensorRT or for another GPU.*expecting"):
        tiny.open()


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "input_ids",
            {"name": "tokens"},
            "has the inputs input_ids, attention_mask.*tokens, att",
        ),
        ("hidden", {"name": "states"}, "has the outputs logits, hidden, the manifest says logits"),
        ("logits", {"dtype": "float16"}, "has logits as float32, the manifest says float16"),
        ("logits", {"shape": ("batch", 4)}, r"has logits of shape \[-1, 3\].*\['batch', 4\]"),
        ("hidden", {"shape": ("batch", 8)}, r"has hidden of shape \[-1, -1, 8\]"),
    ],
)
def test_a_plan_of_other_tensors_is_refused(
    tiny: TinyPlan, name: str, changes: dict[str, Any], said: str, cuda_double: Any
) -> None:
    with pytest.raises(BundleError, match=f"{said}.*not of one build; run 'attn-export compile"):
        tiny.with_spec(name, changes).open()
    assert cuda_double.live == []


def test_a_plan_of_other_profiles_is_refused(tiny: TinyPlan) -> None:
    with pytest.raises(BundleError, match="has 2 optimization profiles, the manifest says 1"):
        replace(tiny, profiles=PROFILES[:1]).open()
    larger = Profile(batch=(2, 3, 8), sequence=(5, 8, 16))
    with pytest.raises(BundleError, match=r"input_ids from \(2, 5\) to \(4, 16\) in profile 1.*8"):
        replace(tiny, profiles=(PROFILES[0], larger)).open()


def test_too_little_memory_at_load_says_how_much_was_asked_for(
    tiny: TinyPlan, cuda_double: Any
) -> None:
    cuda_double.total_bytes = 512 * 128 - 1
    with pytest.raises(HostError, match=r"no room for 0\.1 MiB of device memory for activations; "):
        tiny.open()
    assert cuda_double.live == []


def test_too_little_memory_for_another_stream_leaves_fewer(
    tiny: TinyPlan, twin: Twin, cuda_double: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session = tiny.open(streams=3)
    # Room for one lane more, and half of another.
    cuda_double.total_bytes = session.device_bytes * 5 // 2
    batches = [tiny.feeds(2, 3, seed) for seed in range(9)]
    for feeds, outputs in zip(batches, session.run_all(batches), strict=True):
        check(outputs, feeds, twin)
    [said] = caplog.messages
    assert said.startswith("this engine goes on with 2 of 3 streams: no room for")
    session.close()
    assert cuda_double.live == []


def test_the_lean_runtime_runs_a_plan_that_is_made_for_it(
    bundle: Bundle, tiny_10: TinyPlan, lean_double: Any, twin: Twin, cuda_double: Any
) -> None:
    tiny = build_tiny(bundle, tiny_10.trt, version_compatible="lean")
    session = tiny.open(lean=True)
    for turn in range(3):
        for batch, length in SHAPES:
            feeds = tiny.feeds(batch, length, turn)
            check(session.run(feeds), feeds, twin)
    assert session.inspector_json() is None
    session.close()
    assert cuda_double.live == []


def test_the_lean_runtime_refuses_other_plans(tiny_10: TinyPlan, lean_double: Any) -> None:
    with pytest.raises(BundleError, match="loads version compatible engines only"):
        tiny_10.open(lean=True)


def test_code_inside_a_plan_runs_only_where_it_is_allowed(
    bundle: Bundle, tiny: TinyPlan, twin: Twin
) -> None:
    embedded = build_tiny(bundle, tiny.trt, version_compatible="embedded")
    with pytest.raises(BundleError, match="engineHostCodeAllowed"):
        embedded.open()
    session = embedded.open(host_code=True)
    feeds = embedded.feeds(2, 3)
    check(session.run(feeds), feeds, twin)
    session.close()


def test_a_missing_lean_runtime_names_its_extra(
    tiny_10: TinyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(MissingPackage, match=r"tensorrt_lean is not installed; .*\[lean\]"):
        tiny_10.open(lean=True)


def test_a_missing_cuda_package_names_its_extra(
    tiny_10: TinyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingPackage, match=r"cuda.bindings is not installed; .*\[tensorrt\]"):
        tiny_10.open()


def test_a_broken_stream_is_replaced(tiny_10: TinyPlan, twin: Twin, cuda_double: Any) -> None:
    session = tiny_10.open(streams=1, wait_s=0)
    feeds = tiny_10.feeds(2, 3)
    cuda_double.sticky_error = "cudaErrorIllegalAddress"
    with pytest.raises(HostError, match=r"\(cudaErrorIllegalAddress\)"):
        session.run(feeds)
    with pytest.raises(HostError, match=r"\(cudaErrorIllegalAddress\)"):
        session.run(feeds)
    cuda_double.sticky_error = "cudaSuccess"
    check(session.run(feeds), feeds, twin)
    session.close()


AT_EXIT = """
import atexit, contextlib, importlib, sys, threading
from pathlib import Path

device = importlib.import_module("cuda.bindings.runtime").double
# Runs after what is registered later, the session's own clean-up among it.
atexit.register(lambda: print("live at exit:", device.live))

import tensorrt
from attn_export.bundle import Bundle
from attn_export.errors import UsageError
from tests.engines.tiny_plan import build_tiny

tiny = build_tiny(Bundle.open(sys.argv[1]), tensorrt)
session = tiny.open()
paused = session.run_all([tiny.feeds(2, 3, seed) for seed in range(9)])
next(paused)


def work():
    with contextlib.suppress(UsageError):
        while True:
            session.run(tiny.feeds(2, 3))


threading.Thread(target=work, daemon=True).start()
print("still open")
"""


def test_a_session_that_is_open_at_exit_frees_everything_and_says_nothing(
    bundle: Bundle,
    child_environment: Callable[..., dict[str, str]],
    tensorrt_version: str,
    root: Path,
) -> None:
    environment = child_environment(tensorrt_version)
    environment["PYTHONPATH"] += f":{root}"
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(bundle.directory)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == "still open\nlive at exit: []\n"
