"""One model beside the other two kinds of attention, on every machine whose limits are known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

from .estimate import Estimate, estimate
from .estimate_model import variants
from .estimate_sparse import SparseSavings, sparse_savings
from .hardware import GPUS, HERE, TIERS, Limits
from .roofline import Roofline, roofline

SCHEMA_VERSION = 1
NOT_MEASURED = "the limits of this machine (here) were not measured yet; add --measure"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a model reaches at most on one machine.

    Args:
        rooflines: by tier, of the tiers that have a number for the precision.
        unknown: by tier, why there is none.
    """

    name: str
    rooflines: dict[str, Roofline]
    unknown: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        found = {tier: item.to_json() for tier, item in self.rooflines.items()}
        return {"name": self.name, "rooflines": found, "unknown": self.unknown}


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a rate takes: of a machine's one tier as shares, above 1 where it is too much.

    Args:
        bandwidth: of the memory bandwidth; ``bandwidth_unfused`` if attention matrices pass
            through memory.
        throughput: of the most samples a second.
    """

    attention: str
    tier: str
    bandwidth: float
    bandwidth_unfused: float
    throughput: float


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that ``attn-export estimate`` shows.

    Args:
        model: the model that was asked about; ``models`` are MHA, GQA and MQA of its size.
        machine: the machine that was asked about, ``machines`` all of them, with the model on it.
        needs: what ``rate`` samples a second take of ``machine``, by model and tier.
    """

    model: Estimate
    models: tuple[Estimate, ...]
    machine: Machine
    machines: tuple[Machine, ...]
    rate: float
    needs: tuple[Need, ...]
    sparse: tuple[SparseSavings, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model.to_json(),
            "models": [item.to_json() for item in self.models],
            "machine": self.machine.name,
            "machines": [item.to_json() for item in self.machines],
            "rate": self.rate,
            "needs": [asdict(item) for item in self.needs],
            "sparse": [item.to_json() for item in self.sparse],
        }


def study_model(
    spec: EncoderSpec,
    *,
    batch: int,
    length: int,
    dtype: str,
    machine: str,
    rate: float,
    here: Limits | None = None,
    sparse: tuple[str, ...] = (),
) -> Study:
    """Put together what the dimensions alone say.

    The last layer computes only the row that the classifier reads, as the engines here do.

    Args:
        machine: a key of :data:`~attn_export.benchmarks.hardware.GPUS`, or ``"here"``.
        rate: samples a second that are wanted.
        here: what was measured on this machine, if anything was.
        sparse: patterns, as in ``"local:64"``.

    Raises:
        UsageError: unknown names, sizes that do not fit, a machine without any known tier for the
            dtype.
    """
    models = [estimate(item, batch=batch, length=length, dtype=dtype) for item in variants(spec)]
    model = next(item for item in models if item.spec == spec)
    found = {name: _machine(model, name, tiers) for name, tiers in _limits(here).items()}
    if machine not in found:
        raise UsageError(f"unknown machine {machine!r}; there are: {', '.join(found)}")
    chosen = found[machine]
    if not chosen.rooflines:
        raise UsageError("; ".join(dict.fromkeys(chosen.unknown.values())))
    needs = [
        _need(item, line.limits, rate) for item in models for line in chosen.rooflines.values()
    ]
    return Study(
        model=model,
        models=tuple(models),
        machine=chosen,
        machines=tuple(found.values()),
        rate=rate,
        needs=tuple(needs),
        sparse=tuple(sparse_savings(pattern, model) for pattern in sparse),
    )


def roofline_of(model: Estimate, limits: Limits) -> Roofline:
    """The roofline of an estimate's engine, the last layer's first row only.

    Raises:
        UsageError: if the tier has no number for the dtype.
    """
    return roofline(
        model.spec,
        batch=model.batch,
        length=model.length,
        dtype=model.dtype,
        limits=limits,
        first_row_only=True,
    )


def _limits(here: Limits | None) -> dict[str, dict[str, Limits]]:
    return {**GPUS, HERE: {here.tier: here} if here else {}}


def _machine(model: Estimate, name: str, tiers: dict[str, Limits]) -> Machine:
    rooflines, unknown = {}, {}
    for tier in TIERS:
        if tier not in tiers:
            unknown[tier] = NOT_MEASURED if name == HERE and not tiers else "no numbers are known"
            continue
        try:
            rooflines[tier] = roofline_of(model, tiers[tier])
        except UsageError as error:
            unknown[tier] = str(error)
    return Machine(name=name, rooflines=rooflines, unknown=unknown)


def _need(model: Estimate, limits: Limits, rate: float) -> Need:
    return Need(
        attention=model.attention_kind,
        tier=limits.tier,
        bandwidth=rate * model.bytes_per_sample / limits.bytes_per_s,
        bandwidth_unfused=rate * model.bytes_per_sample_unfused / limits.bytes_per_s,
        throughput=rate / roofline_of(model, limits).samples_per_s,
    )
