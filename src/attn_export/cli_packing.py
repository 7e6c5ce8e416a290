"""The command that says whether packing is worth it for a bundle and its requests."""

from __future__ import annotations

from pathlib import Path

import click

from attn_export.console import Steps
from attn_export.options import HELP, bundle_argument, data_options, json_option
from attn_export.output import print_report


@click.command(context_settings=HELP)
@bundle_argument
@data_options
@click.option("--quick", is_flag=True, help="A first impression in under a minute.")
@json_option
def packing(
    directory: Path, data: Path | None, tokenizer: Path | None, quick: bool, as_json: bool
) -> None:
    """Measure the packed engine of the bundle DIR against buckets: several lengths and arrivals.

    \b
    Example:
        attn-export packing mqa-bundle --data requests.jsonl
    """
    from attn_export.benchmarks.packing_report import render_packing
    from attn_export.benchmarks.packing_study import study_packing
    from attn_export.benchmarks.report_file import write_report
    from attn_export.bundle import Bundle
    from attn_export.calibration.data import read_sequences

    bundle = Bundle.open(directory)
    sequences = None
    if data is not None:
        sequences = read_sequences(data, tokenizer=tokenizer, max_length=bundle.manifest.max_length)
    with Steps() as say:
        study = study_packing(bundle, sequences=sequences, quick=quick, say=say)
    write_report(bundle, "packing", study)
    print_report(study, render_packing, as_json=as_json)
