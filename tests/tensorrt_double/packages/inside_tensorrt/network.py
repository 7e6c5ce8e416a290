"""The network: inputs, outputs and layers as the ONNX parser names and types them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .values import Dims
from .world import Behaviour, World

FLOATS = ("FLOAT", "HALF", "BF16")
# ONNX op -> LayerType, as onnx-tensorrt's importers choose it.
LAYER_TYPES = {
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "Softmax": "SOFTMAX",
    "Cast": "CAST",
    "LayerNormalization": "NORMALIZATION",
    "Gather": "GATHER",
    "Shape": "SHAPE",
    "Slice": "SLICE",
    "Split": "SLICE",
    "Expand": "SLICE",
    "Concat": "CONCATENATION",
    "Constant": "CONSTANT",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Where": "SELECT",
    "Tanh": "ACTIVATION",
    "Sigmoid": "ACTIVATION",
    "Relu": "ACTIVATION",
    **dict.fromkeys(("Erf", "Sqrt", "Exp", "Not", "Neg", "Abs", "Log"), "UNARY"),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin"), "REDUCE"),
    **dict.fromkeys(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"), "SHUFFLE"),
}


class Tensor(Behaviour):
    """``tensorrt.ITensor``."""

    kind = "ITensor"

    def __init__(self, world: World, name: str, dtype: Any, shape: Sequence[int]) -> None:
        super().__init__(world)
        self.name = name
        self.dtype = dtype
        self.shape: Any = Dims(world, shape)
        self.is_network_input = False
        self.is_network_output = False
        self.is_shape_tensor = False
        self.is_execution_tensor = True
        self.location = world.enum("TensorLocation", "DEVICE")


class Layer(Behaviour):
    """``tensorrt.ILayer``; precision is there to set only where the version has it."""

    kind = "ILayer"

    def __init__(
        self, world: World, name: str, op: str, inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        super().__init__(world)
        self.name = name
        self.op = op
        self.inputs = inputs
        self.outputs = outputs
        self.metadata = f"[ONNX Layer: {name}]"
        self.type = world.enum("LayerType", LAYER_TYPES.get(op, "ELEMENTWISE"))
        self.pinned: Any = None
        self.output_types: dict[int, Any] = {}

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def get_output(self, index: int) -> Tensor | None:
        return self.outputs[index] if index < len(self.outputs) else None

    @property
    def precision(self) -> Any:
        return self.pinned or self.world.enum("DataType", "FLOAT")

    @precision.setter
    def precision(self, dtype: Any) -> None:
        self.pinned = dtype

    @property
    def precision_is_set(self) -> bool:
        return self.pinned is not None

    def reset_precision(self) -> None:
        self.pinned = None

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.output_types[index] = dtype

    def get_output_type(self, index: int) -> Any:
        return self.output_types.get(index, self.outputs[index].dtype)

    def output_type_is_set(self, index: int) -> bool:
        return index in self.output_types

    def reset_output_type(self, index: int) -> None:
        self.output_types.pop(index, None)

    @property
    def computes_floats(self) -> bool:
        """Whether a builder may choose this layer's floating-point type."""
        return (
            self.op not in ("Constant", "Cast", "Shape")
            and bool(self.outputs)
            and all(tensor.dtype.name in FLOATS for tensor in self.outputs)
        )


class Network(Behaviour):
    """``tensorrt.INetworkDefinition``."""

    kind = "INetworkDefinition"

    def __init__(self, world: World, logger: Any, flags: int) -> None:
        super().__init__(world)
        self.logger = logger
        self.flags = flags
        self.name = ""
        self.layers: list[Layer] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.model: Any = None  # the onnx.ModelProto that was parsed

    @property
    def strongly_typed(self) -> bool:
        bit = self.world.bit("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
        return self.world.major >= 11 or bool(self.flags & bit)

    @property
    def has_implicit_batch_dimension(self) -> bool:
        explicit = self.world.bit("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")
        return self.world.major == 8 and not self.flags & explicit

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __bool__(self) -> bool:
        return True

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags & 1 << int(flag))

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Tensor | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def get_output(self, index: int) -> Tensor | None:
        return self.outputs[index] if index < len(self.outputs) else None
