"""What a plan chooses from where nothing was measured: the roofline of each precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from attn_export.calibration.lengths import TWEET_LENGTHS
from attn_export.engines.buckets import bucket_of, choose_edges
from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

from .estimate_study import NOT_MEASURED
from .hardware import GPUS, HERE, Limits, machine_title
from .plan_option import ESTIMATED, Basis, Option, Refused, Service
from .roofline import roofline

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
BUCKETS = (1, 2, 3, 4, 6, 8)
P99_SIGMAS = 2.326  # of a normal distribution
MOST_MEAN = 100_000
# TensorRT 8.4's demo/BERT on a T4, BERT-base at 128 tokens: 1.95 ms in FP16, 1.69 in INT8.
SMALL_BATCHES = (
    "single requests are the estimate's weak side: TensorRT's own took 1.4 (FP16) and 1.7 (INT8) "
    "times as long on a T4, batches of 64 within 10 %"
)
_DTYPES = {True: ("fp32", "bf16", "int8"), False: ("fp32", "fp16", "int8")}
Lengths = Mapping[int, int]


def estimated_basis(
    specs: Mapping[str, EncoderSpec], *, machine: str, here: Limits | None, lengths: Lengths
) -> Basis:
    """Each model in each precision that the machine has a number for, in buckets and padded.

    Args:
        specs: by the model's name.
        machine: a key of :data:`~attn_export.benchmarks.hardware.GPUS`, or ``"here"``.
        here: what was measured on this machine, if anything was.
        lengths: tokens a request -> requests.

    Raises:
        UsageError: if this machine's limits are not known.
        InputError: if a request is longer than a model takes.
    """
    limits = _limits(machine, here)
    basis = Basis(
        kind=ESTIMATED,
        hardware=machine_title(machine),
        unit="machine" if machine == HERE else "GPU",
        options=[],
        notes=[
            f"ESTIMATE, nothing was measured: the least time of each kernel, {limits.tier} tier. "
            f"{limits.source}"
        ],
    )
    if machine != HERE:
        basis.notes.append(SMALL_BATCHES)
    for name, spec in specs.items():
        for dtype in _DTYPES[machine == HERE]:
            try:
                basis.options.extend(_options(name, spec, dtype, limits, lengths))
            except UsageError as error:  # noqa: PERF203 - a few
                if dtype in limits.flops:
                    raise
                refused = Refused(name=f"{name} {dtype}", model=name, reason=str(error))
                basis.refused.append(refused)
    return basis


def scaled_lengths(mean: float) -> dict[int, int]:
    """The built-in tweets' lengths, stretched to another mean: a shape where none is known.

    Raises:
        UsageError: if the mean is below 1 token or beyond 100,000.
    """
    if not 1 <= mean <= MOST_MEAN:
        raise UsageError(
            f"the mean length {mean:g} is not possible; give 1 to {MOST_MEAN:,} tokens"
        )
    count = sum(TWEET_LENGTHS.values())
    factor = mean * count / sum(length * number for length, number in TWEET_LENGTHS.items())
    found: dict[int, int] = {}
    for length, number in TWEET_LENGTHS.items():
        stretched = max(1, round(length * factor))
        found[stretched] = found.get(stretched, 0) + number
    return found


def mean_of(lengths: Lengths) -> float:
    """The mean tokens a request."""
    return sum(length * number for length, number in lengths.items()) / sum(lengths.values())


def _limits(machine: str, here: Limits | None) -> Limits:
    """The tier to plan with: what engines keep up, not what the maker promises."""
    if machine == HERE:
        if here is None:
            raise UsageError(
                f"{NOT_MEASURED} to 'attn-export estimate --gpu here', or give a bench.json of "
                "this machine, which is far better"
            )
        return here
    tiers = GPUS[machine]
    return tiers["sustained"] if "sustained" in tiers else _derated(tiers["datasheet"])


def _derated(sheet: Limits) -> Limits:
    """A data sheet's numbers, cut to the shares of its own that engines keep up on a T4."""
    promised, kept = GPUS["t4"]["datasheet"], GPUS["t4"]["sustained"]
    shares = {name: kept.flops[name] / promised.flops[name] for name in kept.flops}
    shares["bf16"] = shares["fp16"]
    bandwidth = kept.bytes_per_s / promised.bytes_per_s
    said = ", ".join(f"{name} {shares[name]:.0%}" for name in kept.flops)
    return replace(
        sheet,
        tier="derated datasheet",
        flops={name: speed * shares[name] for name, speed in sheet.flops.items()},
        bytes_per_s=sheet.bytes_per_s * bandwidth,
        launch_s=kept.launch_s,
        source=f"{sheet.source}, cut to the shares that published engines keep up on a T4 "
        f"({said}, bandwidth {bandwidth:.0%}, {kept.launch_s * 1e6:.0f} us a launch): no such "
        f"numbers of the {sheet.name.upper()} are known here",
    )


def _options(
    name: str, spec: EncoderSpec, dtype: str, limits: Limits, lengths: Lengths
) -> list[Option]:
    """Padded to the longest, and in the number of buckets that gives the most samples/s."""
    found = {}
    for count in BUCKETS:
        edges = choose_edges(lengths, count, spec.max_length)
        found[len(edges)] = edges, _service(spec, dtype, limits, lengths, edges)
    best = max(found, key=lambda count: found[count][1].best_capacity)
    tried = {str(count): found[count][1].best_capacity for count in found}
    options = []
    for count in dict.fromkeys((best, 1)):
        edges, service = found[count]
        options.append(
            Option(
                model=name,
                runner=dtype,
                precision=dtype,
                batching="padded" if count == 1 else "buckets",
                edges=edges,
                service=service,
                tried=tried if count == best else {},
            )
        )
    return options


def _service(
    spec: EncoderSpec, dtype: str, limits: Limits, lengths: Lengths, edges: Sequence[int]
) -> Service:
    """A batch is cut by the edges; each part runs on its own, and pays its launches.

    How many requests fall into each bucket is multinomial; the 99th percentile is that of a normal
    distribution with its variance.
    """
    total, counts = sum(lengths.values()), [0] * len(edges)
    for length, number in lengths.items():
        counts[bucket_of(length, edges)] += number
    used = [(edge, count / total) for edge, count in zip(edges, counts, strict=True) if count]
    lines = [
        (share, [_seconds(spec, size, edge, dtype, limits) for size in BATCHES])
        for edge, share in used
    ]
    found = [_mixed(batch, lines) for batch in BATCHES]
    return Service(
        batches=BATCHES,
        seconds=tuple(mean for mean, _ in found),
        p99_s=tuple(mean + P99_SIGMAS * sigma for mean, sigma in found),
    )


def _seconds(spec: EncoderSpec, batch: int, length: int, dtype: str, limits: Limits) -> float:
    return roofline(
        spec, batch=batch, length=length, dtype=dtype, limits=limits, first_row_only=True
    ).seconds


def _mixed(batch: int, lines: Sequence[tuple[float, Sequence[float]]]) -> tuple[float, float]:
    """Mean and standard deviation of a batch's seconds; ``lines`` by share, of ``BATCHES``."""
    mean = one = square = 0.0
    for share, line in lines:
        there = 1 - (1 - share) ** batch  # often a bucket has no request, else it has at least one
        size = batch * share / there
        each = float(np.interp(size, BATCHES, line)) / size
        mean += batch * share * each
        one += share * each
        square += share * each**2
    return mean, float(np.sqrt(batch * max(0.0, square - one**2)))
