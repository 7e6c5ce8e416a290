"""An ONNX graph as a TensorRT network, and the layers of it that stay FP32 under weak typing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_export.errors import BuildFailed

from .trt_api import is_strongly_typed, version

UNNAMED = "(Unnamed Layer"
# Their type follows from what they are; TensorRT 8.6 refuses or ignores a precision on them.
NEVER_PINNED = ("ASSERTION", "CAST", "CONSTANT", "DEQUANTIZE", "QUANTIZE", "SHAPE")


def make_network(trt: Any, builder: Any) -> tuple[Any, str]:
    """An empty network and the name of the one flag it needs.

    The flags' numbers differ: STRONGLY_TYPED of 10 is another flag of 8.6.
    """
    name = "STRONGLY_TYPED" if is_strongly_typed(trt) else "EXPLICIT_BATCH"
    flag = getattr(trt.NetworkDefinitionCreationFlag, name)
    return builder.create_network(1 << int(flag)), name


def parse_graph(trt: Any, network: Any, log: Any, graph: Path) -> Any:
    """Read an ONNX file into the network.

    Returns the parser: it owns the weights, so it must live until the engine is built.

    Raises:
        BuildFailed: with each node that TensorRT does not take.
    """
    parser = trt.OnnxParser(network, log)
    # By its path, so that external data is found beside it.
    if parser.parse_from_file(str(graph)):
        if not network.num_outputs:  # 8.6 takes an empty file for a graph
            raise BuildFailed(
                f"TensorRT {version(trt)} found nothing in {graph.name}; copy the bundle again or "
                "rebuild it"
            )
        return parser
    problems = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    listed = "\n  ".join(problems or log.errors() or ["no reason was given"])
    raise BuildFailed(
        f"TensorRT {version(trt)} cannot read {graph.name}:\n  {listed}\n"
        "change these operations in the model, or use a newer TensorRT"
    )


def _parser_error(error: Any) -> str:
    """One line with what this version tells: 8.6 knows a node's index, 10 its name as well."""
    where = []
    if hasattr(error, "node_name") and error.node_name():
        where.append(repr(error.node_name()))
    if hasattr(error, "node_operator") and error.node_operator():
        where.append(f"({error.node_operator()})")
    if not where and error.node() >= 0:
        where.append(str(error.node()))
    place = f"node {' '.join(where)}: " if where else ""
    return f"{place}{error.desc().strip()}"


def check_inputs(network: Any, names: Iterable[str]) -> None:
    """Hold the graph's inputs against the ones that profiles are made for.

    Raises:
        BuildFailed: if they differ.
    """
    found = {network.get_input(index).name for index in range(network.num_inputs)}
    if found != set(names):
        raise BuildFailed(
            f"the graph takes {', '.join(sorted(found))} and the bundle says "
            f"{', '.join(sorted(names))}; export it again"
        )


def node_names(network: Any) -> tuple[str, ...]:
    """The ONNX nodes that the layers came from, each once and in their order."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    named = (
        (_metadata_nodes(layer) or [_own_name(layer)]) for layer in layers if not _constant(layer)
    )
    return tuple(dict.fromkeys(name for names in named for name in names))


def make_io_fp16(trt: Any, network: Any) -> None:
    """Bind float inputs and outputs as FP16 (weak typing: a typed graph says it itself)."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in tensors:
        if tensor.dtype == trt.DataType.FLOAT:
            tensor.dtype = trt.DataType.HALF


def pin_fp32(
    trt: Any, network: Any, keep: Mapping[str, Sequence[str]]
) -> tuple[int, dict[str, list[str]]]:
    """Ask for FP32 in every layer that came from a node of the keep-list.

    Args:
        keep: node names of the ONNX graph by role.

    Returns the number of layers pinned, and by role the nodes that no layer came from.
    """
    wanted = {name for names in keep.values() for name in names}
    met: set[str] = set()
    pinned = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        sources = _nodes_of(layer) & wanted
        met |= sources
        if sources and _may_be_pinned(trt, layer):
            pinned += 1
            layer.precision = trt.DataType.FLOAT
            for output in range(layer.num_outputs):
                layer.set_output_type(output, trt.DataType.FLOAT)
    unmet = {role: [name for name in names if name not in met] for role, names in keep.items()}
    return pinned, {role: names for role, names in unmet.items() if names}


def _constant(layer: Any) -> bool:
    return bool(layer.type.name == "CONSTANT")


def _own_name(layer: Any) -> str:
    """Its name, or its output's where 8.6 gave it none."""
    named = layer.name if not layer.name.startswith(UNNAMED) else layer.get_output(0).name
    return str(named)


def _metadata_nodes(layer: Any) -> list[str]:
    return re.findall(r"\[ONNX Layer: ([^\]]+)\]", layer.metadata)


def _nodes_of(layer: Any) -> set[str]:
    """The ONNX nodes that a layer may come from.

    From 10 on the parser writes them into the metadata. It names the first layer of a node as the
    node, later ones with a number after it (onnx-tensorrt, ImporterContext::registerLayer). 8.6
    leaves some without a name, a LayerNormalization among them; their output has the ONNX value's,
    which in graphs of ours is the node's.
    """
    return set(_metadata_nodes(layer)) or {
        layer.name,
        re.sub(r"_\d+$", "", layer.name),
        *(layer.get_output(index).name for index in range(layer.num_outputs)),
    }


def _may_be_pinned(trt: Any, layer: Any) -> bool:
    if layer.type.name in NEVER_PINNED or not layer.num_outputs:
        return False
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    return all(output.dtype in floats and not output.is_shape_tensor for output in outputs)
