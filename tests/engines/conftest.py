"""A tiny encoder as a real bundle, made without torch, and the same encoder in NumPy."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from attn_export.bundle import Bundle, file_record, write_manifest
from attn_export.engines import onnxruntime, onnxruntime_providers, targets
from attn_export.engines.cuda_driver import Cuda, Gpu
from attn_export.engines.session import CompileOptions
from attn_export.manifest import GraphRecord, Manifest
from attn_export.spec import TensorSpec

Array = npt.NDArray[Any]
VOCABULARY, WIDTH, CLASSES = 50, 8, 3
EDGES = (4, 8, 16)
MASK_BIAS = 1e4
REAL_SESSION = ort.InferenceSession

_rng = np.random.default_rng(7)
EMBEDDING = _rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
GAMMA = _rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
BETA = _rng.standard_normal(WIDTH).astype(np.float32)
CLASSIFIER = _rng.standard_normal((WIDTH, CLASSES)).astype(np.float32)


def _model() -> bytes:
    """Embedding, one unscaled attention head, LayerNormalization, masked mean, classifier."""
    node = helper.make_node
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["x"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Sub", ["mask", "one"], ["masked"]),
        node("Mul", ["masked", "scale"], ["row_bias"]),
        node("Unsqueeze", ["row_bias", "axis_1"], ["bias"]),
        node("Transpose", ["x"], ["keys"], perm=[0, 2, 1]),
        node("MatMul", ["x", "keys"], ["products"]),
        node("Add", ["products", "bias"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", "x"], ["context"]),
        node("Add", ["x", "context"], ["residual"]),
        node("LayerNormalization", ["residual", "gamma", "beta"], ["hidden"], axis=-1),
        node("Unsqueeze", ["mask", "axis_2"], ["mask_3d"]),
        node("Mul", ["hidden", "mask_3d"], ["real"]),
        node("ReduceSum", ["real", "axis_1"], ["total"], keepdims=0),
        node("ReduceSum", ["mask", "axis_1"], ["count"], keepdims=1),
        node("Div", ["total", "count"], ["pooled"]),
        node("MatMul", ["pooled", "classifier"], ["logits"]),
    ]
    constants = {
        "embedding": EMBEDDING,
        "gamma": GAMMA,
        "beta": BETA,
        "classifier": CLASSIFIER,
        "one": np.float32(1),
        "scale": np.float32(MASK_BIAS),
        "axis_1": np.array([1]),
        "axis_2": np.array([2]),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            value(name, TensorProto.INT32, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            value("logits", TensorProto.FLOAT, ["batch", CLASSES]),
            value("hidden", TensorProto.FLOAT, ["batch", "sequence", WIDTH]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _twin(input_ids: Array, attention_mask: Array) -> dict[str, Array]:
    x = EMBEDDING[input_ids]
    mask = attention_mask.astype(np.float32)
    scores = x @ x.transpose(0, 2, 1) + ((mask - 1) * MASK_BIAS)[:, None, :]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    residual = x + weights @ x
    centred = residual - residual.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    hidden = centred / deviation * GAMMA + BETA
    pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    return {"logits": pooled @ CLASSIFIER, "hidden": hidden}


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Answer Ctrl-C as Python does, though a shell's background jobs are started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def twin() -> Callable[[Array, Array], dict[str, Array]]:
    """The tiny encoder in NumPy: (input_ids, attention_mask) -> outputs by name."""
    return _twin


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    return _model()


@pytest.fixture
def bundle(tmp_path: Path, model_bytes: bytes) -> Bundle:
    """A bundle with one graph, FP32, and no engine yet."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(model_bytes)
    tokens = ("batch", "sequence")
    manifest = Manifest(
        model={"name": "tiny", "max_length": EDGES[-1]},
        inputs=[
            TensorSpec(name="input_ids", dtype="int32", shape=tokens, role="ids", limit=VOCABULARY),
            TensorSpec(name="attention_mask", dtype="int32", shape=tokens, role="mask"),
        ],
        outputs=[
            TensorSpec(name="logits", dtype="float32", shape=("batch", CLASSES)),
            TensorSpec(name="hidden", dtype="float32", shape=(*tokens, WIDTH)),
        ],
        buckets={"edges": list(EDGES)},
        graphs={
            "fp32": GraphRecord(
                precision="fp32", files=[file_record(directory / "model.onnx", root=directory)]
            )
        },
    )
    write_manifest(directory, manifest)
    return Bundle.open(directory)


@pytest.fixture
def directory(bundle: Bundle) -> Path:
    """The same bundle, compiled and proven."""
    record = onnxruntime.compile(bundle, "fp32", CompileOptions())
    record.parity = {"passed": True, "sha256": bundle.manifest.shipped(record).sha256}
    bundle.manifest.engines[record.name] = record
    write_manifest(bundle.directory, bundle.manifest)
    return bundle.directory


T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15109)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu], None]:
    """A T4 as the driver would show it; call the fixture to show another GPU."""

    def show(gpu: Gpu) -> None:
        found = Cuda(version="13.0", gpus=(gpu,), problem=None)
        for module in (targets, onnxruntime_providers):
            monkeypatch.setattr(module, "probe", lambda: found)

    show(T4)
    return show


class GpuSession:
    """Stands in for ONNX Runtime's session on a GPU, and computes on the CPU.

    It keeps an engine and its profile in the folder it is given, as TensorRT's provider does.

    Attributes:
        seen: the providers with their options, the disabled optimizers, and the file names that
            were in the engines' folder; one entry a session.
        lost: providers that cannot be loaded, and are left out without an error.
        engine: the name that the next engine is looked for and written under.
    """

    seen: ClassVar[list[dict[str, Any]]] = []
    lost: ClassVar[set[str]] = set()
    engine: ClassVar[str | None] = "graph_1_sm75"

    def __init__(
        self,
        path: Path,
        options: Any,
        *,
        providers: list[tuple[str, dict[str, str]]],
        disabled_optimizers: list[str],
        enable_fallback: int,
    ) -> None:
        assert enable_fallback == 0
        self.chain = [name for name, _ in providers if name not in self.lost]
        given = dict(providers)
        cache = given.get("TensorrtExecutionProvider", {}).get("trt_engine_cache_path")
        files = sorted(path.name for path in Path(cache).iterdir()) if cache else []
        self.seen.append({"providers": given, "disabled": disabled_optimizers, "files": files})
        if cache and self.engine and f"{self.engine}.engine" not in files:
            for suffix in ("engine", "profile"):
                (Path(cache) / f"{self.engine}.{suffix}").write_bytes(suffix.encode())
        self.real = REAL_SESSION(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [*self.chain, "CPUExecutionProvider"]

    def run(self, names: list[str], feeds: dict[str, Any]) -> Any:
        return self.real.run(names, feeds)


@pytest.fixture
def gpu_onnxruntime(
    gpu: Callable[[Gpu], None], monkeypatch: pytest.MonkeyPatch
) -> type[GpuSession]:
    """The GPU build of ONNX Runtime, with stand-ins for its providers and their libraries."""
    names = [f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CPU")]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", GpuSession)
    monkeypatch.setattr(GpuSession, "seen", [])
    return GpuSession
