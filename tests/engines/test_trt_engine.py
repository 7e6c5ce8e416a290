"""A plan that loads half: too little memory, profiles that cannot be shared, no context."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from attn_export.bundle import Bundle
from attn_export.engines.cuda_runtime import DeviceBuffer, Stream
from attn_export.engines.trt_engine import sized
from attn_export.errors import HostError
from attn_export.spec import TensorSpec

from .tiny_plan import TinyPlan, assert_equal, build_tiny


@pytest.fixture
def tiny(
    bundle: Bundle, tensorrt_double: Callable[[str], Any], tensorrt_version: str, cuda_double: Any
) -> TinyPlan:
    return build_tiny(bundle, tensorrt_double(tensorrt_version))


def test_a_tensor_s_shape_at_one_batch_size_and_length() -> None:
    spec = TensorSpec(name="hidden", dtype="float32", shape=("batch", "sequence", 8))
    assert sized(spec, 3, 5) == (3, 5, 8)


def test_a_plan_that_does_not_fit_is_the_host_s_fault(
    tiny: TinyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = importlib.import_module("inside_tensorrt.runtime").Runtime

    def refuse(*arguments: Any) -> None:
        raise ValueError("Requested amount of GPU memory (9 bytes) could not be allocated.")

    monkeypatch.setattr(runtime, "_check", refuse)
    plan = tiny.plan + bytes(3 * 2**20 - len(tiny.plan))
    monkeypatch.setattr(importlib.import_module("inside_tensorrt.plan").Plan, "from_bytes", bytes)
    with pytest.raises(HostError, match=r"no room on the GPU for an engine of 3 MiB; free memory"):
        replace(tiny, plan=plan).open()


def test_activation_memory_is_what_the_largest_profile_needs(tiny: TinyPlan) -> None:
    # The double asks for 512 bytes a token of both inputs, 4 x 16 each.
    assert tiny.engine().activation_bytes == 512 * 2 * 64


def test_a_refused_profile_is_named_with_tensorrt_s_reason(
    tiny: TinyPlan, cuda_double: Any
) -> None:
    stream, memory = Stream(), DeviceBuffer(512 * 128, "activations")
    with pytest.raises(HostError, match=r"did not take optimization profile 2: .*outside \[0, 2\)"):
        tiny.engine().new_context(2, stream, memory)
    stream.close()
    memory.close()


def test_a_plan_of_8_6_without_profile_sharing_runs_on_one_stream_without_graphs(
    bundle: Bundle,
    tensorrt_double: Callable[[str], Any],
    cuda_double: Any,
    twin: Callable[[Any, Any], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """8.6 allows one context per profile, unless the builder was told otherwise."""
    tiny = build_tiny(bundle, tensorrt_double("8.6.1"))
    plan = importlib.import_module("inside_tensorrt.plan").Plan.from_bytes(tiny.plan)
    plan.profile_sharing = False
    session = replace(tiny, plan=plan.to_bytes()).open(streams=2)
    batches = [tiny.feeds(2, 3, seed) for seed in range(6)]
    results = [*map(session.run, batches), *session.run_all(batches)]
    for feeds, outputs in zip(batches * 2, results, strict=True):
        assert_equal(outputs, twin(feeds["input_ids"], feeds["attention_mask"]))
    assert cuda_double.launches == 0
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "this engine goes on without new CUDA graphs",
        "this engine goes on with 1 of 2 streams",
    ]
    assert all("has been chosen by another" in message for message in caplog.messages)
    session.close()
    assert cuda_double.live == []
