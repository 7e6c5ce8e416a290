"""The proof of precision: what TensorRT's engine inspector says of the layers that were built.

A reduced-precision engine may run any layer in FP32 without a word. So its matrix products are
counted by the precision they compute in, every layer that fell back to FP32 is named with the
reason as far as it is known, and each attention is looked up: one fused kernel or several. What the
inspector hides is called not visible, never passed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attn_export.errors import BuildFailed
from attn_export.roles import CONTEXT, NORM, NORM_STATISTICS, SCORES, SOFTMAX, role_of

from .inspector import GEMM_ROLES, Layer, read_layers

FUSED, SEPARATE, NOT_VISIBLE = "fused", "separate", "not visible"
UNKNOWN = "unknown"
CONVERSION = "a conversion of type or layout"
NORM_IN_FP32 = "a norm's statistics"
CHOICE = "TensorRT's choice"

_ATTENTION_NODE = re.compile(rf"(?:(.*)\.)?(?:{SCORES}|{SOFTMAX}|{CONTEXT})(?:_(\d+))?")
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """A layer that computes in FP32 although less was asked for.

    Args:
        roles: of its ONNX nodes; empty where the inspector names none.
        reason: ``"kept FP32: mask"`` and the like for the keep-list's, a norm's statistics, a
            conversion, or TensorRT's choice.
        gemm: whether it multiplies matrices.
    """

    layer: str
    nodes: list[str]
    roles: list[str]
    reason: str
    gemm: bool


@dataclass(frozen=True, kw_only=True)
class LayerProof:
    """What is known of one engine's layers.

    With several optimization profiles, the counts and fallbacks are those of the weakest one.

    Args:
        precision: what was asked for.
        profiles: how many optimization profiles the inspector tells apart.
        profile: the weakest, counted from 0.
        layers: how many compute in each precision; integer and unknown ones besides.
        gemm_layers: those that multiply matrices; ``gemm_low`` are below FP32, ``gemm_kept`` are
            FP32 because the keep-list says so, ``gemm_unknown`` show no precision.
        gemm_share: of ``gemm_low`` in all GEMM layers that are neither kept nor unknown, or None
            where that is not visible.
        attention: ``"fused"``, ``"separate"`` or ``"not visible"`` by attention block.
        hidden: why layers are not visible, or None.
    """

    precision: str
    profiles: int
    profile: int
    layers: dict[str, int]
    gemm_layers: int
    gemm_low: int
    gemm_kept: int
    gemm_unknown: int
    gemm_share: float | None
    attention: dict[str, str]
    fallbacks: list[Fallback]
    hidden: str | None

    def to_json(self) -> dict[str, Any]:
        """A plain dict for the manifest."""
        return asdict(self)


def read_proof(
    inspector_json: str,
    *,
    precision: str,
    keep_fp32: Mapping[str, Sequence[str]],
    nodes: Sequence[str],
) -> LayerProof:
    """Judge an engine's layers.

    Args:
        inspector_json: what ``EngineInspector.get_engine_information`` returned as JSON.
        precision: what was asked for: ``"fp32"``, ``"fp16"``, ``"int8"``, ``"int8-fp16"``.
        keep_fp32: names of ONNX nodes that stay FP32 on purpose, by reason.
        nodes: names of all ONNX nodes of the graph; empty where they are unknown.

    Raises:
        BuildFailed: if the text is not the inspector's JSON.
    """
    layers = read_layers(inspector_json, nodes)
    blocks = _blocks(nodes or [node for layer in layers or () for node in layer.nodes])
    kept = {name: reason for reason, names in keep_fp32.items() for name in names}
    if not layers:
        what = "layers beyond their names" if layers is None else "any layer"
        hidden = f"{what}; that needs an engine built with detailed profiling verbosity"
        return _profile_proof([], precision, kept, blocks, hidden=hidden)
    profiles: dict[int, list[Layer]] = {}
    for layer in layers:
        profiles.setdefault(layer.profile, []).append(layer)
    proofs = [
        _profile_proof(
            profiles[profile], precision, kept, blocks, profile=profile, profiles=len(profiles)
        )
        for profile in sorted(profiles)
    ]
    return min(proofs, key=_strength)


def require_share(proof: LayerProof, floor: float) -> None:
    """Refuse an engine whose matrix products run in FP32 although less was asked for.

    What is not visible passes: the time against the FP32 engine has to tell then.

    Args:
        floor: the least share of GEMM layers below FP32, from 0 to 1.

    Raises:
        BuildFailed: if the share is known and smaller.
    """
    share = proof.gemm_share
    if proof.precision == "fp32" or share is None or share >= floor:
        return
    fallen = [
        ", ".join(n for n in fallback.nodes if role_of(n) in GEMM_ROLES) or fallback.layer
        for fallback in proof.fallbacks
        if fallback.gemm and fallback.reason == CHOICE
    ]
    raise BuildFailed(
        f"{share:.1%} of the GEMM layers of this {proof.precision} engine run below FP32, "
        f"{floor:.1%} is the least; in FP32 run {_few(fallen)}. Build it again on an idle GPU with "
        "a higher optimization level or more workspace, so that TensorRT finds faster tactics, or "
        "ask for a smaller share"
    )


def lines(proof: Mapping[str, Any]) -> Iterator[str]:
    """A proof's dict as text.

    Args:
        proof: what :meth:`LayerProof.to_json` gave; ``"time_ratio"``, the engine's time over the
            FP32 engine's, may be added.
    """
    if proof["layers"]:
        counts = ", ".join(f"{count} {name}" for name, count in proof["layers"].items())
        several = proof["profiles"] > 1
        of = (
            f" of profile {proof['profile']}, the weakest of {proof['profiles']}" if several else ""
        )
        yield f"layers{of}: {counts}"
    if proof["hidden"]:
        yield f"not visible: {proof['hidden']}"
    if proof["precision"] != "fp32":
        yield from _gemm_lines(proof)
    if "time_ratio" in proof:
        yield f"time: {proof['time_ratio']:.2f} of the FP32 engine's"
    if proof["attention"]:
        yield _attention_line(proof["attention"])
    by_reason: dict[str, list[str]] = {}
    for item in proof["fallbacks"]:
        by_reason.setdefault(item["reason"], []).append(", ".join(item["nodes"]) or item["layer"])
    for reason, names in by_reason.items():
        yield f"in FP32 ({reason}): {_few(names)}"


def _gemm_lines(proof: Mapping[str, Any]) -> Iterator[str]:
    if proof["gemm_share"] is None:
        all_kept = 0 < proof["gemm_layers"] == proof["gemm_kept"] and not proof["hidden"]
        what = "none, all are kept FP32 on purpose" if all_kept else NOT_VISIBLE
        yield f"GEMM layers below FP32: {what}"
        return
    counted = proof["gemm_layers"] - proof["gemm_kept"] - proof["gemm_unknown"]
    besides = [
        f"{proof[key]} {text}"
        for key, text in (("gemm_kept", "kept FP32 on purpose"), ("gemm_unknown", "unknown"))
        if proof[key]
    ]
    note = f"; {', '.join(besides)}" if besides else ""
    yield (
        f"GEMM layers below FP32: {proof['gemm_low']} of {counted} "
        f"({proof['gemm_share']:.1%}){note}"
    )


def _attention_line(attention: Mapping[str, str]) -> str:
    found: dict[str, list[str]] = {FUSED: [], SEPARATE: [], NOT_VISIBLE: []}
    for block, state in attention.items():
        found[state].append(block)
    if len(found[NOT_VISIBLE]) == len(attention):
        return f"attention: not visible in {len(attention)} blocks"
    text = f"attention: {len(found[FUSED])} of {len(attention)} blocks are one fused kernel"
    rest = [f"{state}: {_few(found[state])}" for state in (SEPARATE, NOT_VISIBLE) if found[state]]
    return "; ".join([text, *rest])


def _strength(proof: LayerProof) -> tuple[float, int]:
    share = 1.0 if proof.gemm_share is None else proof.gemm_share
    return share, list(proof.attention.values()).count(FUSED)


def _profile_proof(
    layers: Sequence[Layer],
    precision: str,
    kept: Mapping[str, str],
    blocks: Mapping[str, str],
    *,
    hidden: str | None = None,
    profile: int = 0,
    profiles: int = 1,
) -> LayerProof:
    opaque = [layer.name for layer in layers if layer.hides_gemms]
    seen = [layer for layer in layers if layer.works and not layer.hides_gemms]
    if opaque:
        hidden = f"the kernels inside {_few(opaque)}, which the inspector shows as one layer"
    gemms = [layer for layer in seen if layer.is_gemm]
    gemm_kept = sum(layer.precision == "fp32" and _kept(layer, kept) is not None for layer in gemms)
    unknown = sum(layer.precision is None for layer in gemms)
    low = sum(layer.precision not in ("fp32", None) for layer in gemms)
    counted = len(gemms) - gemm_kept - unknown
    return LayerProof(
        precision=precision,
        profiles=profiles,
        profile=profile,
        layers=dict(sorted(Counter(layer.precision or UNKNOWN for layer in seen).items())),
        gemm_layers=len(gemms),
        gemm_low=low,
        gemm_kept=gemm_kept,
        gemm_unknown=unknown,
        gemm_share=None if hidden or not counted else low / counted,
        attention=_attention(seen, blocks),
        fallbacks=[
            _fallback(layer, kept)
            for layer in seen
            if precision != "fp32" and layer.precision == "fp32"
        ],
        hidden=hidden,
    )


def _kept(layer: Layer, kept: Mapping[str, str]) -> str | None:
    """The keep-list's reason for a layer. A GEMM is kept only if its own products are."""
    own = [node for node in layer.nodes if not layer.is_gemm or role_of(node) in GEMM_ROLES]
    found = [kept[node] for node in own if node in kept]
    return found[0] if found and (not layer.is_gemm or len(found) == len(own)) else None


def _fallback(layer: Layer, kept: Mapping[str, str]) -> Fallback:
    reason = _kept(layer, kept)
    if layer.converts:
        why = CONVERSION
    elif reason is not None:
        why = f"kept FP32: {reason}"
    elif not layer.is_gemm and layer.roles & {NORM, NORM_STATISTICS}:
        why = NORM_IN_FP32
    else:
        why = CHOICE
    return Fallback(
        layer=layer.name,
        nodes=list(layer.nodes),
        roles=sorted(layer.roles),
        reason=why,
        gemm=layer.is_gemm,
    )


def _blocks(nodes: Sequence[str]) -> dict[str, str]:
    """The attention block of every scores, softmax and context node: its scope.

    A second attention in the same scope has ``_2`` at the end of its nodes' names.
    """
    found = {}
    for node in nodes:
        if match := _ATTENTION_NODE.fullmatch(node):
            scope = match[1] or "attention"
            found[node] = f"{scope}_{match[2]}" if match[2] else scope
    attentions = {block for node, block in found.items() if role_of(node) == SCORES}
    return {node: block for node, block in found.items() if block in attentions}


def _attention(layers: Sequence[Layer], blocks: Mapping[str, str]) -> dict[str, str]:
    states = dict.fromkeys(blocks.values(), NOT_VISIBLE)
    nameless = 0
    for layer in layers:
        held = {blocks[node] for node in layer.nodes if node in blocks}
        if layer.is_mha:
            nameless += not held
            states.update((block, FUSED) for block in held if states[block] != SEPARATE)
        elif layer.is_gemm:
            products = {blocks[n] for n in layer.nodes if n in blocks and role_of(n) in GEMM_ROLES}
            states.update(dict.fromkeys(products, SEPARATE))
    unseen = [block for block, state in states.items() if state == NOT_VISIBLE]
    if unseen and nameless >= len(unseen):
        states.update(dict.fromkeys(unseen, FUSED))
    return states


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
