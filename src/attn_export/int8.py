"""The INT8 graphs of a bundle: real requests -> ranges -> Q/DQ for TensorRT, and a CPU's own form.

Calibration and export meet here in files; both halves know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from attn_export.benchmarks.accuracy import (
    Accuracy,
    compare_output,
    is_near,
    require_accuracy,
)
from attn_export.bundle import Bundle, file_record
from attn_export.engines.engine import open_engine
from attn_export.engines.session import LoadOptions
from attn_export.int8_graphs import Work
from attn_export.int8_options import Int8Options, require_data
from attn_export.lazy import require
from attn_export.manifest import EngineRecord, Manifest
from attn_export.portable import Fp16Options

if TYPE_CHECKING:
    from attn_export.benchmarks.sensitivity_report import SensitivityReport
    from attn_export.calibration.requests import Request
    from attn_export.calibration.sampling import Sample

RANGES = "calibration.json"
EVALUATED = 2000  # requests that accuracy is measured on, where there are as many


def quantize(
    bundle: Bundle, options: Int8Options, *, fp16: Fp16Options | None, cache: Path
) -> Sequence[Request]:
    """Add the INT8 graphs to a staged bundle, and measure each on the data.

    Three graphs from one placement and one set of ranges: symmetric Q/DQ at opset 17 for
    TensorRT 8.6, the same with FP16 around it for 10 and 11, and the one that is fastest on a CPU
    of those that are near enough to FP32. :func:`require_accurate` is the gate, applied once the
    bundle is written.

    Args:
        fp16: what stays FP32 in the graph with FP16 around the products.
        cache: where statistics are kept between runs.

    Returns:
        The requests that accuracy was measured on, for :func:`measure_engines`.

    Raises:
        UsageError, InputError: if there is no data, or it is broken.
        BuildFailed: if the graph cannot be quantized.
        MissingPackage: if onnx, onnx-ir or onnxruntime is missing.
    """
    for module, extra in (("onnx", "export"), ("onnx_ir", "export"), ("onnxruntime", "cpu")):
        require(module, extra=extra)
    require_data(options)
    sample = _sample(bundle, options)
    with TemporaryDirectory(dir=bundle.directory, prefix=".int8-") as name:
        work = Work(bundle, options, sample, folder=Path(name), cache=cache)
        work.calibrate()
        work.collect_moments()
        graphs = {
            "int8": work.write_symmetric(),
            "int8-fp16": work.write_with_fp16(fp16 or Fp16Options()),
            "int8-cpu": work.write_for_cpu(),
        }
    for key, record in graphs.items():
        results = [Accuracy(**item) for item in record.quantization["accuracy"]]
        record.quantization |= work.facts()
        record.quantization["accepted"] = is_near(
            results, options.min_agreement, options.min_cosine
        )
        bundle.manifest.graphs[key] = record
    work.ranges.save(bundle.directory / RANGES)
    bundle.manifest.calibration = file_record(bundle.directory / RANGES, root=bundle.directory)
    return sample.requests


def measure_engines(bundle: Bundle, requests: Sequence[Request], options: Int8Options) -> None:
    """Hold each INT8 engine to FP32 on requests: what a backend computes is not what a graph says.

    A graph's accuracy is ONNX Runtime's; another backend may compute what is not quantized in BF16
    or FP16. The result stands in the engine's record.

    Raises:
        AttnExportError: if an engine cannot be opened or run.
    """
    engines = bundle.manifest.engines
    quantized = [record for record in engines.values() if record.precision == "int8"]
    if not quantized:
        return
    whole = EngineRecord(backend="onnxruntime", precision="fp32", graph="fp32")
    expected = _answers(bundle, whole, requests)
    for record in quantized:
        got = _answers(bundle, record, requests)
        results = [compare_output(name, expected[name], got[name]) for name in expected]
        record.accuracy = {
            "accepted": is_near(results, options.min_agreement, options.min_cosine),
            "results": [result.to_json() for result in results],
        }


def _answers(bundle: Bundle, record: EngineRecord, requests: Sequence[Request]) -> dict[str, Any]:
    with open_engine(bundle, record, LoadOptions(allow_host_code=True)) as engine:
        return engine.run_many(requests)


def study(bundle: Bundle, options: Int8Options, *, cache: Path) -> SensitivityReport:
    """Measure what INT8 costs by layer and role; the bundle is only read.

    Raises:
        AttnExportError: as :func:`quantize` does.
    """
    from attn_export.benchmarks.sensitivity import measure_sensitivity

    require_data(options)
    sample = _sample(bundle, options)
    manifest = bundle.manifest
    with TemporaryDirectory() as name:
        work = Work(bundle, options, sample, folder=Path(name), cache=cache)
        work.calibrate()
        return measure_sensitivity(
            work.graph,
            work.ranges,
            options.placement(manifest.max_length),
            sample.requests,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            edges=manifest.buckets["edges"],
            min_agreement=options.min_agreement,
            min_cosine=options.min_cosine,
            workdir=Path(name),
            say=options.say,
        )


def require_accurate(manifest: Manifest, keys: Iterable[str], options: Int8Options) -> None:
    """The gate on the accuracy that the manifest records for some of its INT8 graphs.

    Raises:
        GateFailed: naming the graph and the numbers.
    """
    for key in keys:
        recorded = manifest.graphs[key].quantization.get("accuracy", [])
        require_accuracy(
            [Accuracy(**item) for item in recorded],
            what=f"the graph {key}",
            least_labels=options.min_agreement,
            least_cosine=options.min_cosine,
        )


def _sample(bundle: Bundle, options: Int8Options) -> Sample:
    """The requests that accuracy is measured on; some of them are calibrated with."""
    from attn_export.benchmarks.workload import synthetic_sequences
    from attn_export.calibration.data import stream_requests
    from attn_export.calibration.sampling import stratified_sample

    manifest = bundle.manifest
    skipped: list[str] = []
    say = options.say
    say("reading the requests")
    requests: Iterable[Mapping[str, Any]]
    if options.data is None:
        ids = next(spec.name for spec in manifest.inputs if spec.role == "ids")
        requests = ({ids: row} for row in synthetic_sequences(manifest.inputs, manifest.max_length))
    else:
        requests = stream_requests(
            options.data,
            inputs=manifest.inputs,
            tokenizer=options.tokenizer,
            max_length=manifest.max_length,
            skip_bad_rows=options.skip_bad_rows,
            on_skip=lambda error: skipped.append(str(error)),
        )
    edges, inputs = manifest.buckets["edges"], manifest.inputs
    count = max(options.samples, EVALUATED)
    sample = stratified_sample(requests, count, edges, options.seed, inputs=inputs)
    if skipped:
        say(f"{len(skipped)} broken rows were left out, the first: {skipped[0]}")
    for note in sample.notes:
        say(note)
    return sample
