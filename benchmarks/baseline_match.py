"""A recorded ratio is comparable only on the same hardware, with the same settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.engines.doctor import examine
from attn_export.errors import UsageError

from .baseline import RecordedBaseline
from .bench_report import BenchReport
from .bench_settings import comparable_settings
from .machine_state import quota_cpus
from .workload import Ids

# What a person calls it -> its key in the settings.
SETTINGS = {
    "model": "model",
    "parameters": "parameters",
    "dimensions": "dimensions",
    "data (sha256)": "data_sha256",
    "sequences": "sequences",
    "max length": "max_length",
    "batch size": "batch_size",
    "threads": "threads",
    "quick": "quick",
}
# What decides how fast an engine and eager PyTorch are.
RUNTIMES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def require_same_circumstances(
    baseline: RecordedBaseline, here: Mapping[str, Any], on_gpu: bool
) -> None:
    """Refuse a comparison that would say nothing.

    Args:
        here: what :func:`circumstances` found.
        on_gpu: whether an engine runs there, so that the GPUs count.

    Raises:
        UsageError: with each difference.
    """
    then = {**_settings(baseline.report.settings), **_hardware(baseline.report)}
    names = [name for name in here if on_gpu or name != "GPUs"]
    different = [
        f"{name}: {then.get(name)!r} there, {here[name]!r} here"
        for name in names
        if then.get(name) != here[name]
    ]
    if different:
        raise UsageError(
            f"{baseline.path} was measured under other circumstances and cannot be compared: "
            f"{'; '.join(different)}. Measure the baseline here ('attn-export bench' on the old "
            "bundle, with the same --data), or give the old bundle itself: then both run in turn"
        )


def other_versions(baseline: RecordedBaseline) -> str | None:
    """What a ratio to eager PyTorch may have changed by beside the bundle, in words, or None."""
    there = baseline.report.environment.get("packages") or {}
    installed = {p.name: p.version for extra in examine().extras.values() for p in extra}
    different = [
        f"{name} {there[name]}, here {installed[name]}"
        for name in RUNTIMES
        if there.get(name) and installed.get(name) and there[name] != installed[name]
    ]
    return f"the baseline was measured with {'; '.join(different)}" if different else None


def circumstances(
    bundle: Bundle, sequences: Sequence[Ids], *, data: str, **given: Any
) -> dict[str, Any]:
    """What a comparison with a record of the past would be made under here and now.

    Args:
        data: what the sequences are, in words.
        given: ``batch_size``, ``threads`` and ``quick``.
    """
    found = examine()
    settings = comparable_settings(bundle, sequences, data=data, **given)
    return {
        **_settings(settings),
        "CPU": found.cpu.model,
        "CPUs": found.cpu.cores,
        "CPU quota": quota_cpus(Path("/")),
        "GPUs": [gpu.name for gpu in found.cuda.gpus],
    }


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings.get(key) for name, key in SETTINGS.items()}


def _hardware(report: BenchReport) -> dict[str, Any]:
    cpu, machine, cuda = (report.environment.get(key) or {} for key in ("cpu", "machine", "cuda"))
    return {
        "CPU": cpu.get("model"),
        "CPUs": cpu.get("cores"),
        "CPU quota": machine.get("quota_cpus"),
        "GPUs": [gpu.get("name") for gpu in cuda.get("gpus", ())],
    }
