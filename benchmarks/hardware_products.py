"""One library's products or copies on one CPU, in a process of its own.

``python -m attn_export.benchmarks.hardware_products WORK CPU`` (a key of :data:`WORK`) says
``ready`` after a warm-up. Then it reads one number of seconds a line, works that long and answers
with the FLOP/s (of a copy: bytes/s) that it reached.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from attn_export.engines.openvino_library import library

# The rows of a batch that stays in a core's L2 cache, and the hidden size of the reference encoder.
ROWS, SIZE = 384, 768
WEIGHTS = 12  # 28 MB in FP32: no core's cache holds them all, as in a model's layers
WARM_UP_S = 0.3
LEAST_COPY_BYTES, ALL_COPIES_BYTES = 32 << 20, 512 << 20  # far beyond the caches, all together
_WEIGHT_SCALE = 5 * SIZE**-0.5 / 127  # five standard deviations fit
_FLOPS = 2.0 * ROWS * SIZE * SIZE * WEIGHTS
_ONE_THREAD = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # the process is bound to its CPU already
}
Floats = npt.NDArray[np.float32]
Step = tuple[Callable[[], Any], float]  # what to call, and its FLOPs or bytes


def _matrices() -> tuple[Floats, list[Floats]]:
    """[ROWS, SIZE] and weights that keep its variance, so that a chain of products stays finite."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((WEIGHTS, SIZE, SIZE), dtype=np.float32) * SIZE**-0.5
    return rng.standard_normal((ROWS, SIZE), dtype=np.float32), list(weights)


def numpy_fp32() -> Step:
    """NumPy's BLAS."""
    x, weights = _matrices()
    out = np.empty_like(x)

    def step() -> None:
        for weight in weights:
            np.matmul(x, weight, out=out)

    return step, _FLOPS


def numpy_copy() -> Step:
    """A large array to another one; a byte read and a byte written are two."""
    size = max(LEAST_COPY_BYTES, ALL_COPIES_BYTES // (os.cpu_count() or 1))
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return (lambda: np.copyto(target, source)), 2.0 * size


def torch_fp32() -> Step:
    """PyTorch's linear function."""
    return _torch("float32")


def torch_bf16() -> Step:
    """The same on BF16 tensors."""
    return _torch("bfloat16")


def _torch(dtype: str) -> Step:
    import torch

    torch.set_num_threads(1)
    x, weights = _matrices()
    rows = torch.from_numpy(x).to(getattr(torch, dtype))
    columns = [torch.from_numpy(weight.T.copy()).to(rows.dtype) for weight in weights]

    def step() -> None:
        with torch.inference_mode():
            for weight in columns:
                torch.nn.functional.linear(rows, weight)

    return step, _FLOPS


def onnxruntime_fp32() -> Step:
    """ONNX Runtime on a chain of MatMul, whose weights it packs."""
    x, weights = _matrices()
    arrays = {f"w{i}": weight for i, weight in enumerate(weights)}
    nodes = [("MatMul", [f"x{i}", f"w{i}"], f"x{i + 1}") for i in range(WEIGHTS)]
    return _onnxruntime(x, nodes, arrays)


def onnxruntime_int8() -> Step:
    """ONNX Runtime on a chain of QLinearMatMul, unsigned by signed bytes."""
    x, weights = _matrices()
    arrays: dict[str, npt.NDArray[Any]] = {
        "x_scale": np.array(4 / 128, np.float32),
        "x_zero": np.array(128, np.uint8),
        "w_scale": np.array(_WEIGHT_SCALE, np.float32),
        "w_zero": np.array(0, np.int8),
    }
    nodes = []
    for i, weight in enumerate(weights):
        arrays[f"w{i}"] = _signed(weight)
        names = [f"x{i}", "x_scale", "x_zero", f"w{i}", "w_scale", "w_zero", "x_scale", "x_zero"]
        nodes.append(("QLinearMatMul", names, f"x{i + 1}"))
    unsigned = np.clip(np.rint(x * 32) + 128, 0, 255).astype(np.uint8)
    return _onnxruntime(unsigned, nodes, arrays)


def _signed(weight: Floats) -> npt.NDArray[np.int8]:
    levels: Floats = np.clip(np.rint(weight / np.float32(_WEIGHT_SCALE)), -127, 127)
    return levels.astype(np.int8)


def _onnxruntime(
    x: npt.NDArray[Any],
    nodes: list[tuple[str, list[str], str]],
    arrays: dict[str, npt.NDArray[Any]],
) -> Step:
    import onnx
    import onnxruntime

    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, x.shape) for name in ("x0", nodes[-1][2])
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, inputs, [output]) for op, inputs, output in nodes],
        "products",
        ends[:1],
        ends[1:],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return (lambda: session.run(None, {"x0": x})), _FLOPS


def openvino_fp32() -> Step:
    """OpenVINO on a chain of MatMul."""
    return _openvino("f32")


def openvino_bf16() -> Step:
    """The same with the hint to compute in BF16."""
    return _openvino("bf16")


def openvino_int8() -> Step:
    """The same with quantized inputs and weights."""
    return _openvino("f32", quantized=True)


def _openvino(hint: str, *, quantized: bool = False) -> Step:
    openvino = library()
    ops = openvino.opset13
    x, weights = _matrices()
    parameter = ops.parameter(x.shape, np.float32, name="x")
    last: Any = parameter
    for weight in weights:
        factor: Any = weight.T.copy()  # as OpenVINO wants it: nothing is transposed at run time
        if quantized:
            low, high = np.float32(-4), np.float32(4 * 127 / 128)
            last = ops.fake_quantize(last, low, high, low, high, 256)
            signed = ops.convert(ops.constant(_signed(factor)), "f32")
            factor = ops.multiply(signed, np.float32(_WEIGHT_SCALE))
        last = ops.matmul(last, factor, False, True)
    model = openvino.Model([ops.result(last)], [parameter], "products")
    options = {**_ONE_THREAD, "INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))
    return request.infer, _FLOPS


WORK: dict[str, Callable[[], Step]] = {
    "numpy-fp32": numpy_fp32,
    "numpy-copy": numpy_copy,
    "torch-fp32": torch_fp32,
    "torch-bf16": torch_bf16,
    "onnxruntime-fp32": onnxruntime_fp32,
    "onnxruntime-int8": onnxruntime_int8,
    "openvino-fp32": openvino_fp32,
    "openvino-bf16": openvino_bf16,
    "openvino-int8": openvino_int8,
}
# Packages that a library's work imports, where it is not the library alone.
NEEDS = {"onnxruntime": ("onnxruntime", "onnx")}


def rate(step: Callable[[], Any], units: float, seconds: float) -> float:
    """Units a second over at least that many seconds."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or not count:
        step()
        count += 1
    return count * units / passed


def main(work: str, cpu: int) -> None:
    """Serve until stdin ends."""
    os.sched_setaffinity(0, {cpu})
    step, units = WORK[work]()
    rate(step, units, WARM_UP_S)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        print(rate(step, units, float(line)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
