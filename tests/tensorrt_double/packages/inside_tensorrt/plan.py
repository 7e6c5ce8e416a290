"""The plan file: our own container, with the checks at loading that the real one has."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field

MAGIC = b"ftrt"
HEADER = struct.Struct("<4sQQ")  # magic, bytes of JSON, bytes of ONNX


@dataclass
class TensorPlan:
    """One input or output: its name, DataType member, and shape with -1 and axis names."""

    name: str
    dtype: str
    shape: list[int]
    axes: list[str]


@dataclass
class LayerPlan:
    """One node: its name, op and the DataType member it computes in."""

    name: str
    op: str
    dtype: str
    inputs: list[TensorPlan]
    outputs: list[TensorPlan]


@dataclass
class Plan:
    """Everything that an engine needs.

    Args:
        profiles: for each profile, input name -> (min, opt, max).
        verbosity: member of ProfilingVerbosity.
    """

    version: str
    compute_capability: str
    name: str
    verbosity: str
    version_compatible: bool
    lean_runtime: bool
    profile_sharing: bool
    inputs: list[TensorPlan]
    outputs: list[TensorPlan]
    layers: list[LayerPlan]
    profiles: list[dict[str, list[list[int]]]]
    model: bytes = field(default=b"", repr=False)

    def to_bytes(self) -> bytes:
        """The file."""
        body = asdict(self)
        body.pop("model")
        text = json.dumps(body).encode()
        return HEADER.pack(MAGIC, len(text), len(self.model)) + text + self.model

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Read the file.

        Raises:
            ValueError: with the line that TensorRT would log.
        """
        if data[:4] != MAGIC:
            raise ValueError(
                "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed."
            )
        sizes = HEADER.unpack_from(data) if len(data) >= HEADER.size else (MAGIC, 1, 1)
        if len(data) != HEADER.size + sizes[1] + sizes[2]:
            raise ValueError(
                "Serialization assertion plan->header.size == blobSize failed. The plan file is "
                "truncated."
            )
        body = json.loads(data[HEADER.size : HEADER.size + sizes[1]])
        for side in ("inputs", "outputs"):
            body[side] = [TensorPlan(**tensor) for tensor in body[side]]
        for layer in body["layers"]:
            layer["inputs"] = [TensorPlan(**tensor) for tensor in layer["inputs"]]
            layer["outputs"] = [TensorPlan(**tensor) for tensor in layer["outputs"]]
        body["layers"] = [LayerPlan(**layer) for layer in body["layers"]]
        return cls(**body, model=data[HEADER.size + sizes[1] :])
