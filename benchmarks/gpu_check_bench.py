"""GPU check, step bench: what ``attn-export bench`` measures, and the gates' part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.calibration.data import read_sequences

from .bench import run_bench
from .gpu_check_child import Answer, answer, say

BATCH = 64
ROUNDS = 3  # of twelve candidates: a few minutes
EAGER_FP16 = ("eager-half-padded", "eager-autocast-padded")
PADDED, BUCKETED = "engine-padded", "engine-bucketed"


def work(settings: dict[str, Any]) -> Answer:
    """Measure every engine of ``bundle`` beside eager PyTorch on the same device."""
    bundle = Bundle.open(settings["bundle"])
    sequences = None
    if settings["data"]:
        longest = bundle.manifest.max_length
        sequences = read_sequences(Path(settings["data"]), tokenizer=None, max_length=longest)
    report = run_bench(
        bundle,
        sequences=sequences,
        quick=settings["quick"],
        batch_size=BATCH,
        rounds=1 if settings["quick"] else ROUNDS,
        eager_python=settings["eager_python"],
        engine_python=settings["engine_python"],
        say=say,
    ).to_json()
    precisions = {name: engine.precision for name, engine in bundle.manifest.engines.items()}
    rates = {
        (result["candidate"], precisions.get(result["engine"])): result["samples_per_s"]["median"]
        for result in report["results"]
        # An eager candidate on the CPU is no baseline of an engine on a GPU.
        if result["engine"] or result["name"].endswith("@gpu")
    }
    values, unmeasured = ratios(rates)
    ratio = _over(rates, (PADDED, "fp16"), (PADDED, "fp32"))
    return {
        "values": values,
        "unmeasured": unmeasured,
        "numbers": {"fp16_over_fp32": ratio, "report": report},
    }


def ratios(
    rates: Mapping[tuple[str, str | None], float],
) -> tuple[dict[str, float], dict[str, str]]:
    """The gates' values, and why the others could not be had.

    Args:
        rates: samples a second by candidate and precision; eager has no precision.
    """
    half = [(kind, None) for kind in EAGER_FP16 if (kind, None) in rates]
    engine = (PADDED, "fp16")
    best: Sequence[tuple[str, str | None]] = sorted(half, key=rates.__getitem__)[-1:]
    wanted = {
        "padded_vs_eager_fp16": (engine, best[0] if best else (EAGER_FP16[0], None)),
        "padded_vs_eager_fp32": (engine, ("eager-padded", None)),
        "bucketed_vs_padded": ((BUCKETED, "fp16"), engine),
    }
    values, unmeasured = {}, {}
    for gate, (ours, theirs) in wanted.items():
        value = _over(rates, ours, theirs)
        if value is not None:
            values[gate] = value
        else:
            absent = [kind for kind, precision in (ours, theirs) if (kind, precision) not in rates]
            unmeasured[gate] = f"{' and '.join(absent)} did not run on the GPU"
    return values, unmeasured


def _over(
    rates: Mapping[tuple[str, str | None], float],
    ours: tuple[str, str | None],
    theirs: tuple[str, str | None],
) -> float | None:
    return rates[ours] / rates[theirs] if ours in rates and theirs in rates else None


if __name__ == "__main__":
    answer(work)
