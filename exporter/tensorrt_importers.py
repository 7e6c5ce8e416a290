"""What TensorRT's ONNX importers read, version by version: opsets, operators, dtypes.

Data only, light to import. Operators are those that onnx-tensorrt's docs/operators.md marks as
supported: for 8.6 the list of 8.5 GA (commit 6d0ab7b) with what docs/Changelog.md adds for 8.6;
for 10 and 11 the list of 10.15. Which release of 10 brought an operator or a dynamic input: that
changelog. Inputs that must be constants: the importers' own assertions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_LIST_8_6 = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid HardSwish Identity If ImageScaler
InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod
Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear
RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose
Trilu Unsqueeze Upsample Where Xor
"""
_MORE_IN_10_15 = """
Attention BlackmanWindow CastLike DeformConv Gelu HammingWindow HannWindow Hardmax Mish
RMSNormalization RotaryEmbedding STFT TensorScatter
"""
_OPERATORS_8_6 = frozenset(_LIST_8_6.split())
_OPERATORS_10_15 = _OPERATORS_8_6 | frozenset(_MORE_IN_10_15.split())
_LATER_IN_10 = {
    "DeformConv": "10.1",
    "BlackmanWindow": "10.4",
    "HammingWindow": "10.4",
    "HannWindow": "10.4",
    "STFT": "10.5",
    "Attention": "10.14",
    "RMSNormalization": "10.15",
    "RotaryEmbedding": "10.15",
    "TensorScatter": "10.15",
}
_DTYPES_8_6 = frozenset(("FLOAT", "FLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL"))
_DTYPES_10 = _DTYPES_8_6 | {"BFLOAT16", "FLOAT8E4M3FN", "INT4"}
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)


@dataclass(frozen=True)
class ConstantInput:
    """An input that the importer wants as a constant.

    Args:
        since: the release of the series that lifts this, or ``""``.
    """

    index: int
    name: str
    since: str = ""


@dataclass(frozen=True, kw_only=True)
class Importer:
    """The ONNX importer of one series of TensorRT releases.

    Args:
        title: how people call the series.
        opset: the highest opset that every release of the series reads.
        operators: what it imports, in its newest release.
        later: those of them that need a later release of the series, and which.
        dtypes: element types, by their ONNX names.
        constant_inputs: by operator.
    """

    title: str
    opset: int
    operators: frozenset[str]
    later: Mapping[str, str]
    dtypes: frozenset[str]
    constant_inputs: Mapping[str, ConstantInput]


IMPORTERS = {
    "tensorrt-8.6": Importer(
        title="TensorRT 8.6",
        opset=17,
        operators=_OPERATORS_8_6,
        later={},
        dtypes=_DTYPES_8_6,
        constant_inputs={
            "CumSum": ConstantInput(1, "axis"),
            "ReduceSum": ConstantInput(1, "axes"),
            "Slice": ConstantInput(3, "axes"),
            "Squeeze": ConstantInput(1, "axes"),
            "Unsqueeze": ConstantInput(1, "axes"),
        },
    ),
    "tensorrt-10": Importer(
        title="TensorRT 10",
        opset=20,
        operators=_OPERATORS_10_15,
        later=_LATER_IN_10,
        dtypes=_DTYPES_10,
        constant_inputs={
            **{op: ConstantInput(1, "axes") for op in _REDUCTIONS},
            "CumSum": ConstantInput(1, "axis", since="10.8"),
            "Pad": ConstantInput(3, "axes", since="10.4"),
            "Slice": ConstantInput(3, "axes", since="10.3"),
            "Squeeze": ConstantInput(1, "axes", since="10.7"),
            "Unsqueeze": ConstantInput(1, "axes", since="10.7"),
        },
    ),
    "tensorrt-11": Importer(
        title="TensorRT 11",
        opset=24,
        operators=_OPERATORS_10_15,
        later={},
        dtypes=_DTYPES_10 | {"FLOAT4E2M1"},
        constant_inputs={op: ConstantInput(1, "axes") for op in _REDUCTIONS},
    ),
}
VERSIONS = tuple(IMPORTERS)
