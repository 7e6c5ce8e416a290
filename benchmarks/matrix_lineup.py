"""Who takes part in the matrix: of each model eager PyTorch twice, and an engine a precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attn_export.bundle import Bundle
from attn_export.engines.ranking import slowness, unsuited
from attn_export.errors import UsageError
from attn_export.manifest import EngineRecord
from attn_export.spec import EncoderSpec

from .devices import CPU, GPU, Device, device_of
from .matrix_cell import EAGER_AUTOCAST, EAGER_FP32, ENGINES, MODELS


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One model, run in one way.

    Args:
        engine: its name in the bundle; None for eager PyTorch.
        absent: why it is not run, or None.
    """

    model: str
    variant: str
    engine: str | None = None
    absent: str | None = None

    @property
    def name(self) -> str:
        """The model and how it is run."""
        return f"{self.model} {self.variant}"


def contestants(bundles: Mapping[str, Bundle]) -> list[Contestant]:
    """All of them in order, with the reason of those that cannot take part.

    The engine of a precision is the fastest one (by what was measured when it was compiled) that
    passed parity and suits this host. Where one of them runs on a GPU, all do. BF16 is in the
    matrix only if a bundle has such an engine.
    """
    fit = {
        (model, name): _unfit(bundle, record)
        for model, bundle in bundles.items()
        for name, record in bundle.manifest.engines.items()
    }
    engines = {model: bundle.manifest.engines for model, bundle in bundles.items()}
    usable = [engines[model][name] for (model, name), reason in fit.items() if reason is None]
    device: Device = GPU if any(device_of(record) == GPU for record in usable) else CPU
    found = []
    for model in MODELS:
        found += [Contestant(model=model, variant=v) for v in (EAGER_FP32, EAGER_AUTOCAST)]
        for precision, variant in ENGINES.items():
            records = {n: r for n, r in engines[model].items() if r.precision == precision}
            if precision == "bf16" and not any(
                record.precision == "bf16" for held in engines.values() for record in held.values()
            ):
                continue
            reasons = {
                name: fit[model, name] or _elsewhere(records[name], device) for name in records
            }
            best = _fastest({n: r for n, r in records.items() if reasons[n] is None})
            absent = None if best else _why(precision, reasons)
            found.append(Contestant(model=model, variant=variant, engine=best, absent=absent))
    return found


def device_of_all(bundles: Mapping[str, Bundle], lineup: Sequence[Contestant]) -> Device:
    """The device that the chosen engines run on."""
    records = [bundles[c.model].manifest.engines[c.engine] for c in lineup if c.engine]
    return GPU if any(device_of(record) == GPU for record in records) else CPU


def require_same_size(bundles: Mapping[str, Bundle]) -> None:
    """Refuse bundles that are not the three reference models in one size.

    Raises:
        UsageError: saying which one differs, and in what.
    """
    if set(bundles) != set(MODELS):
        raise UsageError(
            f"the matrix needs the bundles {', '.join(MODELS)}; got {', '.join(bundles)}"
        )
    sizes = {}
    for name in MODELS:
        model = bundles[name].manifest.model
        if not model.get("builtin") or model.get("name") != name:
            raise UsageError(
                f"{bundles[name].directory} holds the model {model.get('name')!r}; the matrix "
                f"compares the built-in models in one size: build {name} there"
            )
        sizes[name] = _size(model["source"]["options"])
    for name in MODELS[1:]:
        if sizes[name] != sizes["mha"]:
            raise UsageError(
                f"{bundles[name].directory} and {bundles['mha'].directory} hold models of "
                f"different size ({sizes[name]}, {sizes['mha']}); rebuild one of them"
            )


def _size(options: Mapping[str, int]) -> EncoderSpec:
    """The dimensions but for the key/value heads."""
    return EncoderSpec(**{**options, "num_kv_heads": 1})


def _unfit(bundle: Bundle, record: EngineRecord) -> str | None:
    if not bundle.manifest.passed(record):
        return "it did not pass parity, or is not near enough to FP32"
    return unsuited(record)


def _elsewhere(record: EngineRecord, device: Device) -> str | None:
    return None if device_of(record) == device else f"the others run on the {device.upper()}"


def _fastest(records: Mapping[str, EngineRecord]) -> str | None:
    return min(records, key=lambda name: slowness(records[name]), default=None)


def _why(precision: str, reasons: Mapping[str, str | None]) -> str:
    if not reasons:
        return f"the bundle has no {precision.upper()} engine"
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
