"""Who takes part beside which engines; nothing is started here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from attn_export.benchmarks import lineup as module
from attn_export.benchmarks.candidates import Settings
from attn_export.benchmarks.devices import TorchCuda
from attn_export.benchmarks.lineup import Lineup
from attn_export.bundle import Bundle
from attn_export.engines import cuda_driver
from attn_export.engines.cuda_driver import Cuda
from attn_export.errors import HostError, UsageError
from attn_export.manifest import EngineRecord

COMMON = Settings(candidate="", engine=None, threads=1, batch_size=2)
EAGER = ["eager-mha-padded", "eager-padded", "eager-dynamic"]
GPU_EAGER = [
    *(f"{name}@gpu" for name in EAGER),
    "eager-half-padded@gpu",
    "eager-autocast-padded@gpu",
    "eager-compiled-padded@gpu",
]


class Field:
    """Takes the place of Rounds: notes who is started, refuses some."""

    eager = None
    data = "sequences.npz"

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.entries: list[Any] = []

    def start(self, settings: Settings, *, optional: bool = False) -> str | None:
        if settings.name in self.refused:
            return "no GPU"
        self.entries.append(SimpleNamespace(settings=settings, is_eager=settings.engine is None))
        return None

    @property
    def names(self) -> list[str]:
        return [entry.settings.name for entry in self.entries]


def engine(backend: str, variant: str = "") -> dict[str, EngineRecord]:
    record = EngineRecord(backend=backend, precision="fp32", graph="fp32", variant=variant)
    return {record.name: record}


def line_up(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    engines: dict[str, EngineRecord],
    torch: TorchCuda,
    *refused: str,
    peers: tuple[str, ...] = (),
) -> tuple[Lineup, Field]:
    monkeypatch.setattr(module, "probe_torch", lambda interpreter: torch)
    field = Field(*refused)
    found = Lineup(bundle, field, COMMON)  # type: ignore[arg-type]
    found.start(engines, named=False, peers=peers)
    return found, field


HAS_GPU = TorchCuda(available=True)
NO_GPU = TorchCuda(available=False, problem="torch 2.9 is built without CUDA")
CPU_ENGINE, GPU_ENGINE = engine("onnxruntime"), engine("tensorrt", "sm75-10.16.1")


def of(name: str) -> list[str]:
    return [f"{kind}:{name}" for kind in ("engine-padded", "engine-bucketed", "hand-sorted")]


def test_each_engine_has_eager_on_its_own_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, field = line_up(bundle, monkeypatch, {**CPU_ENGINE, **GPU_ENGINE}, HAS_GPU)
    assert field.names == [
        *EAGER,
        *GPU_EAGER,
        *of("onnxruntime-fp32"),
        *of("tensorrt-fp32-sm75-10.16.1"),
    ]
    devices = {entry.settings.engine: entry.settings.eager_device for entry in field.entries[9:]}
    assert devices == {"onnxruntime-fp32": "cpu", "tensorrt-fp32-sm75-10.16.1": "gpu"}
    (note,) = found.notes()
    assert "from NumPy arrays on the host" in note


def test_without_cuda_in_torch_a_loud_note_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, field = line_up(bundle, monkeypatch, GPU_ENGINE, NO_GPU)
    assert field.names == [*EAGER, *of("tensorrt-fp32-sm75-10.16.1")]
    assert {entry.settings.eager_device for entry in field.entries} == {"cpu"}
    (note,) = found.notes()
    assert note.startswith("EAGER ON THE CPU: torch 2.9 is built without CUDA; the ratios")


def test_without_any_eager_there_is_no_comparison_to_warn_of(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = line_up(bundle, monkeypatch, GPU_ENGINE, NO_GPU, *EAGER)
    assert found.notes() == []


def test_an_engine_that_cannot_run_brings_no_eager_for_its_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tensorrt-fp32-sm75-10.16.1"
    engines = {**CPU_ENGINE, **GPU_ENGINE}
    found, field = line_up(bundle, monkeypatch, engines, HAS_GPU, f"engine-padded:{name}")
    assert field.names == [*EAGER, *of("onnxruntime-fp32")]
    assert found.skipped == {name: "no GPU"}


def test_a_later_candidate_without_room_is_left_out_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = "hand-sorted:tensorrt-fp32-sm75-10.16.1"
    found, field = line_up(bundle, monkeypatch, GPU_ENGINE, HAS_GPU, last)
    assert field.names == [*GPU_EAGER, *of("tensorrt-fp32-sm75-10.16.1")[:2]]
    assert found.skipped == {last: "no GPU"}


def test_no_engine_at_all_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    first = "engine-padded:onnxruntime-fp32"
    with pytest.raises(HostError, match=r"no engine of the bundle: onnxruntime-fp32: no GPU"):
        line_up(bundle, monkeypatch, CPU_ENGINE, NO_GPU, first)


def test_the_mha_is_not_compared_with_itself(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.manifest.model["name"] = "mha"
    found, field = line_up(bundle, monkeypatch, GPU_ENGINE, HAS_GPU)
    assert "eager-mha-padded@gpu" not in field.names
    assert found.skipped == {
        "eager-mha-padded@gpu": "the model is that MHA itself: see eager-padded"
    }


def test_peers_stand_between_eager_and_the_engines(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, field = line_up(
        bundle, monkeypatch, CPU_ENGINE, NO_GPU, peers=("ort-plain", "openvino-int8")
    )
    assert field.names == [
        *EAGER,
        "peer-ort-plain",
        "peer-openvino-int8",
        *of("onnxruntime-fp32"),
    ]
    peer = field.entries[3].settings
    assert (peer.engine, peer.eager_device, peer.sequences) == (None, "cpu", "sequences.npz")
    assert found.notes() == []


def test_a_peer_for_gpus_says_what_is_missing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cuda_driver, "probe", lambda: Cuda(version=None, gpus=(), problem="no driver")
    )
    found, field = line_up(bundle, monkeypatch, CPU_ENGINE, NO_GPU, peers=("ort-cuda",))
    assert found.skipped == {"peer-ort-cuda@gpu": "it needs a GPU, and no driver"}
    assert field.names == [*EAGER, *of("onnxruntime-fp32")]


def test_torch_as_a_peer_runs_where_eager_does(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Cuda(version="12.8", gpus=(), problem=None)
    monkeypatch.setattr(cuda_driver, "probe", lambda: cuda)
    peers = ("torch-sdpa", "torch-bf16")
    _, field = line_up(bundle, monkeypatch, GPU_ENGINE, HAS_GPU, peers=peers)
    assert field.names[6:8] == ["peer-torch-sdpa@gpu", "peer-torch-bf16"]


def test_a_users_attention_is_not_written_anew(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.manifest.model["builtin"] = False
    found, _ = line_up(bundle, monkeypatch, CPU_ENGINE, NO_GPU, peers=("torch-sdpa",))
    assert "only a built-in model" in found.skipped["peer-torch-sdpa"]


def test_a_peer_that_is_none_is_refused_before_anything_starts(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = Field()
    found = Lineup(bundle, field, COMMON)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown peer 'tvm'"):
        found.start(CPU_ENGINE, named=False, peers=("tvm",))
    assert field.names == []
