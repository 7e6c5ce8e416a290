"""An estimate as text and tables on the terminal: what it comes to first, then the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .estimate import Estimate
from .estimate_study import Study
from .hardware import HERE, TIERS, machine_title
from .roofline import KernelTime, Roofline
from .terminal_table import heading, narrow_table

_MIB, _GB = 1 << 20, 1e9
_SHORT = {"compute": "c", "memory": "m", "launch": "l"}


def render_estimate(study: Study) -> RenderableType:
    """Verdicts, then memory and work side by side, the machines, the kernels, the masks."""
    model, parts = study.model, list[RenderableType]()
    name = machine_title(study.machine.name)
    parts += _verdicts(study)
    parts += ["", heading("memory and work", _about(model)), _side_by_side(study)]
    parts += ["", heading(f"{study.rate:,.0f} samples/s on {name}", "shares of it")]
    parts += [_needs(study)]
    parts += ["", heading("most samples/s", f"{model.attention_kind}, {_about(model)}")]
    parts += [_machines(study)]
    parts += [
        "",
        heading(f"kernels on {name}", f"{model.attention_kind}, one batch"),
    ]
    parts += [_kernels(list(study.machine.rooflines.values()))]
    if study.sparse:
        parts += ["", heading("sparse masks", "what is kept"), _sparse(study)]
    return Group(*parts, "", *(Text(note, style="dim") for note in _notes(study)))


def _about(model: Estimate) -> str:
    return f"{model.dtype.upper()}, batch {model.batch} of {model.length} tokens"


def _verdicts(study: Study) -> Iterator[Text]:
    model, machine = study.model, study.machine
    limits = ", ".join(
        f"{item.samples_per_s:,.0f} ({tier})" for tier, item in machine.rooflines.items()
    )
    yield Text(
        f"{model.attention_kind} {_about(model)} on {machine_title(machine.name)}: at most "
        f"{limits} samples/s"
    )
    for tier, item in machine.rooflines.items():
        share = study.rate / item.samples_per_s
        if share <= 1:
            word, said = ("[WITHIN]", "bold green"), f"take {share:.0%} of its {tier} limit"
        else:
            word = ("[BEYOND]", "bold red")
            said = (
                f"are {share:.1f} times its {tier} limit: take more machines, shorter "
                "sequences or less precision"
            )
        yield Text.assemble(word, f" {study.rate:,.0f} samples/s {said}")
    yield Text(_saving(study))
    yield Text(_bound(list(machine.rooflines.values())[-1]))


def _saving(study: Study) -> str:
    mha, model = study.models[0], study.model
    kept = 1 - model.flops_per_sample / mha.flops_per_sample
    share = model.attention_bytes / model.total_bytes
    matrices = f"attention matrices are {share:.0%} of Q, K, V and attention memory"
    if model is mha:
        return f"MHA: {matrices}"
    return (
        f"{model.attention_kind} saves {model.reduction:.1%} of MHA's Q, K, V and attention memory "
        f"and {kept:.1%} of its FLOPs; {matrices}"
    )


def _bound(line: Roofline) -> str:
    """What the time goes into, in words."""
    shares = {bound: line.share(bound) for bound in _SHORT}
    first = max(shares, key=lambda bound: shares[bound])
    meaning = {
        "compute": "fewer or cheaper products help: shorter padding, MQA, a lower precision",
        "memory": "fewer bytes help: fusion, a lower precision, MQA; faster products do not",
        "launch": "fewer, larger kernels help: a larger batch, CUDA graphs",
    }[first]
    largest = sorted(line.kernels, key=lambda item: -item.seconds)[:2]
    names = " and ".join(f"{i.kernel.name} {i.seconds / line.seconds:.0%}" for i in largest)
    return (
        f"bound by {first} for {shares[first]:.0%} of the time ({line.limits.tier}; {names}): "
        f"{meaning}"
    )


def _side_by_side(study: Study) -> Table:
    def row(name: str, texts: Iterable[str]) -> list[str]:
        return [name, *texts]

    models = study.models
    rows = [
        row("Q, K, V of a layer, MiB", (f"{m.qkv_bytes / _MIB:,.1f}" for m in models)),
        row("attention matrices, MiB", (f"{m.attention_bytes / _MIB:,.1f}" for m in models)),
        row("together, MiB", (f"{m.total_bytes / _MIB:,.1f}" for m in models)),
        row("less than MHA", (f"{m.reduction:.1%}" for m in models)),
        row("KV cache a token, KiB", (f"{m.kv_cache_bytes_per_token / 1024:,.1f}" for m in models)),
        row("KV cache of the batch, MiB", (f"{m.kv_cache_bytes / _MIB:,.1f}" for m in models)),
        row("parameters", (f"{m.parameters:,}" for m in models)),
        row("GFLOP a sample", (f"{m.flops_per_sample / 1e9:,.3f}" for m in models)),
        row(
            "  last layer's first row only",
            (f"{m.flops_per_sample_first_row / 1e9:,.3f}" for m in models),
        ),
        row("MB moved a sample, fused", (f"{m.bytes_per_sample / 1e6:,.1f}" for m in models)),
        row(
            "  attention through memory",
            (f"{m.bytes_per_sample_unfused / 1e6:,.1f}" for m in models),
        ),
    ]
    return narrow_table([""], [m.attention_kind for m in models], rows)


def _needs(study: Study) -> Table:
    """One row a model and tier: bandwidth in GB/s against what there is, and the whole."""
    rows: list[list[str | Text]] = []
    models = {m.attention_kind: m for m in study.models}
    for need in study.needs:
        model, limits = models[need.attention], study.machine.rooflines[need.tier].limits
        rows.append(
            [
                need.attention,
                need.tier,
                f"{study.rate * model.bytes_per_sample / _GB:,.1f}",
                f"{limits.bytes_per_s / _GB:,.0f}",
                f"{need.bandwidth:.0%}",
                f"{need.bandwidth_unfused:.0%}",
                Text(f"{need.throughput:.0%}", style="green" if need.throughput <= 1 else "red"),
            ]
        )
    numbers = (
        "needs\nGB/s",
        "has\nGB/s",
        "band-\nwidth",
        "unfused\nattention",
        "of its most\nsamples/s",
    )
    return narrow_table(["", "tier"], numbers, rows)


def _machines(study: Study) -> Table:
    rows = []
    for machine in study.machines:
        found = [machine.rooflines.get(tier) for tier in TIERS]
        rows.append(
            [machine_title(machine.name), *(f"{f.samples_per_s:,.0f}" if f else "-" for f in found)]
        )
    return narrow_table([""], TIERS, rows)


def _kernels(lines: Sequence[Roofline]) -> Table:
    """One row a kernel; times of every tier, with what bounds it."""
    rows = []
    for index, first in enumerate(lines[0].kernels):
        kernel = first.kernel
        rows.append(
            [
                kernel.name,
                str(kernel.count),
                f"{kernel.flops / 1e9:,.2f}",
                f"{kernel.bytes / 1e6:,.2f}",
                f"{kernel.intensity:,.0f}",
                *(_microseconds(line.kernels[index]) for line in lines),
            ]
        )
    total = [f"{line.seconds * 1e6:,.0f}  " for line in lines]
    rows.append(["all", "", "", "", "", *total])
    tiers = [f"{line.limits.tier}\nus" for line in lines]
    return narrow_table(
        ["kernel"], ["runs", "GFLOP\neach", "MB\neach", "FLOP\n/byte", *tiers], rows
    )


def _microseconds(item: KernelTime) -> str:
    return f"{item.seconds * 1e6:,.0f} {_SHORT[item.bound]}"


def _sparse(study: Study) -> Table:
    rows = [
        [
            item.pattern,
            f"{item.pairs:,}",
            f"{item.kept:.1%}",
            f"{item.attention_bytes / _MIB:,.2f}",
            f"{item.model_flops_kept:.1%}",
        ]
        for item in study.sparse
    ]
    numbers = ("pairs", "of attention's\nFLOPs, matrices", "MiB\na layer", "of all\nFLOPs")
    return narrow_table(["pattern"], numbers, rows)


def _notes(study: Study) -> Iterator[str]:
    lines = list(study.machine.rooflines.values())
    yield (
        "c, m, l: bound by compute, memory, launch; all runs of a kernel together. last: the last "
        "layer, which computes the first row only"
    )
    yield "KV cache: what a decoder of this size would keep; an encoder keeps none"
    if study.model.dtype == "int8":
        yield "int8: the weights' products; Q, K, V, attention and residuals stay FP16"
    name = machine_title(study.machine.name)
    for line in lines:
        yield f"{name}, {line.limits.tier}: {line.limits.source}"
        if line.note:
            yield f"{name}, {line.limits.tier}: {line.note}"
    for tier, reason in study.machine.unknown.items():
        yield f"{name}, {tier}: {reason}"
    if study.machine.name == HERE:
        yield (
            f"the products alone allow {lines[0].products_samples_per_s:,.0f} samples/s: small "
            "batches stay in a CPU's caches and move fewer bytes than counted here"
        )
    for item in study.sparse:
        yield f"{item.pattern}: {item.meaning}"
    if study.sparse:
        yield "sparse: of a kernel that skips the rest; a mask on a dense product saves nothing"
