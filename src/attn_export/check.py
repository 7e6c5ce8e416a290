"""The gates of continuous integration: are the engines right, fast enough, and no slower?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attn_export.benchmarks.baseline import RecordedBaseline, open_baseline
from attn_export.benchmarks.baseline_match import (
    circumstances,
    other_versions,
    require_same_circumstances,
)
from attn_export.benchmarks.bench_settings import chosen_engines, described
from attn_export.benchmarks.check import run_duels
from attn_export.benchmarks.check_data import checked_sequences
from attn_export.benchmarks.check_plan import SpeedGates, SpeedPlan, common_settings
from attn_export.benchmarks.check_report import CheckReport
from attn_export.benchmarks.devices import GPU, device_of
from attn_export.benchmarks.machine_state import MachineWatch
from attn_export.benchmarks.report_file import write_report
from attn_export.bundle import Bundle
from attn_export.calibration.data import read_sequences
from attn_export.check_parity import prove
from attn_export.portable import Say


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What a check asks.

    Args:
        min_speedup: how many times eager PyTorch FP32, padded to the maximum, or None.
        baseline: a bundle, or a ``bench.json``; None for no such gate.
        max_regression: the largest share of the baseline's samples/s that may be lost.
        engine: one engine instead of all.
        data: requests, with the ``tokenizer`` of their texts; None for synthetic ones.
        allow_host_code: run the code that a version-compatible plan may carry.
    """

    min_speedup: float | None = None
    baseline: Path | None = None
    max_regression: float = 0.05
    engine: str | None = None
    data: Path | None = None
    tokenizer: Path | None = None
    allow_host_code: bool = False


def check_bundle(directory: Path, options: CheckOptions, *, say: Say) -> CheckReport:
    """Prove a bundle's engines, then hold their speed against eager PyTorch and a baseline.

    An engine that fails in one gate does not keep the others from theirs; see
    :meth:`~attn_export.benchmarks.check_report.CheckReport.require_pass`. ``reports/check.json`` is
    written where the bundle can be.

    Raises:
        UsageError: unknown engine; a baseline that is none, or that was measured otherwise.
        InputError: requests that do not fit.
        BundleError: if the bundle or the baseline's is broken, or has no engine.
    """
    bundle = Bundle.open(directory)
    chosen = chosen_engines(bundle, options.engine)
    baseline = open_baseline(options.baseline, bundle) if options.baseline else None
    given = None
    if options.data is not None:
        longest = bundle.manifest.max_length
        given = read_sequences(options.data, tokenizer=options.tokenizer, max_length=longest)
    sequences = checked_sequences(bundle, chosen, baseline, given)
    common = common_settings(allow_host_code=options.allow_host_code)
    here = circumstances(
        bundle,
        sequences,
        data=described(given),
        batch_size=common.batch_size,
        threads=common.threads,
        quick=False,
    )
    said_of_baseline = [baseline.note] if baseline and baseline.note else []
    if isinstance(baseline, RecordedBaseline):
        if different := other_versions(baseline):
            said_of_baseline.append(different)
        on_gpu = any(device_of(record) == GPU for record in chosen.values())
        require_same_circumstances(baseline, here, on_gpu=on_gpu)
    gates = SpeedGates(
        min_speedup=options.min_speedup, baseline=baseline, max_regression=options.max_regression
    )
    plan = SpeedPlan(bundle, gates, chosen, named=options.engine is not None, common=common)
    say("proving the engines equal to eager PyTorch")
    results, notes = prove(
        bundle,
        list(chosen),
        named=options.engine is not None,
        allow_host_code=options.allow_host_code,
    )
    unable = {result.engine: result.text for result in results if result.verdict == "skipped"}
    with MachineWatch() as machine:
        results += plan.verdicts + run_duels(plan.duels, sequences, unable=unable, say=say)
    report = CheckReport(
        bundle=str(directory),
        model=str(bundle.manifest.model.get("name", "")),
        baseline=baseline.described if baseline else None,
        results=results,
        settings={**here, "data": described(given)},
        load_average=machine.load_average,
        notes=[*notes, *said_of_baseline, *machine.notes],
    )
    write_report(bundle, "check", report)
    return report
