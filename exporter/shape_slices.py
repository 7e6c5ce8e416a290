"""Part of a shape, for TensorRT 8.6.

``Shape`` takes ``start`` and ``end`` since opset 15. The importer of TensorRT 8.6 ignores them and
gives the whole shape, mostly without an error. A Gather picks the same part on every version.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def pick_from_whole_shapes(graph: ir.Graph) -> None:
    """Rewrite every Shape that gives a part, in place."""
    for node in list(graph):
        if node.op_type == "Shape" and ("start" in node.attributes or "end" in node.attributes):
            _pick(graph, node)


def _pick(graph: ir.Graph, node: ir.Node) -> None:
    value, part = node.inputs[0], node.outputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", rank)
    if rank is None or end is None:
        return  # a value of unknown rank: the lint says what TensorRT 8.6 makes of it
    axes = np.arange(rank, dtype=np.int64)[start:end]
    index = ir.Value(name=f"{part.name}.axes", const_value=ir.tensor(axes))
    index.shape, index.dtype = ir.Shape([len(axes)]), ir.DataType.INT64
    graph.initializers[index.name or ""] = index
    whole = ir.node("Shape", [value])
    whole.metadata_props.update(node.metadata_props)
    whole.outputs[0].shape, whole.outputs[0].dtype = ir.Shape([rank]), ir.DataType.INT64
    gather = ir.node("Gather", [whole.outputs[0], index], attributes={"axis": 0})
    gather.metadata_props.update(node.metadata_props)
    gather.outputs[0].shape, gather.outputs[0].dtype = ir.Shape([len(axes)]), ir.DataType.INT64
    graph.insert_before(node, [whole, gather])
    part.replace_all_uses_with(gather.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
