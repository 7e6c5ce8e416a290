"""The layers that TensorRT's engine inspector lists, whatever version wrote the JSON.

Built with ``ProfilingVerbosity.DETAILED`` a layer is an object, otherwise only a name. A tensor's
type stands in ``Format/Datatype`` (8.6 to 10) or in ``Datatype`` beside ``Format`` (11), and both
may read "N/A due to dynamic shapes": then the weights' type or the tactic's name tell. An engine
with several optimization profiles lists its layers once for each, and all but the first profile's
names end in ``[profile N]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attn_export.errors import BuildFailed
from attn_export.roles import CONTEXT, GEMM, ROLES, SCORES, role_of

GEMM_ROLES = frozenset((GEMM, SCORES, CONTEXT))
INTEGER = "integer"
CASTS = frozenset(("cast", "fp16", "fp32"))  # what inserted Casts are called by

# In order: "BFloat16" before "Float".
_DTYPES = tuple(
    (name, re.compile(rf"\b(?:{words})\b", re.IGNORECASE))
    for name, words in (
        ("bf16", "bfloat16|bf16"),
        ("fp16", "half|float16|fp16"),
        ("fp8", "float8|fp8"),
        ("fp4", "float4|fp4"),
        ("fp32", "float|float32|fp32"),
        ("int8", "int8"),
        ("int4", "int4"),
        (INTEGER, "int32|int64|uint8|bool"),
    )
)
# In order: sm80_xmma_gemm_i8f16_i8i32_f32 is INT8, turing_fp16_s1688gemm_fp16 is FP16.
_TACTICS = (
    ("int8", re.compile(r"i8i8|i8i32|int8|imma|i8816")),
    ("fp8", re.compile(r"e4m3|e5m2")),
    ("bf16", re.compile(r"bf16")),
    ("fp16", re.compile(r"f16f16|fp16|hmma|hgemm|h884|h1688|h16816")),
    ("fp32", re.compile(r"f32f32|fp32|sgemm|ffma")),
)
_WIDEST_FIRST = ("fp32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")

_HEX = re.compile(r"0x[0-9a-f]+")
_PROFILE = re.compile(r"\s*\[profile +(\d+)\]")
_NODE = re.compile(r"\[ONNX Layer: ([^\]|]+?)\s*[\]|]")
_MYELIN_SUFFIX = re.compile(r"(?:_myl\d+_\d+)+$")
_NAME_PARTS = re.compile(r"[\s+(),]+")
_NO_WORK = frozenset(("constant", "noop", "signal", "wait"))
_GEMM_TYPE = re.compile(r"gemm|matrixmultiply|matmul|fullyconnected")
_GEMM_KERNEL = re.compile(r"gem[mv]")
# A Gemm's bias or a product's transpose may be a layer of its own, with the product's node in it.
_NO_GEMM_TYPE = re.compile(
    r"activation|concat|copy|elementwise|gather|norm|pointwise|quantize|reduce|scale|shape|shuffle"
    r"|slice|softmax|unary"
)
# A kernel that Myelin generated is named after its operations; these multiply matrices.
_GENERATED_GEMM = re.compile(r"Fc(?=[A-Z_])|MulSum")
_MHA = re.compile(r"(?:\b|_|f)mha(?:\b|_|\d)")
_GENERATED_CAST = re.compile(
    r"^__myl_(?:Cast?|Move?|Resh?|Tran?)*Cast?(?:Cast?|Move?|Resh?|Tran?)*_"
)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a layer; ``dtype`` is None where the inspector does not say."""

    name: str
    dtype: str | None
    is_scalar: bool


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of one optimization profile.

    Args:
        name: without the profile's suffix.
        kind: TensorRT's LayerType, in lower case.
        nodes: the ONNX nodes in it, as far as known.
        weights: the type of its weights, or None.
    """

    name: str
    kind: str
    tactic: str
    profile: int
    nodes: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: str | None

    @property
    def roles(self) -> frozenset[str]:
        """The roles of its nodes."""
        return frozenset(role_of(node) for node in self.nodes)

    @property
    def converts(self) -> bool:
        """Whether it only changes type or layout."""
        return (
            self.kind in ("reformat", "cast")
            or self.name.startswith("Reformatting CopyNode")
            or (bool(self.nodes) and self.roles <= CASTS)
            or (not self.nodes and bool(_GENERATED_CAST.match(self.name)))
        )

    @property
    def works(self) -> bool:
        """Whether it computes or moves anything."""
        return self.kind not in _NO_WORK and bool(self.inputs or self.outputs)

    @property
    def hides_gemms(self) -> bool:
        """Whether it is a whole Myelin subgraph that may hold matrix products."""
        opaque = self.kind == "myelin" or self.name.startswith("{ForeignNode[")
        return opaque and not self.converts and (not self.nodes or bool(self.roles & GEMM_ROLES))

    @property
    def is_mha(self) -> bool:
        """Whether its kernel is a fused attention, by its name or by what it holds."""
        return bool(_MHA.search(self._kernel)) or self._holds_attention

    @property
    def is_gemm(self) -> bool:
        """Whether it multiplies matrices.

        A generated kernel may hold a product's node for its transposes alone, so its name must
        tell as well.
        """
        if self.converts or self.hides_gemms or not self.works:
            return False
        if _GEMM_TYPE.search(self.kind) or _GEMM_KERNEL.search(self._kernel) or self.is_mha:
            return True
        if not self.roles & GEMM_ROLES:
            return False
        if self.kind == "kgen":
            return bool(_GENERATED_GEMM.search(self.name))
        return not _NO_GEMM_TYPE.search(self.kind)

    @property
    def precision(self) -> str | None:
        """What it computes in, as far as its tensors, weights or tactic show; None is unknown.

        A GEMM is judged by its first operand (it may add in FP32 and write what comes next),
        any other layer by the widest of its outputs.
        """
        operands = [t.dtype for t in self.inputs if t.dtype in _WIDEST_FIRST and not t.is_scalar]
        outputs = [t.dtype for t in self.outputs]
        if self.is_gemm and operands:
            return operands[0]
        for dtypes in (outputs, operands, [self.weights]):
            for name in _WIDEST_FIRST:
                if name in dtypes:
                    return name
        if INTEGER in outputs:
            return INTEGER
        return next((name for name, tactic in _TACTICS if tactic.search(self._kernel)), None)

    @property
    def _kernel(self) -> str:
        """The tactic, and the name where it is a kernel's and not made of node names."""
        name = self.name if self.name.startswith("_") else ""
        return _HEX.sub("", f"{self.tactic} {name}".casefold())

    @property
    def _holds_attention(self) -> bool:
        return not self.hides_gemms and {SCORES, CONTEXT} <= self.roles


def read_layers(inspector_json: str, nodes: Sequence[str] = ()) -> list[Layer] | None:
    """Every layer of every profile, or None where there are only names.

    Args:
        inspector_json: what ``EngineInspector.get_engine_information`` returned.
        nodes: the ONNX nodes of the graph, to find in names where there is no metadata.

    Raises:
        BuildFailed: if it is not the inspector's JSON.
    """
    try:
        # The separators in the metadata are control characters.
        listed = json.loads(inspector_json or "{}", strict=False).get("Layers", [])
        if any(isinstance(entry, str) for entry in listed):
            return None
        known = {spelling: node for node in nodes for spelling in (node.replace(".", "_"), node)}
        return [_layer(entry, known) for entry in listed]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BuildFailed(
            f"TensorRT's engine inspector wrote something else than layers as JSON ({error!r}): "
            f"{inspector_json[:80]!r}; the engine's precision cannot be shown"
        ) from error


def _layer(entry: Mapping[str, Any], known: Mapping[str, str]) -> Layer:
    name = entry["Name"]
    profile = _PROFILE.search(name)
    name = _PROFILE.sub("", name)
    weights = entry.get("Weights")
    kind = entry.get("LayerType", "").casefold()
    nodes = _NODE.findall(entry.get("Metadata", "") or "") or _nodes_in(name, known)
    return Layer(
        name=name,
        kind=kind,
        tactic=entry.get("TacticName", ""),
        profile=int(profile[1]) if profile else 0,
        nodes=tuple(dict.fromkeys(nodes)),
        inputs=tuple(_tensor(item) for item in entry.get("Inputs", [])),
        outputs=tuple(_tensor(item) for item in entry.get("Outputs", [])),
        weights=_dtype(weights.get("Type", "")) if isinstance(weights, Mapping) else None,
    )


def _nodes_in(name: str, known: Mapping[str, str]) -> list[str]:
    """The ONNX nodes that a layer's name is made of; Myelin writes dots as underscores."""
    if name.startswith(("Reformatting CopyNode", "{ForeignNode[")):
        return []
    parts = _NAME_PARTS.split(_MYELIN_SUFFIX.sub("", name))
    if known:
        return [known[part] for part in parts if part in known]
    return [part for part in parts if role_of(part) in ROLES]


def _tensor(item: Mapping[str, Any]) -> Tensor:
    text = item.get("Datatype") or item.get("DataType") or item.get("Format/Datatype") or ""
    return Tensor(
        name=item.get("Name", ""),
        dtype=_dtype(text),
        is_scalar=item.get("Dimensions") in ([], [1]),
    )


def _dtype(text: str) -> str | None:
    return next((name for name, words in _DTYPES if words.search(text)), None)
