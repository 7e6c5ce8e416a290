"""What else one would use: other ways from the same model to the same answers.

Each peer is optional and runs the way its own documentation recommends, in a process of its own
like every candidate, on the same work: all requests sorted by length, batches padded to their own
longest, from NumPy arrays to NumPy arrays, the best of several batch sizes. What cannot run is
listed with the reason. The table holds names alone: reading it imports no tool.
"""

from __future__ import annotations

from dataclasses import dataclass

from attn_export.errors import UsageError

from .devices import CPU, GPU, Device

ALL = "all"
PREFIX = "peer-"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One other tool, and how it is run.

    Args:
        maker: ``module:function``; makes of a :class:`.peer_making.PeerTask` the ways to run it.
        precision: what most of it computes in; its preset tolerance judges the answers.
        how: the recommended way, in a few words.
        docs: where that stands.
        packages: the distributions whose versions matter.
        devices: where it can run.
        builtin: why it runs the built-in models alone, or ``""``.
    """

    maker: str
    precision: str
    how: str
    docs: str
    packages: tuple[str, ...]
    devices: tuple[Device, ...] = (CPU,)
    builtin: str = ""


_HERE = "attn_export.benchmarks."
_TORCH, _ONNX, _OPENVINO = _HERE + "peer_torch:", _HERE + "peer_onnx:", _HERE + "peer_openvino:"
_TORCH_DOCS = "https://docs.pytorch.org/docs/stable/"
_ORT_DOCS = "https://onnxruntime.ai/docs/"
_OPENVINO_DOCS = "https://docs.openvino.ai/2025/openvino-workflow/"
_PYTHON_ORT = ("onnxruntime", "torch")

PEERS: dict[str, Peer] = {
    "torch-sdpa": Peer(
        maker=_TORCH + "sdpa",
        precision="fp32",
        how="eager, attention by scaled_dot_product_attention",
        docs=_TORCH_DOCS + "generated/torch.nn.functional.scaled_dot_product_attention.html",
        packages=("torch",),
        devices=(CPU, GPU),
        builtin="only a built-in model's attention can be written anew",
    ),
    "torch-compile": Peer(
        maker=_TORCH + "compiled",
        precision="fp32",
        how="torch.compile, default mode, dynamic shapes",
        docs=_TORCH_DOCS + "generated/torch.compile.html",
        packages=("torch",),
        devices=(CPU, GPU),
    ),
    "torch-compile-max-autotune": Peer(
        maker=_TORCH + "max_autotuned",
        precision="fp32",
        how='torch.compile(mode="max-autotune"), frozen weights, dynamic shapes',
        docs="https://docs.pytorch.org/tutorials/unstable/max_autotune_on_CPU_tutorial.html",
        packages=("torch",),
        devices=(CPU, GPU),
    ),
    "torch-bf16": Peer(
        maker=_TORCH + "bf16",
        precision="bf16",
        how="eager under torch.autocast",
        docs=_TORCH_DOCS + "amp.html",
        packages=("torch",),
    ),
    "torch-int8": Peer(
        maker=_TORCH + "int8",
        precision="int8",
        how="torchao Int8DynamicActivationInt8WeightConfig, torch.compile, frozen weights",
        docs="https://docs.pytorch.org/ao/stable/quick_start.html",
        packages=("torch", "torchao"),
    ),
    "ort-plain": Peer(
        maker=_ONNX + "plain",
        precision="fp32",
        how="torch.onnx.export of the eager module, default InferenceSession",
        docs=_ORT_DOCS + "performance/tune-performance/threading.html",
        packages=_PYTHON_ORT,
    ),
    "ort-optimizer": Peer(
        maker=_ONNX + "optimized",
        precision="fp32",
        how="torch.onnx.export, onnxruntime.transformers.optimizer (bert)",
        docs=_ORT_DOCS + "performance/transformers-optimization.html",
        packages=_PYTHON_ORT,
    ),
    "ort-dynamic-int8": Peer(
        maker=_ONNX + "dynamic_int8",
        precision="int8",
        how="quant_pre_process, quantize_dynamic: S8 weights per channel",
        docs=_ORT_DOCS + "performance/model-optimizations/quantization.html",
        packages=("onnxruntime",),
    ),
    "optimum": Peer(
        maker=_ONNX + "optimum",
        precision="fp32",
        how="torch.onnx.export, ORTModelForCustomTasks",
        docs="https://huggingface.co/docs/optimum-onnx/onnxruntime/usage_guides/models",
        packages=("optimum-onnx", "optimum", "onnxruntime", "torch"),
    ),
    "openvino-fp32": Peer(
        maker=_OPENVINO + "fp32",
        precision="fp32",
        how="THROUGHPUT hint, AsyncInferQueue, precision hint f32",
        docs=_OPENVINO_DOCS
        + "running-inference/optimize-inference/high-level-performance-hints.html",
        packages=("openvino",),
    ),
    "openvino-bf16": Peer(
        maker=_OPENVINO + "bf16",
        precision="bf16",
        how="THROUGHPUT hint, AsyncInferQueue, precision hint bf16",
        docs=_OPENVINO_DOCS + "running-inference/inference-devices-and-modes/cpu-device.html",
        packages=("openvino",),
    ),
    "openvino-int8": Peer(
        maker=_OPENVINO + "int8",
        precision="int8",
        how="nncf.quantize (TRANSFORMER, 300 sequences), THROUGHPUT hint, AsyncInferQueue",
        docs=_OPENVINO_DOCS
        + "model-optimization-guide/quantizing-models-post-training/basic-quantization-flow.html",
        packages=("openvino", "nncf"),
    ),
    "ort-cuda": Peer(
        maker=_ONNX + "cuda",
        precision="fp32",
        how="CUDAExecutionProvider with its defaults",
        docs=_ORT_DOCS + "execution-providers/CUDA-ExecutionProvider.html",
        packages=("onnxruntime-gpu",),
        devices=(GPU,),
    ),
    "torch-tensorrt": Peer(
        maker=_HERE + "peer_torch_tensorrt:compiled",
        precision="fp32",
        how='torch_tensorrt.compile(ir="dynamo") with dynamic shapes',
        docs="https://docs.pytorch.org/TensorRT/user_guide/compilation/dynamic_shapes.html",
        packages=("torch-tensorrt", "torch"),
        devices=(GPU,),
    ),
}


def peer_names(given: str) -> tuple[str, ...]:
    """Read the spelling of the command line: ``"all"``, or names between commas.

    Raises:
        UsageError: if a name is unknown or stands twice.
    """
    if given.strip() == ALL:
        return tuple(PEERS)
    names = [name.strip() for name in given.split(",")]
    for name in names:
        check_peer(name)
    if len(set(names)) != len(names):
        raise UsageError(f"a peer stands twice in {given!r}; give each one once")
    return tuple(names)


def check_peer(name: str) -> Peer:
    """The peer of a name.

    Raises:
        UsageError: if there is none.
    """
    if name not in PEERS:
        raise UsageError(
            f"unknown peer {name!r}; allowed: {ALL} alone, or some of {', '.join(PEERS)}"
        )
    return PEERS[name]
