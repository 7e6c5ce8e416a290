"""A graph without its weights in memory: they stay in the files that hold them.

protobuf needs several times the weights to read a graph, change it and write it again. Here the
large weights of the file are stepped over (protocol buffers encoding) and named by their place, as
ONNX's external data, so that ONNX Runtime maps them from the file itself.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx

from attn_export.bundle import sha256
from attn_export.errors import BundleError

_LARGE = 1 << 10  # bytes of one weight
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5


class _Field(NamedTuple):
    """One record of a message: its tag's first byte, its content's first and the byte after."""

    number: int
    begin: int
    start: int
    stop: int


def read_structure(graph: Path) -> onnx.ModelProto:
    """The graph, its large weights as external data in the folder of ``graph``.

    Raises:
        BundleError: if the file is not there or is no ONNX graph.
    """
    try:
        with (
            graph.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _read(data, graph.name)
    except Exception as error:  # protobuf raises unrelated classes
        raise BundleError(f"{graph} cannot be read as an ONNX graph: {error}") from error


def graph_digest(graph: Path) -> str:
    """The sha256 of a graph with all its weights.

    That of the file, where it holds them all; else that of the digests of the file and of its
    external data, in the order of their names.

    Raises:
        BundleError: as :func:`read_structure` does, or if external data is missing.
    """
    held = {
        entry.value
        for tensor in read_structure(graph).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    } - {graph.name}
    digests = [sha256(graph)]
    for name in sorted(held):
        if not (graph.parent / name).is_file():
            raise BundleError(f"{graph.parent / name} is missing; it holds weights of {graph.name}")
        digests.append(sha256(graph.parent / name))
    return digests[0] if not held else hashlib.sha256("".join(digests).encode()).hexdigest()


def _read(data: mmap.mmap, file: str) -> onnx.ModelProto:
    model, graph = bytearray(), bytearray()
    weights = []
    for part in _fields(data, 0, len(data)):
        if part.number != _MODEL_GRAPH:
            model += data[part.begin : part.stop]
            continue
        for inner in _fields(data, part.start, part.stop):
            if inner.number == _GRAPH_INITIALIZER and inner.stop - inner.start >= _LARGE:
                weights.append(_weight(data, inner, file))
            else:
                graph += data[inner.begin : inner.stop]
    proto: onnx.ModelProto = onnx.ModelProto.FromString(bytes(model))
    proto.graph.MergeFromString(bytes(graph))
    proto.graph.initializer.extend(weights)
    if not proto.graph.node:
        raise ValueError("it has no nodes")
    return proto


def _weight(data: mmap.mmap, record: _Field, file: str) -> onnx.TensorProto:
    """One weight; its raw bytes, where it has them, are named by their place."""
    head = bytearray()
    raw = None
    for part in _fields(data, record.start, record.stop):
        if part.number == _TENSOR_RAW_DATA:
            raw = part
        else:
            head += data[part.begin : part.stop]
    tensor: onnx.TensorProto = onnx.TensorProto.FromString(bytes(head))
    if raw is not None:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": file, "offset": raw.start, "length": raw.stop - raw.start}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[_Field]:
    while begin < end:
        tag, start = _varint(data, begin)
        kind = tag & 7
        if kind == _COUNTED:
            length, start = _varint(data, start)
            stop = start + length
        elif kind == _VARINT:
            stop = _varint(data, start)[1]
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = start + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"byte {begin} begins no protobuf field")
        if stop > end:
            raise ValueError(f"the field at byte {begin} is cut off")
        yield _Field(tag >> 3, begin, start, stop)
        begin = stop


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
