"""Run any mix of two typings of one model, up to any value, without touching their files.

A *mix* takes some nodes from the typed graph, with what typing added around them, and the others
from the FP32 graph. It ends at the values that are asked for, so that it is a prefix of the
model, and lives in memory alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from attn_export.lazy import require

from .diagnosis_pair import FULL, HALF, Pair

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

_LOW = "low/"  # the namespace of the typed graph's own values
_EMBEDDED = 1 << 10  # smaller constants stay in the graph: shape inference reads them


class Prefix:
    """A mix that is open in ONNX Runtime, which computes it as it stands."""

    def __init__(
        self, model: onnx.ModelProto, weights: Mapping[str, Array], outputs: Sequence[str]
    ) -> None:
        ort = require("onnxruntime", extra="cpu")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # The session reads the weights where NumPy has them: they must live as long as it.
        self._held = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        self._arrays = weights
        options.add_external_initializers(list(weights), self._held)
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = list(outputs)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Feeds and results have the FP32 graph's dtypes."""
        arrays = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, arrays, strict=True))


def open_prefix(pair: Pair, outputs: Sequence[str], *, low: Collection[str]) -> Prefix:
    """Make the mix that ends at ``outputs`` (names in the FP32 graph), typed in ``low``.

    Raises:
        MissingPackage: if ONNX Runtime is not installed.
    """
    parts = _Parts(pair, set(low))
    parts.emit(_needed(pair, outputs))
    return Prefix(parts.model(outputs), parts.arrays(), outputs)


def _needed(pair: Pair, outputs: Sequence[str]) -> list[ir.Node]:
    wanted: set[ir.Node] = set()
    queue = [pair.values[name].producer() for name in outputs]
    while queue:
        node = queue.pop()
        if node is not None and node not in wanted:
            wanted.add(node)
            queue += [value.producer() for value in node.inputs if value is not None]
    return [node for node in pair.nodes if node in wanted]


class _Parts:
    """The nodes and weights of one mix."""

    def __init__(self, of: Pair, low: set[str]) -> None:
        self._of, self._low = of, low
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, ir.TensorProtocol] = {}
        self._done: set[str] = set()

    def emit(self, nodes: Sequence[ir.Node]) -> None:
        """Add nodes that stand in topological order."""
        for node in nodes:
            if node.name in self._low:
                self._emit_low(node)
            else:
                inputs = [self._full_input(value) for value in node.inputs]
                self._copy(node, inputs, [value.name or "" for value in node.outputs])

    def arrays(self) -> dict[str, Array]:
        """The large weights, where the graphs have them."""
        large = {name: tensor for name, tensor in self._weights.items() if _is_large(tensor)}
        return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in large.items()}

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """The mix as a graph whose large weights are given beside it."""
        of = self._of
        versions = {**of.typed.opset_imports, **of.full.opset_imports}
        graph = onnx.helper.make_graph(
            self._nodes,
            "mix",
            [ir.serde.serialize_value(value) for value in of.full.graph.inputs],
            [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
            [_initializer(name, tensor) for name, tensor in self._weights.items()],
        )
        opsets = [onnx.helper.make_opsetid(*item) for item in versions.items()]
        ir_version = max(of.full.ir_version, of.typed.ir_version)
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)

    def _emit_low(self, node: ir.Node) -> None:
        """A node as the typed graph has it; its results are handed on in FP32."""
        low = self._of.low_nodes[node.name or ""]
        self._copy(low, [self._low_input(value, low) for value in low.inputs], _names(low.outputs))
        for value, made in zip(node.outputs, low.outputs, strict=True):
            last = made
            for helper in self._of.rounding(node.name or "", value.name or ""):
                rest = [self._low_input(other, helper) for other in helper.inputs[1:]]
                self._copy(helper, [*_names([last]), *rest], _names(helper.outputs))
                last = helper.outputs[0]
                self._done.add(last.name or "")
            is_half = last.dtype == HALF and value.dtype == FULL
            self._cast(_names([last])[0], value.name or "", FULL if is_half else None)

    def _full_input(self, value: ir.Value | None) -> str:
        if value is None:
            return ""
        if value.const_value is not None:
            self._weights[value.name or ""] = value.const_value
        return value.name or ""

    def _low_input(self, value: ir.Value | None, reader: ir.Node) -> str:
        """The name of what a typed node reads, made first where it is not there yet."""
        if value is None:
            return ""
        name = value.name or ""
        if value.const_value is not None:
            self._weights[_LOW + name] = value.const_value
            return _LOW + name
        producer = value.producer()
        known = producer is not None and producer.name in self._of.by_name
        if name in self._of.values or (known and producer is not None):
            return self._shared(value, producer if known else None, reader)
        if producer is None or name in self._done:
            return _LOW + name
        self._done.add(name)
        inputs = [self._low_input(item, producer) for item in producer.inputs]
        self._copy(producer, inputs, _names(producer.outputs))
        return _LOW + name

    def _shared(self, value: ir.Value, producer: ir.Node | None, reader: ir.Node) -> str:
        """A value of both graphs comes in FP32, whichever graph made it.

        It was rounded where it was made, if that is typed; what reads it does not round it again.
        So a Cast that typing added takes it as it is; only where the operator's types ask for
        FP16, or the graph itself takes FP16, is it cast.
        """
        name = value.name or ""
        if name not in self._of.values and producer is not None:
            outputs = self._of.by_name[producer.name or ""].outputs
            name = outputs[list(producer.outputs).index(value)].name or ""
        if value.dtype != HALF or self._of.values[name].dtype != FULL:
            return name
        added_cast = reader.op_type == "Cast" and reader.name not in self._of.by_name
        if added_cast and not value.is_graph_input():
            return name
        cast = f"{_LOW}as-fp16/{name}"
        if cast not in self._done:
            self._done.add(cast)
            self._cast(name, cast, HALF)
        return cast

    def _cast(self, source: str, name: str, dtype: ir.DataType | None) -> None:
        op = "Identity" if dtype is None else "Cast"
        node = onnx.helper.make_node(op, [source], [name], name=f"{name}/made")
        if dtype is not None:
            node.attribute.append(onnx.helper.make_attribute("to", int(dtype)))
        self._nodes.append(node)

    def _copy(self, node: ir.Node, inputs: list[str], outputs: list[str]) -> None:
        proto = ir.serde.serialize_node(node)
        del proto.input[:], proto.output[:]
        proto.input.extend(inputs)
        proto.output.extend(outputs)
        proto.name = f"{len(self._nodes)}/{node.name}"
        self._nodes.append(proto)


def _names(values: Sequence[ir.Value]) -> list[str]:
    return [_LOW + (value.name or "") for value in values]


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= _EMBEDDED


def _initializer(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    if not _is_large(tensor):
        return onnx.numpy_helper.from_array(tensor.numpy(), name)
    dims = [int(dim) for dim in tensor.shape.numpy()]
    proto = onnx.TensorProto(
        name=name,
        data_type=int(tensor.dtype),
        dims=dims,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    proto.external_data.add(key="location", value="in memory")
    return proto
