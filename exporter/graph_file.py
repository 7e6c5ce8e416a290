"""Read and write ONNX files without holding the weights twice.

protobuf needs three times the weights to write one file. Here the graph without its large
weights is serialised, and they are streamed into the same message one by one (protocol buffers
encoding, fields may come in any order), so that one file costs no more than its largest weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

ONE_FILE_LIMIT = 1 << 30  # bytes of weights; protobuf itself stops at 2 GiB
_LARGE = 1 << 10
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9


@dataclass(frozen=True)
class Place:
    """Where a weight's raw bytes stand: file name, offset and length in bytes."""

    file: str
    offset: int
    length: int


def read_graph(path: Path) -> ir.Model:
    """Open a graph; weights in external files stay on disk until they are used."""
    return ir.load(path)


def write_graph(model: ir.Model, path: Path, *, limit: int = ONE_FILE_LIMIT) -> dict[str, Place]:
    """Write a graph and return the place of every large weight.

    One file up to ``limit`` bytes of weights, else external data in ``<name>.data`` beside it.
    """
    values = list(model.graph.initializers.values())
    large = [v for v in values if _is_streamed(v.const_value)]
    if sum(v.const_value.nbytes for v in large if v.const_value is not None) > limit:
        return _write_external(model, path)
    tensors = {v.name: v.const_value for v in large if v.name and v.const_value is not None}
    skeleton = _serialise_without(model, large)
    with path.open("wb") as stream:
        offsets = _stream(stream, skeleton, tensors)
    return {name: Place(path.name, *place) for name, place in offsets.items()}


def in_places(model: ir.Model, places: dict[str, Place]) -> onnx.ModelProto:
    """The graph with every streamed weight as external data that stands in a written file."""
    values = [model.graph.initializers[name] for name in places]
    proto = _serialise_without(model, values)
    for value in values:
        tensor = value.const_value
        if tensor is not None and value.name:
            proto.graph.initializer.append(_external(value.name, tensor, places[value.name]))
    return proto


def _external(name: str, tensor: ir.TensorProtocol, place: Place) -> onnx.TensorProto:
    proto = onnx.TensorProto(
        name=name,
        data_type=int(tensor.dtype),
        dims=[int(dim) for dim in tensor.shape.numpy()],
        data_location=onnx.TensorProto.EXTERNAL,
    )
    entries = {"location": place.file, "offset": place.offset, "length": place.length}
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


def _is_streamed(tensor: ir.TensorProtocol | None) -> bool:
    """Large, or still in the file it was read from."""
    return tensor is not None and (tensor.nbytes >= _LARGE or isinstance(tensor, ir.ExternalTensor))


def _write_external(model: ir.Model, path: Path) -> dict[str, Place]:
    ir.save(model, path, external_data=f"{path.name}.data")
    places = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            offset, length = int(entries.get("offset", 0)), int(entries["length"])
            places[tensor.name] = Place(entries["location"], offset, length)
    return places


def _serialise_without(model: ir.Model, large: list[ir.Value]) -> onnx.ModelProto:
    graph = model.graph
    order = list(graph.initializers.values())
    for value in large:
        del graph.initializers[value.name or ""]
    try:
        return ir.serde.serialize_model(model)
    finally:
        graph.initializers.clear()
        for value in order:
            graph.initializers[value.name or ""] = value


def _stream(
    stream: BinaryIO, skeleton: onnx.ModelProto, tensors: dict[str, ir.TensorProtocol]
) -> dict[str, tuple[int, int]]:
    graph = skeleton.graph.SerializeToString()
    skeleton.ClearField("graph")
    heads = {name: _tensor_head(name, tensor) for name, tensor in tensors.items()}
    sizes = {name: len(heads[name]) + tensor.nbytes for name, tensor in tensors.items()}
    records = sum(len(_key(_GRAPH_INITIALIZER, size)) + size for size in sizes.values())
    stream.write(skeleton.SerializeToString())
    stream.write(_key(_MODEL_GRAPH, len(graph) + records))
    stream.write(graph)
    places = {}
    for name, tensor in tensors.items():
        stream.write(_key(_GRAPH_INITIALIZER, sizes[name]) + heads[name])
        places[name] = (stream.tell(), tensor.nbytes)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.tofile(stream)
            tensor.release()  # or the mapped file would count as memory in use
        else:
            stream.write(tensor.tobytes())
    return places


def _tensor_head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A TensorProto up to its raw data."""
    proto = onnx.TensorProto(
        name=name, data_type=int(tensor.dtype), dims=[int(d) for d in tensor.shape.numpy()]
    )
    head: bytes = proto.SerializeToString()
    return head + _key(_TENSOR_RAW_DATA, tensor.nbytes)


def _key(field: int, length: int) -> bytes:
    """Tag and length of a length-delimited field (wire type 2)."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
