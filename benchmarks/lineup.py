"""Who takes part in a measurement: engines that run here, eager PyTorch on their devices, peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from attn_export.bundle import Bundle
from attn_export.engines import cuda_driver
from attn_export.errors import HostError
from attn_export.manifest import EngineRecord

from .candidates import BUCKETED, EAGER, EAGER_MHA, ENGINE, Settings
from .devices import CPU, GPU, Device, TorchCuda, device_of, eager_device
from .judge import is_widened
from .peers import PREFIX, check_peer
from .rounds import Rounds
from .torch_probe import probe_torch


class Lineup:
    """Starts the candidates of a measurement.

    Args:
        common: the settings that all of them share.

    Attributes:
        skipped: what is left out before it was tried, and engines that this host cannot run.
    """

    def __init__(self, bundle: Bundle, field: Rounds, common: Settings) -> None:
        self._bundle, self._field, self._common = bundle, field, common
        self._torch = TorchCuda(available=False)
        self._across = False
        self.skipped: dict[str, str] = {}

    def start(
        self, chosen: Mapping[str, EngineRecord], *, named: bool, peers: Sequence[str] = ()
    ) -> None:
        """Start each engine's candidates, the eager ones beside them, and the peers.

        The eager ones come first, then the peers. A peer that cannot run is skipped.

        Args:
            named: the engine was asked for by name, so that it must run.
            peers: names of :data:`.peers.PEERS`.

        Raises:
            UsageError: if a peer is unknown; before anything is started.
            HostError: if this host cannot run the named engine, or none at all.
            AttnExportError: if an engine fails in another way.
        """
        for name in peers:
            check_peer(name)
        if any(device_of(record) == GPU for record in chosen.values()):
            self._torch = probe_torch(self._field.eager)
        devices: dict[Device, None] = {}
        for name, record in chosen.items():
            device = eager_device(device_of(record), self._torch)
            if self._start_engine(name, record, device, named=named):
                devices[device] = None
                self._across |= device != device_of(record)
        if not devices:
            raise HostError(
                "this machine can run no engine of the bundle: "
                + "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            )
        for device in sorted(devices):
            self._start_eager(device)
        for name in peers:
            self._start_peer(name, devices)
        self._field.entries.sort(key=lambda e: (not e.is_eager, e.settings.peer is not None))

    def notes(self) -> list[str]:
        """What a reader must know of the comparison."""
        eager = [e.settings for e in self._field.entries if e.is_eager and e.settings.peer is None]
        devices = {settings.eager_device for settings in eager}
        notes = []
        if self._across and CPU in devices:
            notes.append(
                f"EAGER ON THE CPU: {self._torch.problem}; the ratios of the GPU's engines are "
                "ratios across devices"
            )
        if GPU in devices:
            notes.append(
                "eager on the GPU (@gpu) is timed as the engine is: from NumPy arrays on the host, "
                "through the device, to NumPy arrays on the host"
            )
        return notes

    def _start_engine(
        self, name: str, record: EngineRecord, device: Device, *, named: bool
    ) -> bool:
        """Start an engine's candidates; whether there is one."""
        started = False
        # One row shows that a widened engine gains nothing.
        for kind in (BUCKETED,) if is_widened(record) else ENGINE:
            settings = replace(self._common, candidate=kind, engine=name, eager_device=device)
            reason = self._field.start(settings, optional=not named)
            if reason is None:
                started = True
            elif started:  # the ones before it have taken the memory
                self.skipped[settings.name] = reason
            else:
                self.skipped[name] = reason
                return False
        return started

    def _start_eager(self, device: Device) -> None:
        model = self._bundle.manifest.model
        for kind in EAGER[device]:
            settings = replace(self._common, candidate=kind, engine=None, eager_device=device)
            if kind == EAGER_MHA and not model.get("builtin"):
                self.skipped[settings.name] = "only a built-in model has an MHA of the same size"
            elif kind == EAGER_MHA and model.get("name") == "mha":
                self.skipped[settings.name] = "the model is that MHA itself: see eager-padded"
            else:
                self._field.start(settings)

    def _start_peer(self, name: str, wanted: Mapping[Device, None]) -> None:
        """Start a peer on the devices of the comparison, of those that it knows."""
        peer = check_peer(name)
        devices = [device for device in peer.devices if device in wanted] or [peer.devices[0]]
        for device in devices:
            settings = replace(
                self._common,
                candidate=PREFIX + name,
                engine=None,
                eager_device=device,
                sequences=str(self._field.data),
            )
            problem = cuda_driver.probe().problem if device == GPU else None
            if peer.builtin and not self._bundle.manifest.model.get("builtin"):
                self.skipped[settings.name] = peer.builtin
            elif problem:
                self.skipped[settings.name] = f"it needs a GPU, and {problem}"
            else:
                self._field.start(settings)
