"""One product with weights, x W + b, as products of unsigned by signed bytes.

With ``x = s_x (x_q - z)`` and, in each output channel, ``W = s_w W_q``, the product is
``s_x s_w (x_q - z) W_q``. What rounding leaves of the weights, ``W - s_w W_q``, is about half a
step: as INT8 with its own scale it gives the weights 16 bits (``refine`` weights). What it leaves
of the activations is at most half a step of s_x, so 255 steps of ``s_x / 255`` hold it (both). The
product of the two remainders is left out: it is 2^-16 of the whole.

The nodes of a product are called after it: ``<gemm>.product`` and what scales it. ONNX Runtime
fuses MatMulInteger, Cast, the Muls and an Add of a constant bias into one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attn_export.errors import BuildFailed, BundleError

from .placement import weight_axis
from .qdq import LEVELS, constant
from .ranges import Ranges
from .weight_rounding import Moments, compensated

DOMAIN = "com.microsoft"
STEPS = 255  # of an unsigned byte
MIDDLE = 128

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Quantized:
    """A tensor in INT8: its bytes, its scale and, of an activation, its zero point."""

    values: ir.Value
    scale: ir.Value
    zero: ir.Value | None = None


class Products:
    """Replaces products of one graph; with ranges they are static, else dynamic.

    Attributes:
        activations: how many tensors were quantized.
    """

    def __init__(self, graph: ir.Graph, ranges: Ranges | None, moments: Moments) -> None:
        self._graph = graph
        self._ranges = ranges
        self._moments = moments
        self._coarse: dict[ir.Value, Quantized] = {}
        self._fine: dict[ir.Value, Quantized] = {}
        self._weights: dict[tuple[ir.Value, int, bool], Quantized] = {}

    @property
    def activations(self) -> int:
        """How many activations are quantized."""
        return len(self._coarse)

    def replace(self, gemm: ir.Node, *, refine: str) -> None:
        """Put the INT8 form of a MatMul or Gemm in its place, its bias included."""
        x, weight = gemm.inputs[:2]
        axis = weight_axis(gemm, 1)
        assert x is not None
        assert weight is not None
        assert axis is not None
        site, bias = _with_bias(gemm)
        builder = _Builder(site, gemm.name or "")
        coarse_x = self._coarse.get(x) or self._quantize(builder, x)
        coarse_w = self._quantize_weight(weight, axis, x)
        terms = [(coarse_x, coarse_w, "product")]
        if refine != "none":
            fine_w = self._quantize_weight(weight, axis, x, rest=True)
            terms.append((coarse_x, fine_w, "weight_rest"))
        if refine == "both":
            fine_x = self._fine.get(x) or self._quantize_rest(builder, x)
            terms.append((fine_x, coarse_w, "activation_rest"))
        result = self._sum(builder, terms, bias)
        _take_place(self._graph, site, gemm, result)
        if not weight.uses():
            del self._graph.initializers[weight.name or ""]

    def _sum(
        self,
        builder: _Builder,
        terms: Sequence[tuple[Quantized, Quantized, str]],
        bias: ir.Value | None,
    ) -> ir.Value:
        product = self._dynamic_product if self._ranges is None else _static_product
        (x, w, label), *others = terms
        total = product(builder, x, w, label, bias)
        for x, w, label in others:
            part = product(builder, x, w, label, None)
            total = builder.add("Add", [total, part], f"{label}_add")
        return total

    def _quantize(self, builder: _Builder, x: ir.Value) -> Quantized:
        name = f"{x.name}.quantize"
        if self._ranges is None:
            values = builder.node("DynamicQuantizeLinear", [x], name, outputs=3)
            found = Quantized(values[0], values[1], values[2])
        else:
            step, middle = _unsigned(self._ranges, x.name or "")
            scale = constant(self._graph, f"{name}.scale", step)
            zero = constant(self._graph, f"{name}.zero", middle)
            found = Quantized(
                builder.node("QuantizeLinear", [x, scale, zero], name)[0], scale, zero
            )
        self._coarse[x] = found
        return found

    def _quantize_rest(self, builder: _Builder, x: ir.Value) -> Quantized:
        """What the first rounding left of an activation."""
        coarse, name = self._coarse[x], f"{x.name}.rest"
        whole = [coarse.values, coarse.scale, coarse.zero]
        rounded = builder.node("DequantizeLinear", whole, f"{name}.rounded")[0]
        rest = builder.node("Sub", [x, rounded], name)[0]
        steps = self._shared("cpu_int8.steps", np.asarray(1 / STEPS, np.float32))
        middle = self._shared("cpu_int8.middle", np.asarray(MIDDLE, np.uint8))
        scale = builder.node("Mul", [coarse.scale, steps], f"{name}.scale")[0]
        values = builder.node("QuantizeLinear", [rest, scale, middle], f"{name}.quantize")[0]
        self._fine[x] = Quantized(values, scale, middle)
        return self._fine[x]

    def _shared(self, name: str, array: Array) -> ir.Value:
        return self._graph.initializers.get(name) or constant(self._graph, name, array)

    def _quantize_weight(
        self, weight: ir.Value, axis: int, x: ir.Value, *, rest: bool = False
    ) -> Quantized:
        """A weight, or what rounding leaves of it; rounded for the first activation it meets."""
        key = (weight, axis, rest)
        if key not in self._weights:
            array = _columns(weight, axis)
            values, scales = _signed(array)
            moment = self._moments.get(x.name or "")
            if moment is not None:
                values = compensated(array, scales, moment)
            if rest:
                values, scales = _signed(array - values * scales)
            place = weight.name if axis else f"{weight.name}.transposed"
            name = f"{place}.rest" if rest else f"{place}.int8"
            self._weights[key] = Quantized(
                constant(self._graph, name, values),
                constant(self._graph, f"{name}.scale", scales),
            )
        return self._weights[key]

    def _dynamic_product(
        self, builder: _Builder, x: Quantized, w: Quantized, label: str, bias: ir.Value | None
    ) -> ir.Value:
        integers = builder.add("MatMulInteger", [x.values, w.values, x.zero], label)
        floats = builder.add("Cast", [integers], f"{label}_cast", {"to": int(ir.DataType.FLOAT)})
        scale = builder.add("Mul", [x.scale, w.scale], f"{label}_scale")
        result = builder.add("Mul", [floats, scale], f"{label}_scaled")
        return builder.add("Add", [result, bias], f"{label}_bias") if bias is not None else result


def _static_product(
    builder: _Builder, x: Quantized, w: Quantized, label: str, bias: ir.Value | None
) -> ir.Value:
    operands = [x.values, w.values, x.scale, w.scale, x.zero]
    operands += [None, bias] if bias is not None else []
    return builder.add("MatMulIntegerToFloat", operands, label, domain=DOMAIN)


class _Builder:
    """Adds named nodes before a place in the graph."""

    def __init__(self, before: ir.Node, prefix: str) -> None:
        self._before = before
        self._prefix = prefix

    def add(
        self,
        operator: str,
        operands: Sequence[ir.Value | None],
        label: str,
        attributes: dict[str, int] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """A node of this product."""
        name = f"{self._prefix}.{label}"
        return self.node(operator, operands, name, attributes=attributes, domain=domain)[0]

    def node(
        self,
        operator: str,
        operands: Sequence[ir.Value | None],
        name: str,
        *,
        attributes: dict[str, int] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> Sequence[ir.Value]:
        """A node and its outputs, called after it."""
        node = ir.node(
            operator, operands, attributes or {}, domain=domain, num_outputs=outputs, name=name
        )
        for index, value in enumerate(node.outputs):
            value.name = f"{name}:{index}" if index else name
        self._before.prepend(node)
        return node.outputs


def _with_bias(gemm: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The node whose result the product is, and its constant bias [N]: a Gemm's own, or an Add's.

    Only an Add that has the constant second is taken: ONNX Runtime fuses no other.
    """
    if gemm.op_type == "Gemm":
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        return gemm, bias
    result = gemm.outputs[0]
    readers = list(result.consumers())
    if len(readers) == 1 and readers[0].op_type == "Add" and not result.is_graph_output():
        bias = readers[0].inputs[1]
        if bias is not None and bias.const_value is not None and len(bias.const_value.shape) == 1:
            return readers[0], bias
    return gemm, None


def _take_place(graph: ir.Graph, site: ir.Node, gemm: ir.Node, result: ir.Value) -> None:
    """Everyone who read the old result reads the new one, which takes its name."""
    old = site.outputs[0]
    name = old.name or ""
    result.type, result.shape = old.type, old.shape
    for node, index in list(old.uses()):
        node.replace_input_with(index, result)
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = result
    graph.remove(dict.fromkeys((site, gemm)), safe=True)
    producer = result.producer()
    assert producer is not None
    result.name, producer.name = name, site.name


def _columns(weight: ir.Value, axis: int) -> Array:
    """The weight as [K, N]."""
    assert weight.const_value is not None
    array = np.asarray(weight.const_value.numpy(), np.float32)
    if not np.isfinite(array).all():
        raise BuildFailed(f"the weight {weight.name} is not finite; correct the model")
    return np.ascontiguousarray(array if axis else array.T)


def _signed(array: Array) -> tuple[Array, Array]:
    """Symmetric INT8 of [K, N] and the scale of each column, 1 where all is zero."""
    largest = np.abs(array).max(axis=0)
    scales = np.where(largest < LEVELS * np.finfo(np.float32).tiny, 1, largest / LEVELS)
    scales = scales.astype(np.float32)
    return np.clip(np.rint(array / scales), -LEVELS, LEVELS).astype(np.int8), scales


def _unsigned(ranges: Ranges, name: str) -> tuple[Array, Array]:
    """The scale and zero point of an activation; scale 1 where its range is empty."""
    found = ranges.tensors.get(name)
    if found is None:
        raise BundleError(
            f"the tensor {name} has no range ({len(ranges.tensors)} others have one); calibrate "
            "again with this placement"
        )
    width = found.high - found.low
    scale = width / STEPS if width >= STEPS * np.finfo(np.float32).tiny else 1.0
    zero = np.clip(np.rint(-found.low / scale), 0, STEPS)
    return np.asarray(scale, np.float32), np.asarray(zero, np.uint8)
