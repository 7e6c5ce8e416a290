"""Three tiny bundles for the matrix, and a report of numbers that were made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attn_export.benchmarks.matrix_cell import (
    BATCHES,
    EAGER_AUTOCAST,
    EAGER_FP32,
    MODELS,
    MODES,
    PADDED,
    Cell,
)
from attn_export.benchmarks.matrix_report import MatrixReport
from attn_export.benchmarks.stats import median_interval
from attn_export.bundle import Bundle, write_manifest
from attn_export.exporter.source import ModelSource

from .conftest import DIMENSIONS, EDGES, make_bundle


def tiny_bundles(directory: Path, **dimensions: int) -> dict[str, Bundle]:
    """The three models with ONNX Runtime's FP32 engine, and one in FP16 that a CPU widens."""
    found = {}
    for name in MODELS:
        options = {**DIMENSIONS, "max_length": EDGES[-1], **dimensions}
        if name == "gqa":
            options["num_kv_heads"] = 2
        folder = directory / name
        folder.mkdir()
        found[name] = make_bundle(folder, ModelSource(model=name, options=options))
        passed(found[name])
    return found


def passed(bundle: Bundle, name: str | None = None) -> None:
    """Record that parity passed on an engine's bytes, or on those of all."""
    manifest = bundle.manifest
    for engine in manifest.engines.values():
        if name in (None, engine.name):
            engine.parity = {"passed": True, "sha256": manifest.shipped(engine).sha256}
    write_manifest(bundle.directory, manifest)


def sample_cell(rate: float, **given: Any) -> Cell:
    """A cell of seven rounds, the middle one of which reached ``rate``."""
    rounds = [rate * factor for factor in (0.97, 1.0, 1.02, 0.99, 1.01, 1.03, 0.98)]
    cell: dict[str, Any] = {"model": "mha", "variant": EAGER_FP32, "engine": None, "batch": 64}
    cell |= {"mode": PADDED, "rounds": rounds, "samples_per_s": median_interval(rounds)}
    batch_ms = 64e3 / rate
    latency = {"p50": batch_ms, "p90": 1.1 * batch_ms, "p99": 1.2 * batch_ms}
    return Cell(**{**cell, "latency_ms": latency, "groups": 7, "peak_mib": 600.0, **given})


RATES = {EAGER_FP32: 50.0, EAGER_AUTOCAST: 150.0, "engine-fp32": 120.0, "engine-bf16": 600.0}


def sample_report(**changed: Any) -> MatrixReport:
    """All cells measured, but FP16 on a CPU, INT8 that died, and one that lacked memory."""
    cells = []
    for m, model in enumerate(MODELS):
        for variant in (*RATES, "engine-fp16", "engine-int8"):
            for batch in BATCHES:
                for mode in MODES:
                    place: dict[str, Any] = {"model": model, "variant": variant, "batch": batch}
                    place |= {"mode": mode, "engine": None}
                    if variant == "engine-fp16":
                        cells.append(Cell(**place, note="a CPU computes FP16 graphs in FP32"))
                    elif variant == "engine-int8":
                        cells.append(Cell(**place, failed="its process was ended by SIGKILL"))
                    elif (model, variant, batch) == ("mha", EAGER_AUTOCAST, 128):
                        cells.append(Cell(**place, note="out of memory: 8 GB"))
                    else:
                        rate = RATES[variant] * (1 + 0.2 * m) * (1 if mode == PADDED else 4)
                        peak = 600.0 - 60 * m + batch
                        cells.append(sample_cell(rate, **place, peak_mib=peak))
    settings = {
        "data": "2,500 synthetic sequences",
        "mean_length": 29.9,
        "max_length": 128,
        "batches": list(BATCHES),
        "threads": 4,
        "rounds": 7,
        "quick": False,
        EAGER_AUTOCAST: "bf16",
        "peak_mib": {EAGER_FP32: "the process's peak"},
    }
    environment = {"cpu": {"model": "A CPU", "cores": 4}}
    given: dict[str, Any] = {"settings": settings, "environment": environment, "cells": cells}
    given |= {"load_average": (0.5, 1.0), "notes": ["the machine had other work"]}
    return MatrixReport(**{**given, **changed})
