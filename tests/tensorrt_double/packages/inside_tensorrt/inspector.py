"""The engine inspector, with the JSON schema of each version.

8.6 and 10 name tensors in "Bindings" and write "Format/Datatype"; 11 has "I/O Tensors" and splits
that field (docs.nvidia.com/deeplearning/tensorrt, migration guide 10.x to 11.x).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .plan import LayerPlan, Plan, TensorPlan
from .world import Behaviour, World

if TYPE_CHECKING:
    from .context import ExecutionContext

NAMES = {"FLOAT": "Float", "HALF": "Half", "INT32": "Int32", "INT64": "Int64", "INT8": "Int8"}
FORMATS = {"FLOAT": "FP32", "HALF": "FP16", "INT32": "Int32", "INT64": "Int64", "INT8": "Int8"}
SEPARATOR = "\x1f"
Json = dict[str, Any]


class EngineInspector(Behaviour):
    """``tensorrt.EngineInspector``."""

    kind = "EngineInspector"

    def __init__(self, world: World, plan: Plan) -> None:
        super().__init__(world)
        self.plan = plan
        self.execution_context: ExecutionContext | None = None
        self.error_recorder: Any = None

    def get_engine_information(self, style: Any) -> str:
        layers = self._layers()
        if style.name != "JSON":
            return "\n".join(layer if isinstance(layer, str) else layer["Name"] for layer in layers)
        return json.dumps({"Layers": layers} | self._tensors())

    def get_layer_information(self, layer_index: int, style: Any) -> str:
        layer = self._layers()[layer_index]
        return json.dumps(layer) if style.name == "JSON" else str(layer)

    def _layers(self) -> list[Any]:
        if self.plan.verbosity == "NONE":
            return []
        layers = []
        for index in range(max(1, len(self.plan.profiles))):
            suffix = f" [profile {index}]" if index else ""
            for layer in self._groups():
                layer["Name"] += suffix
                layers.append(layer)
        return layers if self.plan.verbosity == "DETAILED" else [layer["Name"] for layer in layers]

    def _groups(self) -> list[Json]:
        """8.6 shows one Myelin node; 10 and 11 show kernels, fused attention as one."""
        if self.world.major == 8:
            nodes = self.plan.layers
            name = f"{{ForeignNode[{nodes[0].name}...{nodes[-1].name}]}}"
            return [self._layer(name, "Myelin", nodes, "0x0000000000000000")]
        groups, fused = [], _attention(self.plan.layers)
        for node in self.plan.layers:
            group = fused.get(node.name)
            if group is None:
                kind = "gemm" if node.op in ("MatMul", "Gemm") else "kgen"
                tactic = f"sm75_xmma_{kind}_{FORMATS.get(node.dtype, node.dtype).lower()}"
                groups.append(self._layer(f"__myl_{node.op}_{node.name}", kind, [node], tactic))
            elif group[-1] is node:
                name = f"_gemm_mha_v2_{node.name}"
                groups.append(self._layer(name, "kgen", group, "_gemm_mha_v2"))
        return groups

    def _layer(self, name: str, kind: str, nodes: list[LayerPlan], tactic: str) -> Json:
        made = {tensor.name for node in nodes for tensor in node.outputs}
        used = {tensor.name for node in nodes for tensor in node.inputs}
        own = {t.name for t in self.plan.outputs}
        inputs = {t.name: t for n in nodes for t in n.inputs if t.name not in made}
        outputs = {
            t.name: (t, n.dtype) for n in nodes for t in n.outputs if t.name not in used - own
        }
        return {
            "Name": name,
            "LayerType": kind,
            "Inputs": [self._tensor(tensor, tensor.dtype) for tensor in inputs.values()],
            "Outputs": [self._tensor(tensor, dtype) for tensor, dtype in outputs.values()],
            "TacticName": tactic,
            "StreamId": 0,
            "Metadata": SEPARATOR.join(f"[ONNX Layer: {node.name}]" for node in nodes),
        }

    def _shape(self, tensor: TensorPlan) -> list[int]:
        """Its sizes, those of the execution context where they depend on the inputs."""
        context = self.execution_context
        sizes = context.axis_sizes() if context else {}
        axes = tensor.axes or [""] * len(tensor.shape)
        return [sizes.get(axis, size) for size, axis in zip(tensor.shape, axes, strict=True)]

    def _tensor(self, tensor: TensorPlan, dtype: str) -> Json:
        shape = self._shape(tensor)
        seen: Json = {"Name": tensor.name, "Location": "Device", "Dimensions": shape}
        if self.world.major >= 11:
            return seen | {"Format": "Row major linear", "DataType": NAMES.get(dtype, dtype)}
        if self.world.major == 8 and -1 in shape:
            return seen | {"Format/Datatype": "N/A due to dynamic shapes"}
        if self.world.major == 8:
            text = f"Row major linear {FORMATS.get(dtype, dtype)} format"
            return seen | {"Format/Datatype": text}
        return seen | {"Format/Datatype": NAMES.get(dtype, dtype)}

    def _tensors(self) -> Json:
        both = [*self.plan.inputs, *self.plan.outputs]
        if self.world.major < 11:
            return {"Bindings": [tensor.name for tensor in both]}
        return {"I/O Tensors": [self._io(tensor) for tensor in both]}

    def _io(self, tensor: TensorPlan) -> Json:
        shapes = [profile.get(tensor.name, [tensor.shape] * 3) for profile in self.plan.profiles]
        return {
            "Name": tensor.name,
            "IOMode": "Input" if tensor in self.plan.inputs else "Output",
            "DataType": NAMES.get(tensor.dtype, tensor.dtype),
            "Dimensions": tensor.shape,
            "Location": "Device",
            "IsShapeInferenceIO": False,
            "ProfileInfo": [
                {
                    "MinShape": low,
                    "OptShape": best,
                    "MaxShape": high,
                    "Format": f"Row major linear {FORMATS.get(tensor.dtype)} format (kLINEAR)",
                }
                for low, best, high in shapes
            ],
        }


def _attention(layers: list[LayerPlan]) -> dict[str, list[LayerPlan]]:
    """Node name -> its MatMul, Add, Softmax, MatMul, where all four are in FP16."""
    makers = {tensor.name: layer for layer in layers for tensor in layer.outputs}
    found: dict[str, list[LayerPlan]] = {}
    for last in layers:
        chain = [last]
        for op in ("Softmax", "Add", "MatMul"):
            tensors = chain[0].inputs
            before = [makers[t.name] for t in tensors if t.name in makers]
            chain[:0] = [layer for layer in before if layer.op == op][:1]
        ops = [layer.op for layer in chain]
        if ops == ["MatMul", "Add", "Softmax", "MatMul"] and {n.dtype for n in chain} == {"HALF"}:
            found |= {layer.name: chain for layer in chain}
    return found
