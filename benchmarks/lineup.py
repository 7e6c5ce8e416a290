"""Who takes part in a measurement: engines that run here, and eager PyTorch on their devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attn_export.bundle import Bundle
from attn_export.errors import HostError
from attn_export.manifest import EngineRecord

from .candidates import BUCKETED, EAGER, EAGER_MHA, ENGINE, Settings
from .devices import CPU, GPU, Device, TorchCuda, device_of, eager_device
from .judge import runs_on_cpu
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

    def start(self, chosen: Mapping[str, EngineRecord], *, named: bool) -> None:
        """Start each engine's candidates and the eager ones beside them; the eager come first.

        Args:
            named: the engine was asked for by name, so that it must run.

        Raises:
            HostError: if this host cannot run the named engine, or none at all.
            AttnExportError: if an engine fails in another way.
        """
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
        self._field.entries.sort(key=lambda entry: not entry.is_eager)

    def notes(self) -> list[str]:
        """What a reader must know of the comparison."""
        devices = {e.settings.eager_device for e in self._field.entries if e.is_eager}
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
        # A CPU computes FP16 in FP32: one row shows that it gains nothing.
        widened = runs_on_cpu(record) and record.precision == "fp16"
        started = False
        for kind in (BUCKETED,) if widened else ENGINE:
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
