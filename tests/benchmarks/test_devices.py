"""Which device eager runs on is decided from facts alone."""

from __future__ import annotations

import pytest

from attn_export.benchmarks.devices import (
    CPU,
    GPU,
    Device,
    TorchCuda,
    device_of,
    eager_device,
    judge_torch,
)
from attn_export.benchmarks.interpreter import this_interpreter
from attn_export.benchmarks.torch_probe import probe_torch
from attn_export.manifest import EngineRecord


@pytest.mark.parametrize(
    ("backend", "variant", "device"),
    [
        ("onnxruntime", "", CPU),
        ("onnxruntime", "cuda", GPU),
        ("onnxruntime", "tensorrt", GPU),
        ("tensorrt", "sm75-10.16.1", GPU),
        ("a-plug-in", "anything", CPU),
    ],
)
def test_the_device_of_an_engine(backend: str, variant: str, device: Device) -> None:
    record = EngineRecord(backend=backend, precision="fp16", graph="fp16", variant=variant)
    assert device_of(record) == device


@pytest.mark.parametrize(
    ("engine", "available", "expected"),
    [(CPU, True, CPU), (CPU, False, CPU), (GPU, True, GPU), (GPU, False, CPU)],
)
def test_eager_runs_beside_its_engine_where_torch_can(
    engine: Device, available: bool, expected: Device
) -> None:
    assert eager_device(engine, TorchCuda(available=available)) == expected


def test_a_torch_without_a_gpu_says_why() -> None:
    assert judge_torch(version="2.9", cuda="12.8", available=True) == TorchCuda(available=True)
    built = judge_torch(version="2.9+cpu", cuda=None, available=False)
    assert built.problem == "torch 2.9+cpu is built without CUDA"
    alone = judge_torch(version="2.9", cuda="12.8", available=False)
    assert alone.problem == "torch 2.9 (CUDA 12.8) finds no GPU"


def test_the_torch_here_is_asked_in_a_process_of_its_own() -> None:
    import torch

    found = probe_torch(this_interpreter())
    assert found.available == torch.cuda.is_available()
    assert found.available or torch.__version__ in found.problem
