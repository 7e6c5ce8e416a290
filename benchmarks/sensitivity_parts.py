"""A graph's quantized nodes by layer and by role in the layer, read from their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["layer", "role", "node"]


@dataclass(frozen=True)
class Part:
    """Nodes that are quantized together.

    Args:
        name: ``layers.3``, ``layers.*.attention.query.gemm``, or a node's own name.
    """

    name: str
    kind: Kind
    nodes: tuple[str, ...]


def split_by_layer(nodes: Sequence[str]) -> tuple[list[Part], list[Part]]:
    """All nodes by layer, and those that are in numbered layers by role too.

    The layer's number is the one of a name's numbers that takes the most values, so that
    ``0.encoder.layers.7.query.gemm`` is of layer 7. A node outside of all layers is in a part of
    its module's.
    """
    values: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for node in nodes:
        for index, word in _numbers(node):
            values[tuple(node.split(".")[:index])].add(word)
    layers: defaultdict[str, list[str]] = defaultdict(list)
    roles: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes:
        layer = _layer_index(node, values)
        words = node.split(".")
        if layer is None:
            layers[node.rpartition(".")[0] or node].append(node)
        else:
            layers[".".join(words[: layer + 1])].append(node)
            roles[".".join([*words[:layer], "*", *words[layer + 1 :]])].append(node)
    return _parts(layers, "layer"), _parts(roles, "role")


def _numbers(node: str) -> list[tuple[int, str]]:
    return [(i, word) for i, word in enumerate(node.split(".")) if word.isdecimal()]


def _layer_index(node: str, values: Mapping[tuple[str, ...], set[str]]) -> int | None:
    """Which of the name's words is the layer's number; of equals the first."""
    words = node.split(".")
    found = [index for index, _ in _numbers(node)]
    return max(found, key=lambda index: len(values[tuple(words[:index])]), default=None)


def _parts(groups: Mapping[str, Sequence[str]], kind: Kind) -> list[Part]:
    return [Part(name, kind, tuple(nodes)) for name, nodes in groups.items()]
