"""``attn-export estimate``: what the dimensions of a model alone say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from attn_export.benchmarks.hardware import GPUS, HERE, Limits
from attn_export.console import Steps
from attn_export.options import (
    DIMENSIONS,
    HELP,
    PATH,
    dimension_options,
    json_option,
    model_argument,
)
from attn_export.output import print_report

_DTYPES = ("fp32", "fp16", "bf16", "int8", "int8-all")


@click.command(context_settings=HELP)
@model_argument
@dimension_options
@click.option(
    "--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Samples a batch."
)
@click.option(
    "--seq", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens a sample."
)
@click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    default="fp32",
    show_default=True,
    help="int8: the weights' products, as 'build --int8'; int8-all: everything.",
)
@click.option(
    "--gpu",
    type=click.Choice([*GPUS, HERE], case_sensitive=False),
    default="t4",
    show_default=True,
    help="The machine to look at closely; 'here' is this machine's CPUs.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1000.0,
    show_default=True,
    help="Samples a second that are wanted.",
)
@click.option(
    "--sparse",
    multiple=True,
    metavar="PATTERN",
    help="local:64, strided:16, global:4 or block:32; repeat for more.",
)
@click.option("--measure", is_flag=True, help="Measure this machine's limits first (a minute).")
@click.option("--plot", type=PATH, help="Draw the roofline to this file (.png, .svg, .pdf).")
@json_option
def estimate(  # noqa: PLR0917
    model: str,
    batch: int,
    seq: int,
    dtype: str,
    gpu: str,
    rate: float,
    sparse: tuple[str, ...],
    measure: bool,
    plot: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Say what MODEL costs and what bounds it on a GPU; no model is run.

    MODEL is mha, gqa or mqa with dimensions, or the directory of a bundle.

    \b
    Examples:
        attn-export estimate mha --batch 32 --seq 128
        attn-export estimate mqa --dtype int8 --gpu l4 --rate 5000 --sparse local:64
    """
    from attn_export.benchmarks.ceilings import known_ceilings, measure_ceilings
    from attn_export.benchmarks.estimate_model import spec_of
    from attn_export.benchmarks.estimate_report import render_estimate
    from attn_export.benchmarks.estimate_study import study_model

    given = {DIMENSIONS[k]: values[k] for k in DIMENSIONS if values[k] is not None}
    spec = spec_of(model, given, length=seq)
    if measure:
        with Steps() as say:
            here: Limits | None = measure_ceilings(say)
    else:
        here = known_ceilings()
    study = study_model(
        spec,
        batch=batch,
        length=seq,
        dtype=dtype,
        machine=gpu,
        rate=rate,
        here=here,
        sparse=sparse,
    )
    print_report(study, render_estimate, as_json=as_json)
    if plot is not None:
        from attn_export.benchmarks.roofline_plot import plot_roofline

        plot_roofline(study.machine.rooflines, plot, model=study.model.attention_kind)
