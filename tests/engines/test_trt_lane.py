"""One lane: when graphs are captured, how many, and what becomes of a failure."""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from attn_export.bundle import Bundle
from attn_export.engines import trt_lane
from attn_export.engines.profiles import profile_of
from attn_export.engines.trt_engine import PlanEngine
from attn_export.engines.trt_lane import Lane, Shape
from attn_export.errors import HostError

from .tiny_plan import TinyPlan, assert_equal, build_tiny

Twin = Callable[[Any, Any], dict[str, Any]]


class Rig:
    """A lane and what is needed to run it."""

    def __init__(self, tiny: TinyPlan, twin: Twin, *, captures: bool = True) -> None:
        self.tiny, self.twin = tiny, twin
        self.engine: PlanEngine = tiny.engine(captures=captures)
        self.lane: Lane = tiny.lane(self.engine)

    def run(self, batch: int, length: int, seed: int = 0) -> None:
        feeds = self.tiny.feeds(batch, length, seed)
        shape = Shape(batch, length, profile_of(self.tiny.profiles, batch, length))
        self.lane.start(feeds, shape)
        for array in feeds.values():
            array[...] = 0  # they were copied
        outputs = self.lane.finish()
        feeds = self.tiny.feeds(batch, length, seed)
        assert_equal(outputs, self.twin(feeds["input_ids"], feeds["attention_mask"]))

    def close(self) -> None:
        self.lane.close()
        self.engine.close()


@pytest.fixture
def tiny(
    bundle: Bundle, tensorrt_double: Callable[[str], Any], tensorrt_version: str, cuda_double: Any
) -> TinyPlan:
    return build_tiny(bundle, tensorrt_double(tensorrt_version))


@pytest.fixture
def rig(tiny: TinyPlan, twin: Twin, cuda_double: Any) -> Iterator[Rig]:
    rig = Rig(tiny, twin)
    yield rig
    rig.close()
    assert cuda_double.live == []


def test_a_shape_is_captured_the_second_time_and_replayed_from_the_third(
    rig: Rig, cuda_double: Any
) -> None:
    for turn, (graphs, launches) in enumerate([(0, 0), (1, 0), (1, 1), (1, 2)]):
        rig.run(2, 3, seed=turn)
        assert (rig.lane.graphs, cuda_double.launches) == (graphs, launches)
    assert len(cuda_double.executables) == 1
    assert cuda_double.graphs == {}


def test_other_shapes_in_between_do_not_change_what_a_graph_gives(
    rig: Rig, cuda_double: Any
) -> None:
    shapes = [(2, 3), (4, 4), (1, 1), (4, 16), (2, 5)]
    for turn in range(5):
        for batch, length in shapes:
            rig.run(batch, length, seed=turn)
    assert rig.lane.graphs == 5
    assert cuda_double.launches == 3 * 5


def test_each_graph_has_a_context_of_its_own(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph is bound to its context's shapes: no other shape may be set on it."""
    made: list[Any] = []
    new_context = rig.engine.new_context

    def count(*arguments: Any) -> Any:
        made.append(new_context(*arguments))
        return made[-1]

    monkeypatch.setattr(rig.engine, "new_context", count)
    for turn in range(4):
        for length in (1, 2, 3):
            rig.run(2, length, seed=turn)
    assert len(made) == rig.lane.graphs == 3
    assert [tuple(context.get_tensor_shape("input_ids")) for context in made] == [
        (2, 1),
        (2, 2),
        (2, 3),
    ]


def test_the_shapes_used_least_recently_make_room(
    rig: Rig, cuda_double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_lane, "MAX_SHAPES", 2)
    for length in (1, 2):
        for turn in range(3):
            rig.run(2, length, seed=turn)
    rig.run(2, 1)
    assert (rig.lane.graphs, len(cuda_double.executables)) == (2, 2)
    rig.run(2, 3)
    assert (rig.lane.graphs, len(cuda_double.executables)) == (1, 1)
    before = cuda_double.launches
    rig.run(2, 1, seed=5)
    assert cuda_double.launches == before + 1
    rig.run(2, 2, seed=6)
    assert cuda_double.launches == before + 1


def test_without_graphs_nothing_is_captured(tiny: TinyPlan, twin: Twin, cuda_double: Any) -> None:
    rig = Rig(tiny, twin, captures=False)
    for turn in range(4):
        rig.run(2, 3, seed=turn)
    assert (rig.lane.graphs, cuda_double.launches) == (0, 0)
    rig.close()


@pytest.mark.parametrize("failing", ["Begin", "work", "End", "Instantiate"])
def test_a_capture_that_fails_turns_graphs_off_and_the_lane_goes_on(
    rig: Rig,
    cuda_double: Any,
    failing: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for turn in range(3):
        rig.run(1, 2, seed=turn)
    runtime = importlib.import_module("cuda.bindings.runtime")
    fail_capture(runtime, cuda_double, failing, monkeypatch)
    for turn in range(4):
        rig.run(2, 3, seed=turn)
        rig.run(4, 4, seed=turn)
    assert not rig.lane.broken
    [said] = caplog.messages
    assert said.startswith("this engine goes on without new CUDA graphs: CUDA failed in cuda")
    assert "operation not permitted when stream is capturing" in said
    # The graph from before is still good.
    before = cuda_double.launches
    rig.run(1, 2, seed=9)
    assert cuda_double.launches == before + 1
    assert rig.lane.graphs == 1


def fail_capture(runtime: Any, device: Any, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one step of a capture fail as CUDA would fail it."""
    refused = runtime.cudaError_t.cudaErrorStreamCaptureUnsupported
    name = {
        "Begin": "cudaStreamBeginCapture",
        "work": "cudaMemcpyAsync",
        "End": "cudaStreamEndCapture",
        "Instantiate": "cudaGraphInstantiate",
    }[failing]
    real = getattr(runtime, name)

    def fail(*arguments: Any) -> Any:
        if failing == "work" and not device.capturing(int(arguments[-1])):
            return real(*arguments)
        if failing == "End":
            runtime.cudaGraphDestroy(real(*arguments)[1])
        return refused, None

    monkeypatch.setattr(runtime, name, fail)


def test_no_context_is_made_while_another_thread_captures(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make one may synchronise the device, which would end the capture."""
    other = rig.tiny.lane(rig.engine)
    other.start(rig.tiny.feeds(2, 3), Shape(2, 3, 0))
    other.finish()
    again = threading.Thread(target=other.start, args=(rig.tiny.feeds(2, 3), Shape(2, 3, 0)))
    runtime = importlib.import_module("cuda.bindings.runtime")
    end = runtime.cudaStreamEndCapture

    def end_later(*arguments: Any) -> Any:
        again.start()
        again.join(0.1)
        return end(*arguments)

    rig.run(2, 3)
    monkeypatch.setattr(runtime, "cudaStreamEndCapture", end_later)
    rig.run(2, 3)
    monkeypatch.setattr(runtime, "cudaStreamEndCapture", end)
    again.join()
    other.finish()
    assert (rig.lane.graphs, other.graphs, rig.engine.captures) == (1, 1, True)
    other.close()


def test_a_graph_that_gets_no_context_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise HostError("no context")

    rig.run(2, 3)
    monkeypatch.setattr(rig.engine, "new_context", refuse)
    for turn in range(3):
        rig.run(2, 3, seed=turn)
    assert caplog.messages == ["this engine goes on without new CUDA graphs: no context"]


def test_a_shape_that_was_set_by_half_is_set_again(
    tiny: TinyPlan, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tiny, twin, captures=False)
    rig.run(2, 3)
    real = tiny.trt.IExecutionContext.set_input_shape

    def refuse_the_mask(context: Any, name: str, shape: Any) -> bool:
        return name != "attention_mask" and real(context, name, shape)

    with monkeypatch.context() as patch:
        patch.setattr(tiny.trt.IExecutionContext, "set_input_shape", refuse_the_mask)
        with pytest.raises(HostError, match=r"did not take attention_mask of shape \[2, 4\]"):
            rig.run(2, 4)
    rig.run(2, 3, seed=1)
    rig.close()


def test_close_frees_the_contexts_of_a_lane_that_is_still_held(
    tiny: TinyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny.engine()
    new_context = engine.new_context
    made: list[weakref.ref[Any]] = []

    def follow(*arguments: Any) -> Any:
        context = new_context(*arguments)
        made.append(weakref.ref(context))
        return context

    monkeypatch.setattr(engine, "new_context", follow)
    lane = tiny.lane(engine)
    assert all(context() is not None for context in made)
    lane.close()
    assert [context() for context in made] == [None, None]


def test_a_device_failure_breaks_the_lane(tiny: TinyPlan, twin: Twin, cuda_double: Any) -> None:
    rig = Rig(tiny, twin)
    rig.run(2, 3)
    rig.lane.start(tiny.feeds(2, 3), Shape(2, 3, 0))
    cuda_double.sticky_error = "cudaErrorIllegalAddress"
    with pytest.raises(HostError, match=r"illegal memory access.*\(cudaErrorIllegalAddress\)"):
        rig.lane.finish()
    assert rig.lane.broken
    rig.close()
    cuda_double.reset()


def test_memory_that_is_short_for_a_lane_leaves_nothing_behind(
    tiny: TinyPlan, cuda_double: Any
) -> None:
    engine = tiny.engine()
    enough = 512 * 128 + 256 + 256  # activations and the inputs, not the outputs
    cuda_double.total_bytes = enough
    with pytest.raises(HostError, match="device memory for logits"):
        tiny.lane(engine)
    assert cuda_double.live == []
