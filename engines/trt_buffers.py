"""The memory of one stream's inputs and outputs: page-locked on the host, and on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attn_export.spec import TensorSpec

from .cuda_runtime import DeviceBuffer, PinnedBuffer
from .profiles import Profile
from .session import Array
from .trt_engine import sized


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor at one shape: where it is on the host and on the device.

    Args:
        view: the page-locked memory as an array of that shape.
        bytes: how many are copied.
    """

    name: str
    view: Array
    host: int
    device: int
    bytes: int


class TensorBuffers:
    """Buffers for all inputs and outputs, large enough for every profile; addresses never change.

    Raises:
        HostError: if there is no room for them.
    """

    def __init__(self, specs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> None:
        self._device: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}
        try:
            for spec in specs:
                size = max(_size(spec, one.batch[2], one.sequence[2]) for one in profiles)
                self._device[spec.name] = DeviceBuffer(size, spec.name)
                self._pinned[spec.name] = PinnedBuffer(size, spec.name)
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> dict[str, int]:
        """The device address of each tensor."""
        return {name: buffer.address for name, buffer in self._device.items()}

    @property
    def device_bytes(self) -> int:
        """Device memory of all of them."""
        return sum(buffer.size for buffer in self._device.values())

    def transfer(self, spec: TensorSpec, batch: int, length: int) -> Transfer:
        """A tensor at one shape."""
        pinned = self._pinned[spec.name]
        return Transfer(
            name=spec.name,
            view=pinned.view(sized(spec, batch, length), np.dtype(spec.dtype)),
            host=pinned.address,
            device=self._device[spec.name].address,
            bytes=_size(spec, batch, length),
        )

    def close(self) -> None:
        """Free them all."""
        for name, buffer in self._device.items():
            buffer.close()
            if name in self._pinned:
                self._pinned[name].close()


def _size(spec: TensorSpec, batch: int, length: int) -> int:
    count = int(np.prod(sized(spec, batch, length), dtype=np.int64))
    return count * np.dtype(spec.dtype).itemsize
