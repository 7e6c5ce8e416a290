"""How far the engines are from what the machine can do: useful FLOP/s beside its limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attn_export.engines.doctor import examine
from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

from .ceilings import known_ceilings
from .devices import GPU
from .environment import gpu_name
from .estimate import flops_per_sample
from .hardware import GPUS, Limits, machine_title
from .report_candidates import Candidate, engines, precision
from .report_data import Results
from .report_document import Bar, Bars, Lines, Note, Part, Series, Table, Verdict
from .report_numbers import number, percent
from .roofline import Roofline, roofline

GIGA = 1e9
KINDS = ("engine: useful GFLOP/s", "limit of the machine")
BEYOND = (
    "An engine is beyond this limit, which is too low then; if it was measured here, measure it "
    "again while the machine does nothing else"
)
ROOM = 8.0  # the roofline is drawn this many times to both sides of what is on it


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What one engine reached, and the limit of its precision; None where that is not known."""

    engine: str
    precision: str
    samples_per_s: float
    flops_per_s: float
    limit: float | None
    most: Roofline | None


def limits(results: Results) -> Iterator[Part]:
    """What the engines reached beside what their device can do, one device after the other."""
    bench, manifest = results.found.get("bench"), results.manifest
    if bench is None or manifest is None:
        yield results.missing("bench")
        return
    dimensions = manifest.model.get("spec")
    if not dimensions:
        yield Note(text="FLOPs are known of the built-in models only.", is_missing=True)
        return
    spec, length = EncoderSpec(**dimensions), float(bench["mean_length"])
    useful = flops_per_sample(spec, length, first_row_only=True)
    yield Note(
        text=f"Useful are {number(useful / GIGA)} GFLOP a sample: every product that the answer "
        f"needs at {length:.1f} tokens, the mean; padding counts as nothing."
    )
    measured = engines(bench)
    for device in dict.fromkeys(str(c["device"]) for c in measured):
        machine = _machine(bench, device)
        mine = [c for c in measured if c["device"] == device]
        yield _limits_note(results, bench, device, machine)
        reached = [_reached(c, bench, spec, useful, machine) for c in mine]
        yield from _beside(reached, device, machine)


def _machine(bench: Mapping[str, Any], device: str) -> Limits | None:
    """The limits of a device that ``bench`` ran on, if they are known here."""
    environment = bench["environment"]
    if device == GPU:
        words = gpu_name(environment).lower().replace("-", " ").split()
        name = next((key for key in GPUS if key in words), None)
        return GPUS[name]["datasheet"] if name else None
    here, ran = examine().cpu, environment["cpu"]
    same = (here.model, here.cores) == (ran["model"], ran["cores"])
    return known_ceilings() if same else None


def _limits_note(
    results: Results, bench: Mapping[str, Any], device: str, machine: Limits | None
) -> Note:
    if machine is not None:
        told = f"{machine.source}; {machine.bytes_per_s / GIGA:.0f} GB/s of memory"
        return Note(text=f"Limits of {machine_title(machine.name)} ({machine.tier}): {told}.")
    if device == GPU:
        name = gpu_name(bench["environment"]) or "this GPU"
        known = ", ".join(map(machine_title, GPUS))
        return Note(text=f"The limits of {name} are not known; known are: {known}.")
    return Note(
        text="What this machine can do at most is not known. It is measured by: attn-export "
        f"estimate {results.directory.name} --gpu here --measure",
        is_missing=True,
    )


def _beside(reached: Sequence[Reached], device: str, machine: Limits | None) -> Iterator[Part]:
    """Bars and a table of each engine beside the limits, then the roofline."""
    yield Bars(
        caption=f"Useful GFLOP/s (INT8: operations) on the {device.upper()} beside its limit for "
        "products",
        kinds=KINDS,
        bars=[*_bars(reached), *_limit_bars(reached)],
    )
    if machine is not None:
        if any(item.limit and item.flops_per_s > item.limit for item in reached):
            yield Verdict(status="warning", text=BEYOND)
        yield _table(reached)
        yield _chart(reached, machine)


def _reached(
    candidate: Candidate,
    bench: Mapping[str, Any],
    spec: EncoderSpec,
    useful: float,
    machine: Limits | None,
) -> Reached:
    kind, rate = precision(candidate), float(candidate["samples_per_s"]["median"])
    limit, most = None, None
    if machine is not None and kind in machine.flops:
        limit = machine.flops[kind]
        try:
            most = roofline(
                spec,
                batch=int(bench["batch_size"]),
                length=float(bench["mean_length"]),
                dtype=kind,
                limits=machine,
                first_row_only=True,
            )
        except UsageError:  # attention's own precision has no number here
            most = None
    return Reached(
        engine=str(candidate["engine"]),
        precision=kind,
        samples_per_s=rate,
        flops_per_s=rate * useful,
        limit=limit,
        most=most,
    )


def _bars(reached: Sequence[Reached]) -> Iterator[Bar]:
    for item in reached:
        share = "" if item.limit is None else f"{percent(item.flops_per_s / item.limit)} of it"
        yield Bar(
            label=item.engine,
            value=item.flops_per_s / GIGA,
            text=f"{number(item.flops_per_s / GIGA)} GFLOP/s",
            detail=share,
        )


def _limit_bars(reached: Sequence[Reached]) -> Iterator[Bar]:
    for kind, limit in {item.precision: item.limit for item in reached}.items():
        if limit is not None:
            yield Bar(
                label=f"products in {kind.upper()}",
                value=limit / GIGA,
                text=f"{number(limit / GIGA)} GFLOP/s",
                kind=1,
            )


def _table(reached: Sequence[Reached]) -> Table:
    columns = ("Engine", "Precision", "Bound by", "Samples/s", "Useful GFLOP/s", "Limit GFLOP/s")
    return Table(
        caption="At most: by the roofline, kernel by kernel, at the batch of the measurement",
        columns=(*columns, "Of the limit", "Samples/s at most", "Of that"),
        rows=[_row(item) for item in reached],
        words=3,
    )


def _row(item: Reached) -> tuple[str, ...]:
    most = item.most.samples_per_s if item.most else None
    return (
        item.engine,
        item.precision.upper(),
        max(("compute", "memory", "launch"), key=item.most.share) if item.most else "-",
        number(item.samples_per_s),
        number(item.flops_per_s / GIGA),
        number(item.limit / GIGA) if item.limit else "-",
        percent(item.flops_per_s / item.limit) if item.limit else "-",
        number(most) if most else "-",
        percent(item.samples_per_s / most) if most else "-",
    )


def _chart(reached: Sequence[Reached], machine: Limits) -> Part:
    """Williams et al. 2009: FLOP/s over FLOP a byte, under the roofs of memory and products."""
    points = [
        Series(
            name=item.engine,
            points=[_point(item, item.most)],
            kind=kind,
        )
        for kind, item in enumerate(reached)
        if item.most is not None
    ]
    if not points:
        return Note(text="No engine's precision has a limit that is known.", is_missing=True)
    ridges = {
        item.precision: (item.limit / machine.bytes_per_s, item.limit)
        for item in reached
        if item.limit
    }
    places = [x for series in points for x, _ in series.points] + [x for x, _ in ridges.values()]
    low, high = min(places) / ROOM, max(places) * ROOM
    roofs = [
        Series(
            name=f"{kind.upper()} roof",
            points=[(low, low * machine.bytes_per_s / GIGA), (x, y / GIGA), (high, y / GIGA)],
            is_limit=True,
        )
        for kind, (x, y) in ridges.items()
    ]
    return Lines(
        caption="Roofline: each engine under the roofs of memory (slope) and products (level)",
        x="FLOP a byte (log scale)",
        y="useful GFLOP/s (log scale)",
        series=[*points, *roofs],
    )


def _point(item: Reached, most: Roofline) -> tuple[float, float]:
    flops = math.fsum(k.kernel.count * k.kernel.flops for k in most.kernels)
    moved = math.fsum(k.kernel.count * k.kernel.bytes for k in most.kernels)
    return flops / moved, item.flops_per_s / GIGA
