"""The gates on what a build made: equal to eager PyTorch, and INT8 worth its place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from attn_export.benchmarks.parity import ParityReport
from attn_export.benchmarks.race import require_faster
from attn_export.benchmarks.stats import Interval
from attn_export.bundle import Bundle
from attn_export.errors import GateFailed, Inconclusive
from attn_export.manifest import EngineRecord, Manifest

log = logging.getLogger("attn_export")


def require_worth(directory: Path, report: ParityReport, *, speed_gate: bool = True) -> None:
    """The gates on the INT8 engines of a report: near enough to FP32, and faster than FP32 or FP16.

    Of several backends one has to pass; what the others lack becomes a warning, and ``load`` does
    not take them.

    Raises:
        GateFailed: if an engine is not near enough, or slower, and no other one passes.
        Inconclusive: if the noise hides which is faster, and no other one passes.
    """
    manifest = Bundle.open(directory).manifest
    made = [manifest.engines[result.engine] for result in report.engines]
    quantized = [record for record in made if record.precision == "int8"]
    found = [_unworthy(manifest, record, speed_gate=speed_gate) for record in quantized]
    failures = [error for error in found if error is not None]
    if failures and len(failures) == len(quantized):
        raise failures[0]
    for failure in failures:
        log.warning("%s", failure)


def _unworthy(
    manifest: Manifest, engine: EngineRecord, *, speed_gate: bool
) -> GateFailed | Inconclusive | None:
    try:
        _require_worth(manifest, engine, speed_gate=speed_gate)
    except (GateFailed, Inconclusive) as error:
        return error
    return None


def _require_worth(manifest: Manifest, engine: EngineRecord, *, speed_gate: bool) -> None:
    quantization = manifest.graphs[engine.graph].quantization
    measured = engine.accuracy or {
        "accepted": quantization.get("accepted"),
        "results": quantization.get("accuracy"),
    }
    if measured["accepted"] is False:
        raise GateFailed(
            f"{engine.name} is not near enough to FP32 on the data "
            f"({_said(measured['results'])}); calibrate with more or other data, exclude "
            "layers ('attn-export calibrate --sensitivity' finds them), or ask for less with "
            "--min-agreement or --min-cosine"
        )
    if engine.race and speed_gate:
        found = Interval(**{key: engine.race[key] for key in ("median", "low", "high")})
        require_faster(found, candidate=engine.name, rival=engine.race["rival"])


def _said(accuracy: list[dict[str, Any]]) -> str:
    labels = [f"{item['labels']:.2%} equal labels, " if item["labels"] else "" for item in accuracy]
    pairs = zip(labels, accuracy, strict=True)
    return "; ".join(f"{item['output']}: {text}cosine {item['cosine']:.4f}" for text, item in pairs)


def require_parity(report: ParityReport) -> None:
    """Turn a failed report into the gate's error.

    Raises:
        GateFailed: if an engine is not equal to eager PyTorch.
    """
    failed = [result.engine for result in report.engines if not result.passed]
    if failed:
        raise GateFailed(f"parity failed: {', '.join(failed)} differs from eager PyTorch FP32")
