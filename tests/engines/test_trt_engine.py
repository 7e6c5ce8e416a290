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
from attn_export.errors import BundleError, HostError
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


def test_a_runtime_that_cannot_start_blames_the_driver(
    tiny: TinyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tiny.trt.Runtime, "__init__", broken)
    expected = f"TensorRT {tiny.trt.__version__} cannot start: .* nullptr; the driver may be too"
    with pytest.raises(HostError, match=expected):
        tiny.engine()


def test_activation_memory_is_what_the_largest_profile_needs(tiny: TinyPlan) -> None:
    # The double asks for 512 bytes a token of both inputs, 4 x 16 each.
    assert tiny.engine().activation_bytes == 512 * 2 * 64


def test_a_context_takes_no_device_memory_but_what_it_is_given(
    tiny: TinyPlan, cuda_double: Any
) -> None:
    engine = tiny.engine()
    stream, memory = Stream(), DeviceBuffer(engine.activation_bytes, "activations")
    before = cuda_double.free_bytes()
    contexts = [engine.new_context(0, stream, memory) for _ in range(2)]
    assert cuda_double.free_bytes() == before
    del contexts
    stream.close()
    memory.close()


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_the_size_of_that_memory_is_told_where_tensorrt_asks_for_it(
    bundle: Bundle,
    tensorrt_double: Callable[[str], Any],
    cuda_double: Any,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trt = tensorrt_double(version)
    engine = build_tiny(bundle, trt).engine()
    stream, memory = Stream(), DeviceBuffer(engine.activation_bytes, "activations")
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        trt.IExecutionContext, "set_device_memory", lambda _, *given: told.append(given)
    )
    engine.new_context(0, stream, memory)
    assert told == [(memory.address, engine.activation_bytes)]
    stream.close()
    memory.close()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FLOAT", "float32"),
        ("HALF", "float16"),
        ("INT8", "int8"),
        ("INT32", "int32"),
        ("INT64", "int64"),
        ("BOOL", "bool"),
        ("UINT8", "uint8"),
    ],
)
def test_tensorrts_types_are_known_by_name(
    bundle: Bundle,
    tensorrt_double: Callable[[str], Any],
    cuda_double: Any,
    kind: str,
    dtype: str,
) -> None:
    tiny = build_tiny(bundle, tensorrt_double("10.16.1.11"))
    plan = importlib.import_module("inside_tensorrt.plan").Plan.from_bytes(tiny.plan)
    plan.outputs[0].dtype = kind
    changed = replace(tiny, plan=plan.to_bytes())
    changed.with_spec("logits", {"dtype": dtype}).engine()
    with pytest.raises(BundleError, match=f"has logits as {dtype}, the manifest says complex64"):
        changed.with_spec("logits", {"dtype": "complex64"}).engine()


def test_a_context_annotates_no_more_than_the_names_of_layers(
    tiny: TinyPlan, cuda_double: Any
) -> None:
    engine, stream, memory = tiny.engine(), Stream(), DeviceBuffer(512 * 128, "activations")
    context = engine.new_context(0, stream, memory)
    assert context.nvtx_verbosity == tiny.trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    del context
    stream.close()
    memory.close()


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
