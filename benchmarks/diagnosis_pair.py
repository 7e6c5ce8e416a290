"""Two typings of one model: the FP32 graph, and a rounding twin or a Q/DQ graph made from it.

They share the names of nodes and values. What typing added (Casts, QuantizeLinear, ...) has names
of its own and belongs to the node that it feeds, or to the node whose result it rounds.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from attn_export.errors import BundleError
from attn_export.exporter.graph_file import read_graph
from attn_export.exporter.twin import MOVES

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


class Pair:
    """Both graphs, opened once.

    Attributes:
        full, typed: the graphs.
        nodes: the FP32 graph's nodes in topological order.
        outputs: the names of its outputs.
        typed_nodes: names of the nodes that do something else in the typed graph, in that order.
            Nodes that only move data are left out: what they move was rounded where it was made.
        by_name, low_nodes: the nodes of the FP32 and the typed graph, by name.
        values, low_values: their inputs and activations, by name.

    Raises:
        BundleError: if the graphs have other nodes, outputs or opsets.
    """

    def __init__(self, full: Path, typed: Path) -> None:
        self.full, self.typed = read_graph(full), read_graph(typed)
        self.nodes: tuple[ir.Node, ...] = tuple(self.full.graph)
        self.outputs = [value.name or "" for value in self.full.graph.outputs]
        self.by_name = {node.name or "": node for node in self.nodes}
        self.values = _values_of(self.full.graph)
        self.low_nodes = {node.name or "": node for node in self.typed.graph}
        self.low_values = _values_of(self.typed.graph)
        problem = self._mismatch()
        if problem:
            raise BundleError(f"{typed} is no typing of {full}: {problem}; type that graph again")
        self.typed_nodes = tuple(node.name or "" for node in self.nodes if self._is_typed(node))

    def _mismatch(self) -> str | None:
        missing = self.by_name.keys() - self.low_nodes.keys()
        if missing:
            return f"it has no node {min(missing)!r}"
        outputs = [value.name for value in self.typed.graph.outputs]
        if outputs != self.outputs:
            return f"its outputs are {outputs}, not {self.outputs}"
        opsets = [model.opset_imports.get("") for model in (self.full, self.typed)]
        return f"the opsets are {opsets[0]} and {opsets[1]}" if opsets[0] != opsets[1] else None

    def is_quantized(self, name: str) -> bool:
        """Whether a node reads or writes through QuantizeLinear in the typed graph."""
        return any(helper.op_type == "QuantizeLinear" for helper in self._helpers(name))

    def is_rounded(self, name: str) -> bool:
        """Whether the typed graph stores a node's result in FP16."""
        return any(
            value.dtype == HALF
            for node in (self.low_nodes[name], *self._roundings(name))
            for value in node.outputs
        )

    def readers(self, node: ir.Node) -> list[ir.Node]:
        """The nodes that compute with a node's result, and those that only move it there."""
        found: dict[ir.Node, None] = {}
        queue = [node]
        while queue:
            for value in queue.pop().outputs:
                for consumer in value.consumers():
                    if consumer in found or not _reads_floats(consumer):
                        continue
                    found[consumer] = None
                    if only_moves(consumer):
                        queue.append(consumer)
        return list(found)

    def makers(self, name: str) -> list[str]:
        """The typed nodes whose results a node reads, also through nodes that only move them."""
        found: dict[str, None] = {}
        queue = list(self.by_name[name].inputs)
        while queue:
            value = queue.pop()
            node = value.producer() if value is not None else None
            if node is not None and only_moves(node):
                queue += node.inputs
            elif node is not None and node.name in self.typed_nodes:
                found[node.name or ""] = None
        return list(found)

    def _helpers(self, name: str) -> list[ir.Node]:
        """What typing added around a node."""
        low = self.low_nodes[name]
        queue = [value.producer() for value in low.inputs if value is not None]
        found = self._roundings(name)
        while queue:
            node = queue.pop()
            if node is not None and node.name not in self.by_name:
                found.append(node)
                inputs = [v for v in node.inputs if v is not None]
                queue += [v.producer() for v in inputs if v.name not in self.values]
        return found

    def _roundings(self, name: str) -> list[ir.Node]:
        outputs = self.by_name[name].outputs
        return [node for value in outputs for node in self.rounding(name, value.name or "")]

    def rounding(self, name: str, output: str) -> list[ir.Node]:
        """The nodes that typing put between a node and its output's old name, in order."""
        chain: list[ir.Node] = []
        node = self.low_values[output].producer() if output in self.low_values else None
        while node is not None and node.name != name:
            if node.name in self.by_name or node.inputs[0] is None:
                return []
            chain.insert(0, node)
            node = node.inputs[0].producer()
        return chain

    def _is_typed(self, node: ir.Node) -> bool:
        name = node.name or ""
        if only_moves(node):
            return False
        low = self.low_nodes[name]
        values = [v for v in (*low.inputs, *low.outputs) if v is not None]
        return bool(self._helpers(name)) or any(value.dtype == HALF for value in values)


def only_moves(node: ir.Node) -> bool:
    """Whether a node only moves what another one computed; a lookup in weights is more."""
    weights = (v for v in node.inputs if v is not None and v.const_value is not None)
    return node.op_type in MOVES and not any(value.dtype == FULL for value in weights)


def _reads_floats(node: ir.Node) -> bool:
    return any(value is not None and value.dtype == FULL for value in node.inputs)


def _values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return {value.name or "": value for value in [*graph.inputs, *made]}
