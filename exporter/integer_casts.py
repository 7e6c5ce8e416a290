"""Drop casts of int32 to int64 that nobody needs.

PyTorch modules want int64 ids; Gather and Cast read int32 as well. Without this every graph of a
user's module begins with a chain of casts.
"""

from __future__ import annotations

import onnx_ir as ir


def skip_integer_casts(graph: ir.Graph) -> None:
    """Let Gather's indices and later Casts read the int32 value; unused Casts are left behind."""
    for node in graph:
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is None or source.dtype != ir.DataType.INT32:
            continue
        if node.attributes.get_int("to", 0) != ir.DataType.INT64:
            continue
        for consumer, index in list(node.outputs[0].uses()):
            if consumer.op_type == "Cast" or (consumer.op_type == "Gather" and index == 1):
                consumer.replace_input_with(index, source)
