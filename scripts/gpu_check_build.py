"""The GPU check's builds: ``gpu_check_build.py export|compile|compile-again JSON``.

They use ``attn_export.build``, which stands above the benchmarks: hence a program of their own.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from attn_export.benchmarks.gpu_check_cases import plans, smallest_cases
from attn_export.benchmarks.gpu_check_child import Answer, answer, say
from attn_export.bucketing import BucketOptions
from attn_export.build import BuildPlan, compile_bundle, portable_bundle
from attn_export.bundle import CACHE, Bundle, write_manifest
from attn_export.engines.profiles import Profile, bucket_profiles
from attn_export.engines.session import CompileOptions
from attn_export.manifest import EngineRecord, GraphRecord

LEAST_S = 1.0


def export(settings: dict[str, Any]) -> Answer:
    """A portable bundle, and eager PyTorch's outputs on further cases."""
    from attn_export.benchmarks.cases import save_reference
    from attn_export.benchmarks.eager import rebuild, run_case
    from attn_export.engines.trt_session import BATCH_TOKENS
    from attn_export.exporter.source import ModelSource
    from attn_export.portable import Fp16Options

    directory, extra = Path(settings["bundle"]), Path(settings["extra"])
    source = ModelSource(model=settings["model"], options=settings["options"])
    plan = BuildPlan(
        source=source,
        lowering=settings["lowering"],
        buckets=BucketOptions(count=settings["buckets"]),
        fp16=Fp16Options(),
        command="gpu_check",
    )
    portable_bundle(plan, directory, say=say)
    shutil.rmtree(directory / CACHE, ignore_errors=True)  # the times of another bundle's kernels
    manifest = Bundle.open(directory).manifest
    model = rebuild(manifest)
    edges = manifest.buckets["edges"]
    cases = smallest_cases(manifest.inputs, bucket_profiles(edges, BATCH_TOKENS))
    extra.parent.mkdir(parents=True, exist_ok=True)
    save_reference(extra, cases, [run_case(model, case) for case in cases])
    sizes = {name: sum(f.bytes for f in g.files) / 2**20 for name, g in manifest.graphs.items()}
    return {
        "numbers": {
            "parameters": manifest.model["parameters"],
            "edges": edges,
            "graphs_mib": sizes,
            "lint": {name: graph.lint for name, graph in manifest.graphs.items() if graph.lint},
        }
    }


def compile_engines(settings: dict[str, Any]) -> Answer:
    """Engines for the bundle, or for a copy of another one with profiles of its own."""
    directory = Path(settings["bundle"])
    if "copy_of" in settings:
        _copy(Path(settings["copy_of"]), directory)
    cache = directory / CACHE
    is_cold = not cache.is_dir() or not any(cache.iterdir())
    bundle = Bundle.open(directory)
    bundle.manifest.engines.clear()  # those of another TensorRT, or of other profiles
    write_manifest(directory, bundle.manifest)
    profiles = tuple(Profile.from_json(profile) for profile in settings.get("profiles", ()))
    report = compile_bundle(
        directory,
        backend="tensorrt",
        options=CompileOptions(profiles=profiles),
        tolerances=None,
        say=say,
    )
    found = Bundle.open(directory)
    engines = {name: _engine(found, record) for name, record in plans(found).items()}
    half = next(e["proof"] or {} for e in engines.values() if e["precision"] == "fp16")
    measured = {
        "fp16_gemm_share": half.get("gemm_share"),
        "fp16_time_ratio": half.get("time_ratio"),
        "parity_failures": sum(not result.passed for result in report.engines),
    }
    hidden = half.get("hidden") or "TensorRT's engine inspector does not show it"
    return {
        "values": {gate: value for gate, value in measured.items() if value is not None},
        "unmeasured": {gate: hidden for gate, value in measured.items() if value is None},
        "numbers": {"began_without_cache": is_cold, "engines": engines},
    }


def compile_again(settings: dict[str, Any]) -> Answer:
    """The same engines with the timing cache of the first build."""
    first = json.loads(Path(settings["first"]).read_text(encoding="utf-8"))["numbers"]
    if not first["began_without_cache"]:
        return {
            "skipped": "the first build began with the timing cache of an interrupted call; "
            f"remove {settings['first']} and {settings['copy_of']}/{CACHE} to measure both"
        }
    shutil.rmtree(settings["bundle"], ignore_errors=True)
    again = compile_engines(settings)["numbers"]
    seconds = {
        name: sum(engine["build_s"] for engine in numbers["engines"].values())
        for name, numbers in (("first", first), ("again", again))
    }
    numbers = {"build_s": seconds}
    if seconds["first"] < LEAST_S:
        why = f"the first build took less than {LEAST_S:g} s, too short to compare"
        return {"unmeasured": {"cache_speedup": why}, "numbers": numbers}
    # Recorded to a tenth of a second; a build of less is not infinitely fast.
    speedup = seconds["first"] / max(seconds["again"], 0.1)
    return {"values": {"cache_speedup": speedup}, "numbers": numbers}


def _copy(source: Path, target: Path) -> None:
    """A copy of a bundle, its timing cache included; one of the same graphs is kept."""
    is_same = target.exists() and _graphs(target) == _graphs(source)
    if not is_same:
        shutil.rmtree(target, ignore_errors=True)
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(target)


def _graphs(directory: Path) -> dict[str, GraphRecord]:
    return Bundle.open(directory).manifest.graphs


def _engine(bundle: Bundle, record: EngineRecord) -> dict[str, Any]:
    proof = record.proof
    attention = list((proof or {}).get("attention", {}).values())
    return {
        "precision": record.precision,
        "build_s": record.environment["build_s"],
        "plan_mib": bundle.manifest.shipped(record).bytes / 2**20,
        "device_mib": record.environment["device_mib"],
        "flags": record.environment["flags"],
        "notes": record.environment["notes"],
        "profiles": len(record.profiles),
        "buckets": record.buckets,
        "attention": {state: attention.count(state) for state in dict.fromkeys(attention)},
        "proof": proof,
        "parity": record.parity,
    }


PROGRAMS = {"export": export, "compile": compile_engines, "compile-again": compile_again}

if __name__ == "__main__":
    answer(PROGRAMS[sys.argv.pop(1)])
