"""The rules of TensorRT's importers for QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .finding import Finding, error, warning
from .tensorrt_importers import Importer

_QUANTIZED_8_6 = ("INT8",)
_QUANTIZED = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")


def quantization_findings(node: ir.Node, importer: Importer, opset: int) -> Iterator[Finding]:
    """What is wrong with one Q or DQ node; nothing for any other node."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    yield from _quantized_type(node, importer)
    yield from _zero_point(node, importer)
    yield from _scale(node, importer, opset)
    yield from _channels(node, importer)


def _zero_input(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _quantized_type(node: ir.Node, importer: Importer) -> Iterator[Finding]:
    allowed = _QUANTIZED_8_6 if importer.opset < 18 else _QUANTIZED
    dtype = _dtype(node)
    if dtype.name not in allowed:
        names = ", ".join(name for name in allowed if name in importer.dtypes)
        yield error(
            node,
            f"it quantizes to {dtype.name}, {importer.title} to {names} and takes others for "
            "INT8; quantize symmetrically to INT8",
        )
    source = node.inputs[0]
    stored = source is not None and source.const_value is not None
    if importer.opset < 18 and node.op_type == "DequantizeLinear" and stored:
        yield warning(
            node,
            "its weights are stored quantized; for TensorRT 8.6 keep them FP32 with a Q node "
            "before this one",
        )


def _dtype(node: ir.Node) -> ir.DataType:
    """The quantized element type; without a zero point and a type ONNX means uint8."""
    zero = _zero_input(node)
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    side = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    if side is not None and side.dtype is not None:
        return side.dtype
    return ir.DataType(node.attributes.get_int("output_dtype", 0) or int(ir.DataType.UINT8))


def _zero_point(node: ir.Node, importer: Importer) -> Iterator[Finding]:
    zero = _zero_input(node)
    if zero is None:
        if importer.opset < 18:
            yield error(
                node, f"it has no zero point, which {importer.title} needs; add one of zeros, INT8"
            )
    elif zero.const_value is None:
        yield error(node, "its zero point is computed in the graph; make it a constant of zeros")
    elif np.any(np.asarray(zero.const_value.numpy()).astype(np.float32)):
        yield error(
            node, "its zero point is not zero, TensorRT only has symmetric scales; use zero"
        )


def _scale(node: ir.Node, importer: Importer, opset: int) -> Iterator[Finding]:
    scale = node.inputs[1]
    tensor = scale.const_value if scale is not None else None
    if tensor is None:
        yield error(node, "its scale is computed in the graph, TensorRT wants a constant; fold it")
        return
    values = np.asarray(tensor.numpy()).astype(np.float32)
    if not values.size or not np.all(np.isfinite(values) & (values > 0)):
        yield error(
            node, "a scale is not a positive number, which TensorRT demands; calibrate again"
        )
    if tensor.dtype == ir.DataType.FLOAT:
        return
    if importer.opset < 18:
        yield error(
            node,
            f"its scale is {tensor.dtype.name}, {importer.title} reads the bytes as FP32 and says "
            "nothing; use FP32 scales",
        )
    elif opset < 19:
        yield error(
            node,
            f"its scale is {tensor.dtype.name} at opset {opset}, ONNX has that from opset 19 on; "
            "raise the opset or use FP32 scales",
        )


def _channels(node: ir.Node, importer: Importer) -> Iterator[Finding]:
    data, scale = node.inputs[0], node.inputs[1]
    tensor = scale.const_value if scale is not None else None
    if data is None or tensor is None or tensor.size == 1:
        return
    if importer.opset < 18 and "axis" not in node.attributes:
        yield error(
            node,
            f"it has a scale per channel and no axis: ONNX means axis 1, {importer.title} takes "
            "axis 0; write the axis",
        )
    axis = node.attributes.get_int("axis", 1)
    blocked = node.attributes.get_int("block_size", 0)
    shape = data.shape
    if blocked or shape is None or not -len(shape) <= axis < len(shape):
        return
    size = shape[axis]
    if isinstance(size, int) and size != tensor.size:
        yield error(
            node,
            f"it has {tensor.size} scales for {size} channels of axis {axis}; one per channel is "
            "needed",
        )
