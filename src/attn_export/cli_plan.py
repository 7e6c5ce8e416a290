"""``attn-export plan``: from a rate and a latency to a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attn_export.benchmarks.hardware import GPUS, HERE
from attn_export.errors import InputError, UsageError
from attn_export.options import DIMENSIONS, HELP, PATH, data_options, dimension_options, json_option
from attn_export.output import print_report

if TYPE_CHECKING:
    from attn_export.benchmarks.plan_option import Basis
    from attn_export.spec import EncoderSpec

DEFAULT_GPU = "t4"


@click.command(context_settings=HELP)
@click.argument("results", metavar="[RESULT]...", nargs=-1, type=PATH)
@click.option("--rate", required=True, metavar="RATE", help="Samples: 50000/min, 800/s, 3000000/h.")
@click.option("--latency-p99", metavar="TIME", help="For 99 of 100 requests: 25ms, 0.025s.")
@click.option(
    "--gpu",
    type=click.Choice(list(GPUS), case_sensitive=False),
    help=f"The GPU to plan for [the RESULT's; without one {DEFAULT_GPU}].",
)
@click.option("--here", is_flag=True, help="Plan for machines like this one.")
@click.option(
    "--model",
    metavar="MODEL",
    help="mha, gqa, mqa or a bundle [all of the RESULTs; without one all three].",
)
@dimension_options
@click.option(
    "--length-mean",
    type=float,
    help="Mean tokens a request [the RESULT's; without one tweets, 29.9].",
)
@data_options
@click.option("--price", metavar="PRICE", help="Of a machine for an hour: 0.35/h.")
@click.option(
    "--head-room",
    metavar="SHARE",
    default="30%",
    show_default=True,
    help="Share of the capacity that stays free.",
)
@json_option
def plan(  # noqa: PLR0917
    results: tuple[Path, ...],
    rate: str,
    latency_p99: str | None,
    gpu: str | None,
    here: bool,
    model: str | None,
    length_mean: float | None,
    data: Path | None,
    tokenizer: Path | None,
    price: str | None,
    head_room: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Say which model, precision, batches and how many machines answer a rate in time.

    RESULT is a bench.json or matrix.json, or the folder that holds it: a bundle gets the plan in
    its reports. Without one, the plan is an estimate from the model's dimensions. Exits 1 when
    nothing meets the wish, and says what would be possible.

    \b
    Examples:
        attn-export plan --rate 50000/min --latency-p99 25ms --gpu t4 --price 0.35/h
        attn-export plan mqa-bundle --rate 300/s --latency-p99 100ms --head-room 40%
        attn-export plan matrix/matrix.json --rate 3000000/h --model mqa
    """
    from attn_export.benchmarks.plan import make_plan
    from attn_export.benchmarks.plan_size import Wish
    from attn_export.benchmarks.plan_table import render_plan
    from attn_export.benchmarks.plan_units import (
        parse_duration,
        parse_head_room,
        parse_price,
        parse_rate,
    )

    wish = Wish(
        rate=parse_rate(rate),
        latency_s=parse_duration(latency_p99) if latency_p99 else None,
        head_room=parse_head_room(head_room),
        price=parse_price(price) if price else None,
    )
    if gpu and here:
        raise UsageError("--gpu and --here exclude each other; give one")
    if length_mean is not None and data:
        raise UsageError("--length-mean and --data both say how long requests are; give one")
    given = {DIMENSIONS[k]: values[k] for k in DIMENSIONS if values[k] is not None}
    machine = HERE if here else gpu
    lengths = _lengths(length_mean, data, tokenizer)
    basis = (
        _measured(results, machine, model, given, lengths)
        if results
        else _estimated(machine, model, given, lengths)
    )
    found = make_plan(wish, basis)
    print_report(found, render_plan, as_json=as_json)
    _keep(results, found)


def _lengths(
    mean: float | None, data: Path | None, tokenizer: Path | None
) -> dict[int, int] | None:
    """Tokens a request -> requests, where they were given."""
    from attn_export.benchmarks.plan_estimate import scaled_lengths

    if data is not None:
        from attn_export.calibration.data import read_sequences
        from attn_export.calibration.lengths import length_histogram

        found = length_histogram(read_sequences(data, tokenizer=tokenizer))
        if not found:
            raise InputError(f"{data} holds no request; give at least one")
        return found
    return None if mean is None else scaled_lengths(mean)


def _measured(
    results: tuple[Path, ...],
    machine: str | None,
    model: str | None,
    given: dict[str, int],
    lengths: dict[int, int] | None,
) -> Basis:
    from attn_export.benchmarks.plan_estimate import mean_of
    from attn_export.benchmarks.plan_results import measured_basis

    if given:
        raise UsageError(
            f"a RESULT is of a model with its own dimensions; leave out {', '.join(given)}"
        )
    mean = mean_of(lengths) if lengths else None
    return measured_basis(results, machine=machine, model=model, mean_length=mean)


def _estimated(
    machine: str | None, model: str | None, given: dict[str, int], lengths: dict[int, int] | None
) -> Basis:
    from attn_export.benchmarks.ceilings import known_ceilings
    from attn_export.benchmarks.estimate_model import BUILTIN, spec_of
    from attn_export.benchmarks.plan_estimate import estimated_basis
    from attn_export.calibration.lengths import TWEET_LENGTHS

    lengths = lengths or TWEET_LENGTHS
    specs: dict[str, EncoderSpec] = {
        name if name in BUILTIN else Path(name).resolve().name: spec_of(
            name, given, length=max(lengths)
        )
        for name in ([model] if model else BUILTIN)
    }
    here = known_ceilings() if machine == HERE else None
    return estimated_basis(specs, machine=machine or DEFAULT_GPU, here=here, lengths=lengths)


def _keep(results: tuple[Path, ...], found: Any) -> None:
    """Write the plan beside what it came from, where that is one bundle."""
    from attn_export.bundle import MANIFEST, Bundle

    if len(results) == 1 and (results[0] / MANIFEST).is_file():
        from attn_export.benchmarks.report_file import write_report

        write_report(Bundle.open(results[0]), "plan", found)
