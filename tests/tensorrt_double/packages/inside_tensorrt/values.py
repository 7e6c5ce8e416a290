"""Small values that cross the API: shapes and host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .world import Behaviour, World

NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}


class Dims(Behaviour):
    """``tensorrt.Dims``: a shape; -1 where it is not fixed."""

    kind = "Dims"

    def __init__(self, world: World, shape: Sequence[int] = ()) -> None:
        super().__init__(world)
        self.values = [int(size) for size in shape]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        found = self.values[index]
        return tuple(found) if isinstance(found, list) else found

    def __eq__(self, other: object) -> bool:
        return self.values == list(other) if isinstance(other, list | tuple) else self is other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return str(tuple(self.values))


def shape_of(value: Dims | Sequence[int]) -> tuple[int, ...]:
    """A shape given as Dims, list or tuple."""
    return tuple(value.values if isinstance(value, Dims) else map(int, value))


class HostMemory(Behaviour):
    """``tensorrt.IHostMemory``: bytes that Python reads through the buffer protocol only."""

    kind = "IHostMemory"

    def __init__(self, world: World, data: bytes) -> None:
        super().__init__(world)
        self.data = data
        self.nbytes = len(data)
        self.dtype = world.enum("DataType", "INT8")

    def __bytes__(self) -> bytes:
        return self.data

    def adopt(self, shown: Any) -> None:
        """Give the bytes to the object too: it is a bytearray with its methods hidden."""
        super().adopt(shown)
        bytearray.extend(shown, self.data)
