"""The ONNX parser: reads a real ONNX file and fills the network from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model

from .network import Layer, Network, Tensor
from .world import Behaviour, World

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}


class ParserError(Behaviour):
    """``tensorrt.ParserError``."""

    kind = "ParserError"

    def __init__(self, world: World, desc: str, node: int = -1, proto: Any = None) -> None:
        super().__init__(world)
        self._desc, self._node = desc, node
        self._name = proto.name if proto else ""
        self._operator = proto.op_type if proto else ""
        self._code = "UNSUPPORTED_NODE" if proto else "MODEL_DESERIALIZE_FAILED"

    def code(self) -> Any:
        return self.world.enum("ErrorCode", self._code)

    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return self._node

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator

    def file(self) -> str:
        return "ModelImporter.cpp"

    def func(self) -> str:
        return "parseNode"

    def line(self) -> int:
        return 748

    def local_function_stack(self) -> list[str]:
        return []

    def __repr__(self) -> str:
        return f"In node {self._node} ({self.func()}): {self._code}: {self._desc}"


class OnnxParser(Behaviour):
    """``tensorrt.OnnxParser``."""

    kind = "OnnxParser"

    def __init__(self, world: World, network: Network, logger: Any) -> None:
        super().__init__(world)
        self.network = network
        self.logger = logger
        self.errors: list[ParserError] = []
        self.flags = 0

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def clear_errors(self) -> None:
        self.errors.clear()

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags & 1 << int(flag))

    def supports_operator(self, op_name: str) -> bool:
        return op_name not in self.world.double.unsupported_ops

    def parse_from_file(self, path: str) -> bool:
        try:
            data = Path(path).read_bytes()
        except OSError:
            text = f"Failed to parse ONNX model from file: {path}"
            if self.world.major == 8:  # 8.6 says it in its log alone
                self.world.log(self.logger, "ERROR", f"ModelImporter.cpp:730: {text}")
                return False
            return self._fail(ParserError(self.world, text))
        return self.parse(data, path)

    def parse(self, model: Any, path: str | None = None) -> bool:
        """Read the model; ``path`` is the file that external data lie beside."""
        try:
            proto = onnx.load_model_from_string(bytes(model))
        except Exception:  # protobuf's own error class moved between its versions
            return self._fail(ParserError(self.world, "Failed to parse the ONNX model."))
        try:
            load_external_data_for_model(proto, str(Path(path or ".").parent))
        except (OSError, ValueError) as error:
            return self._fail(ParserError(self.world, f"Failed to open external data: {error}"))
        if not proto.graph.node:
            return True  # as 8.6.0 does
        for index, node in enumerate(proto.graph.node):
            if self.world.major == 8 and node.op_type == "Shape" and node.attribute:
                # 8.6.0 ignores start and end; what reads the shape then fails, if it fails.
                text = "Assertion failed: ends.size() == axes.size()"
                self._fail(ParserError(self.world, text, index, node))
            if not self.supports_operator(node.op_type):
                text = (
                    f"No importer registered for op: {node.op_type}. "
                    "Attempting to import as plugin. Plugin not found."
                )
                self._fail(ParserError(self.world, text, index, node))
        if self.errors:
            return False
        if self.network.has_implicit_batch_dimension:
            text = "This version of the ONNX parser only supports networks with an explicit batch"
            return self._fail(ParserError(self.world, text))
        self._fill(proto)
        return True

    def _fail(self, error: ParserError) -> bool:
        self.errors.append(error)
        self.world.log(self.logger, "ERROR", repr(error))
        return False

    def _fill(self, proto: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        values = {v.name: v for v in [*graph.input, *graph.output, *graph.value_info]}
        tensors: dict[str, Tensor] = {}
        weights = {initializer.name for initializer in graph.initializer}
        for initializer in graph.initializer:
            dtype = self._dtype(initializer.data_type)
            tensor = Tensor(self.world, initializer.name, dtype, initializer.dims)
            tensors[initializer.name] = tensor
            layer = Layer(self.world, initializer.name, "Constant", [], [tensor])
            self.network.layers.append(layer)
        for name, value in values.items():
            if name not in weights:
                tensors[name] = self._tensor(value)
        for node in graph.node:
            for name in node.output:
                unknown = self._dtype(TensorProto.FLOAT)
                tensors.setdefault(name, Tensor(self.world, name, unknown, ()))
            inputs = [tensors[name] for name in node.input if name]
            outputs = [tensors[name] for name in node.output if name]
            layer = Layer(self.world, node.name, node.op_type, inputs, outputs)
            if self.world.major == 8 and node.op_type == "LayerNormalization":
                # Seen with the parser of 8.6.0: neither a name nor metadata.
                layer.name = f"(Unnamed Layer* {len(self.network.layers)}) [Normalization]"
                layer.metadata = ""
            self.network.layers.append(layer)
        self.network.inputs = [tensors[v.name] for v in graph.input if v.name not in weights]
        self.network.outputs = [tensors[value.name] for value in graph.output]
        for tensor in self.network.inputs:
            tensor.is_network_input = True
        for tensor in self.network.outputs:
            tensor.is_network_output = True
        self.network.name = graph.name
        self.network.model = proto

    def _dtype(self, onnx_type: int) -> Any:
        name = DTYPES[onnx_type]
        if name == "INT64" and not self.world.has("DataType", "INT64"):
            self.world.log(
                self.logger,
                "WARNING",
                "Your ONNX model has been generated with INT64 weights, while TensorRT does not "
                "natively support INT64. Attempting to cast down to INT32.",
            )
            name = "INT32"
        return self.world.enum("DataType", name)

    def _tensor(self, value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        return Tensor(self.world, value.name, self._dtype(kind.elem_type), shape)
