"""A product with one weight, as ONNX and as a plan, for the tests of the doubles."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.arange(8, dtype=np.float32).reshape(4, 2)


def product_onnx(op_type: str = "MatMul", dtype: int = TensorProto.FLOAT) -> bytes:
    """``y [batch, 2] = x [batch, 4] @ WEIGHT``; another op type makes a graph to be refused."""
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "w"], ["y"], name="product")],
        "tiny",
        [helper.make_tensor_value_info("x", dtype, ["batch", 4])],
        [helper.make_tensor_value_info("y", dtype, ["batch", 2])],
        [numpy_helper.from_array(WEIGHT.astype(numpy_type), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    onnx.load_model_from_string(data)
    return data


class Recorder:
    """Makes loggers that keep their lines as (severity, text)."""

    def __init__(self, trt: Any) -> None:
        self.lines: list[tuple[str, str]] = []
        lines = self.lines

        class Kept(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
            def log(self, severity: Any, msg: str) -> None:
                lines.append((severity.name, msg))

        self.logger = Kept()

    @property
    def errors(self) -> str:
        """All lines of severity ERROR."""
        return "\n".join(text for severity, text in self.lines if severity == "ERROR")


class Draft:
    """Builder, network and config of the product, still to be changed and built."""

    def __init__(self, trt: Any, model: bytes | None = None, typed: bool = True) -> None:
        self.trt = trt
        self.log = Recorder(trt)
        self.builder = trt.Builder(self.log.logger)
        flags = trt.NetworkDefinitionCreationFlag
        names = ["STRONGLY_TYPED"] if typed and hasattr(flags, "STRONGLY_TYPED") else []
        names += ["EXPLICIT_BATCH"] if hasattr(flags, "EXPLICIT_BATCH") else []
        bits = sum(1 << int(getattr(flags, name)) for name in names)
        self.network = self.builder.create_network(bits)
        self.parser = trt.OnnxParser(self.network, self.log.logger)
        self.parsed = self.parser.parse(product_onnx() if model is None else model)
        self.config = self.builder.create_builder_config()

    def add_profile(self, low: int = 1, best: int = 2, high: int = 8) -> Draft:
        """Take batches from ``low`` to ``high``."""
        profile = self.builder.create_optimization_profile()
        profile.set_shape("x", (low, 4), (best, 4), (high, 4))
        assert self.config.add_optimization_profile(profile) >= 0
        return self

    def build(self) -> Any:
        """The plan, or None."""
        return self.builder.build_serialized_network(self.network, self.config)

    def engine(self) -> Any:
        """Build and load."""
        return self.trt.Runtime(self.log.logger).deserialize_cuda_engine(self.build())
