"""``attn-export diagnose``: what breaks a bundle's FP16 or INT8, and FP16 mended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attn_export.bundle import CACHE, Bundle, extended
from attn_export.errors import BundleError
from attn_export.portable import FP16_GRAPH, GRAPH, Fp16Options, Say, write_fp16

if TYPE_CHECKING:
    from attn_export.benchmarks.cases import Array
    from attn_export.benchmarks.diagnosis_faults import Fault
    from attn_export.benchmarks.diagnosis_result import Diagnosis
    from attn_export.benchmarks.tolerances import Tolerances

INT8_ALLOWED = 0.1  # atol and rtol that name the first fault; the gate itself is on labels


def diagnose_bundle(
    directory: Path, *, tolerances: Tolerances | None, say: Say
) -> tuple[Diagnosis, Fault | None]:
    """Find what breaks FP16, keep it in FP32, and rewrite the FP16 graph and its engines.

    INT8 graphs are looked at where their accuracy was not accepted: the first fault is named, with
    what to exclude; nothing is rewritten for it.

    Returns:
        What was found and done, and the fault of the INT8 graph, if any.

    Raises:
        BundleError: if the bundle has no FP16 graph, or is broken; it is unchanged then.
        MissingPackage: if onnx, onnx-ir or onnxruntime is missing.
    """
    from attn_export.benchmarks.diagnosis import diagnose_fp16
    from attn_export.benchmarks.tolerances import Tolerances

    tolerances = tolerances or Tolerances()
    with extended(directory) as bundle:
        manifest = bundle.manifest
        record = manifest.graphs.get("fp16")
        if record is None:
            raise BundleError(f"{directory} has no FP16 graph to look into; build it with --fp16")
        for graph in (manifest.graphs["fp32"], record):
            bundle.verify_graph(graph)
        say("typing the graph and judging its rounding twin")
        excluded = tuple(re.escape(name) for name in record.keep_fp32.get("excluded", ()))
        found = diagnose_fp16(
            bundle.directory / GRAPH,
            bundle.directory,
            list(_cases(bundle)),
            allowed={s.name: tolerances.allowed(s.name, "fp16") for s in manifest.outputs},
            nodes=excluded,
            fp16_io=record.fp16_io,
            say=say,
        )
        fault = _int8_fault(bundle)
        if found.passed and found.pins:
            options = Fp16Options(
                nodes_to_exclude=(*excluded, *found.patterns()), fp16_io=record.fp16_io
            )
            _rewrite(bundle, options, directory / CACHE, tolerances, say)
    return found, fault


def _cases(bundle: Bundle) -> Iterator[tuple[Mapping[str, Array], dict[str, Array]]]:
    """The parity matrix. A user's own fully masked rows need only be finite: NaN says so."""
    from attn_export.benchmarks.cases import masked_rows
    from attn_export.benchmarks.oracle import choose_oracle

    manifest = bundle.manifest
    for case, expected in choose_oracle(bundle, "auto").stream(bundle):
        outputs = {name: array.copy() for name, array in expected.items()}
        if not manifest.model.get("builtin"):
            rows = masked_rows(manifest.inputs, case)
            for array in outputs.values():
                if len(array) == len(rows):
                    array[rows] = np.nan
        yield case.feeds, outputs


def _int8_fault(bundle: Bundle) -> Fault | None:
    from attn_export.benchmarks.diagnosis_faults import find_fault
    from attn_export.engines.feeds import seeded_feeds

    manifest = bundle.manifest
    graph = manifest.graphs.get("int8")
    if graph is None or graph.quantization.get("accepted", True):
        return None
    feeds = seeded_feeds(manifest.inputs, 4, int(manifest.buckets["edges"][0]))
    allowed = {spec.name: (INT8_ALLOWED, INT8_ALLOWED) for spec in manifest.outputs}
    whole = bundle.directory / GRAPH
    return find_fault(whole, bundle.verify_graph(graph), [feeds], allowed=allowed)


def _rewrite(
    bundle: Bundle, options: Fp16Options, cache: Path, tolerances: Tolerances, say: Say
) -> None:
    """A new FP16 graph in the staged bundle, and its engines for this machine made anew."""
    from attn_export.build import compile_and_prove
    from attn_export.engines.session import CompileOptions

    manifest = bundle.manifest
    engines = {n: e for n, e in manifest.engines.items() if e.graph == "fp16"}
    old: list[Any] = [*manifest.graphs["fp16"].files, manifest.graphs["fp16"].twin]
    old += [record for engine in engines.values() for record in engine.files]
    for record in filter(None, old):  # second names of the bundle's own files
        (bundle.directory / record.file).unlink(missing_ok=True)
    for name in engines:
        del manifest.engines[name]
    say(f"rewriting {FP16_GRAPH}")
    manifest.graphs["fp16"] = write_fp16(options, bundle.directory / GRAPH, bundle.directory)
    if any(engine.backend == "onnxruntime" and not engine.variant for engine in engines.values()):
        compiling = replace(CompileOptions(), cache=cache, say=say)
        compile_and_prove(bundle, ("onnxruntime",), compiling, tolerances)
