"""One calibration of a bundle: what its steps hand on, and the three graphs that they write."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn_export.benchmarks.accuracy import Accuracy, compare_output, is_near
from attn_export.benchmarks.cases import load_reference
from attn_export.benchmarks.metrics import Comparer
from attn_export.benchmarks.race import best_ms
from attn_export.benchmarks.tolerances import COSINES
from attn_export.bundle import Bundle
from attn_export.engines.engine import Engine
from attn_export.int8_options import Int8Options
from attn_export.manifest import EngineRecord, GraphRecord
from attn_export.portable import GRAPH, Fp16Options, graph_record

if TYPE_CHECKING:
    from attn_export.calibration.activation_statistics import Statistics
    from attn_export.calibration.placement import Placement
    from attn_export.calibration.qdq import QdqSummary
    from attn_export.calibration.ranges import Ranges
    from attn_export.calibration.sampling import Sample

INT8_GRAPH = "model.int8.onnx"
INT8_FP16_GRAPH = "model.int8-fp16.onnx"
INT8_CPU_GRAPH = "model.int8-cpu.onnx"
BATCH_TOKENS = 2048
AUTO = ("percentile", "mse", "minmax")  # entropy takes its time and was never the nearest


def _fewer(bundle: Bundle, options: Int8Options, sample: Sample) -> Sample:
    from attn_export.calibration.sampling import stratified_sample

    manifest = bundle.manifest
    edges = manifest.buckets["edges"]
    return stratified_sample(
        sample.requests, options.samples, edges, options.seed, inputs=manifest.inputs
    )


@dataclass(frozen=True)
class _Symmetric:
    """A Q/DQ graph with one method's ranges."""

    path: Path
    ranges: Ranges
    summary: QdqSummary
    accuracy: list[dict[str, Any]]

    @property
    def worth(self) -> float:
        """Its worst output's signal to quantization noise."""
        return min(item["sqnr_db"] or -math.inf for item in self.accuracy)


class Work:
    """One calibration: what its steps hand on.

    Attributes:
        graph: what is quantized: the bundle's FP32 graph, or its smoothed form.
        ranges: of the activations, once calibrated.
    """

    ranges: Ranges

    def __init__(
        self, bundle: Bundle, options: Int8Options, sample: Sample, *, folder: Path, cache: Path
    ) -> None:
        self._bundle, self._options, self._sample = bundle, options, sample
        self._calibrated = _fewer(bundle, options, sample)
        self._folder, self._cache, self._say = folder, cache, options.say
        self.graph = bundle.directory / GRAPH
        self._placement: Placement
        self._statistics_of_all: Statistics
        self._moments: Mapping[str, Any] = {}
        self._expected: dict[str, Any] = {}
        self._notes: list[str] = list(sample.notes)

    def calibrate(self) -> None:
        """Decide what is quantized, and collect the ranges of its activations."""
        if self._options.smooth is not None:
            self.graph = self._smoothed(self._options.smooth)
        self._placement = self._place()
        self._statistics_of_all = self._statistics(self._placement.activations)
        self.ranges = self._statistics_of_all.ranges(self._methods()[0])

    def _place(self, left: Sequence[str] = ()) -> Placement:
        """What is quantized; the nodes that are ``left`` stay as they are."""
        from attn_export.calibration.placement import place
        from attn_export.exporter.graph_file import read_graph

        asked = self._options.placement(self._bundle.manifest.max_length)
        exclude = (*asked.exclude, *(re.escape(name) for name in left))
        return place(read_graph(self.graph), replace(asked, exclude=exclude))

    def _methods(self) -> tuple[str, ...]:
        return AUTO if self._options.method == "auto" else (self._options.method,)

    def collect_moments(self) -> None:
        """See in which directions the activations lie, so that weights are rounded for them."""
        from attn_export.calibration.placement import weight_gemms
        from attn_export.calibration.weight_rounding import second_moments
        from attn_export.exporter.graph_file import read_graph

        self._say("rounding the weights for the activations")
        activations = set(self._placement.activations)
        read = {
            node.inputs[0].name or ""
            for node in weight_gemms(read_graph(self.graph).graph)
            if node.inputs[0] is not None
        }
        self._moments = second_moments(self.graph, sorted(activations & read), self._batches())

    def write_symmetric(self) -> GraphRecord:
        """Q/DQ with FP32 around it, for TensorRT 8.6, with the ranges that serve it best.

        Small products of values stay as they are: their error is the one that no softmax damps. If
        that is not near enough, so do all products that make keys and values of shared heads.
        """
        from attn_export.calibration.cpu_int8 import cheap_values, shared_head_products

        tried = {m: self._try_ranges(m, cheap_values(self.graph)) for m in self._methods()}
        chosen = max(tried, key=lambda method: tried[method].worth)
        best, shared = tried[chosen], shared_head_products(self.graph)
        if shared and not self._is_near(best.accuracy):
            best = self._try_ranges(chosen, shared)
        self.ranges = best.ranges
        path = self._bundle.directory / INT8_GRAPH
        best.path.replace(path)
        record = graph_record(path, "int8")
        fp16 = self._bundle.manifest.graphs.get("fp16")
        record.keep_fp32 = fp16.keep_fp32 if fp16 else {}
        record.quantization = {
            "gemms": len(best.summary.gemms),
            "left": list(best.summary.left),
            "accuracy": best.accuracy,
            "methods": {method: one.accuracy for method, one in tried.items()},
        }
        self._notes += best.summary.notes
        return record

    def _try_ranges(self, method: str, left: Sequence[str]) -> _Symmetric:
        from attn_export.calibration.qdq import write_qdq

        self._say(f"writing the Q/DQ graph with ranges by {method}")
        ranges = self._statistics_of_all.ranges(method)
        path = self._folder / f"{method}.onnx"
        placement = self._place(left)
        summary = write_qdq(self.graph, ranges, placement, path, moments=self._moments)
        return _Symmetric(path, ranges, summary, self._accuracy_of(path))

    def write_with_fp16(self, fp16: Fp16Options) -> GraphRecord:
        """Q/DQ with FP16 around it, for TensorRT 10 and 11."""
        from attn_export.calibration.fp16_scales import FP16_OPSET, write_for_fp16
        from attn_export.exporter.export import write_checked
        from attn_export.exporter.fp16 import to_fp16
        from attn_export.exporter.graph_file import read_graph
        from attn_export.exporter.keep import keep_list

        self._say("writing the Q/DQ graph with FP16")
        draft = self._folder / INT8_FP16_GRAPH
        self._notes += write_for_fp16(self._bundle.directory / INT8_GRAPH, draft)
        model = read_graph(draft)
        # From the FP32 graph: behind Q/DQ no weight is seen that FP16 cannot hold.
        whole = read_graph(self._bundle.directory / GRAPH)
        keep = keep_list(whole, nodes=fp16.nodes_to_exclude, op_types=fp16.op_types_to_exclude)
        to_fp16(model, keep, fp16_io=fp16.fp16_io)
        path = self._bundle.directory / INT8_FP16_GRAPH
        write_checked(model, path, opset=FP16_OPSET)
        record = graph_record(path, "int8-fp16")
        record.keep_fp32, record.fp16_io = keep, fp16.fp16_io
        record.quantization["accuracy"] = self._accuracy_of(path, half=fp16.fp16_io)
        return record

    def write_for_cpu(self) -> GraphRecord:
        """The fastest of the CPU's forms that are near enough to FP32."""
        tried: dict[str, dict[str, Any]] = {}
        for rung in self._rungs():
            for name, how in rung.items():
                self._say(f"trying the CPU's INT8: {name}")
                tried[name] = self._try(name, how)
            if any(tried[name]["near"] for name in rung):
                break
        chosen = min(tried, key=lambda name: (not tried[name]["near"], tried[name]["ms"]))
        path = self._bundle.directory / INT8_CPU_GRAPH
        (self._folder / f"{chosen}.onnx").replace(path)
        record = graph_record(path, "int8-cpu")
        record.quantization = {
            "kind": chosen,
            "tried": tried,
            "accuracy": tried[chosen]["accuracy"],
        }
        return record

    def _rungs(self) -> Iterator[dict[str, dict[str, Any]]]:
        """What to try together, the fastest first; each next one is nearer to FP32 and slower."""
        from attn_export.calibration.cpu_int8 import cheap_values

        static = {"kind": "static", "ranges": self._statistics_of_all.ranges("mse")}
        dynamic = {"kind": "dynamic"}
        yield {"static": static, "dynamic": dynamic}
        values = [re.escape(name) for name in cheap_values(self.graph)]
        if values:
            yield {
                "static-values-fp32": {**static, "exclude": values},
                "dynamic-values-fp32": {**dynamic, "exclude": values},
            }
        yield {
            "static-refined": {**static, "refine": "weights"},
            "dynamic-refined": {**dynamic, "refine": "weights"},
        }
        # What is clipped cannot be refined: the whole range.
        whole = {"kind": "static", "ranges": self._statistics_of_all.ranges("minmax")}
        yield {
            "static-refined-twice": {**whole, "refine": "both"},
            "dynamic-refined-twice": {**dynamic, "refine": "both"},
        }

    def _try(self, name: str, how: Mapping[str, Any]) -> dict[str, Any]:
        from attn_export.calibration.cpu_int8 import write_cpu_int8

        path = self._folder / f"{name}.onnx"
        exclude = (*self._options.exclude, *how.get("exclude", ()))
        summary = write_cpu_int8(
            self.graph, path, **{**how, "exclude": exclude, "moments": self._moments}
        )
        return {**self._measured(path), "summary": summary}

    def facts(self) -> dict[str, Any]:
        """Where all three graphs come from."""
        from attn_export.calibration.statistics_cache import fingerprint

        sample, options = self._sample, self._options
        return {
            "data": options.data or "synthetic: uniform ids",
            "requests": len(self._calibrated.requests),
            "evaluated": len(sample.requests),
            "seen": sample.seen,
            "sha256": fingerprint(self._calibrated.requests),
            "method": self.ranges.method,
            "options": {
                "exclude": list(options.exclude),
                "residuals": options.residuals,
                "attention": options.attention,
                "smooth": options.smooth,
                "seed": options.seed,
            },
            "notes": list(dict.fromkeys(self._notes)),
        }

    def _smoothed(self, alpha: float) -> Path:
        from attn_export.calibration.smooth import smoothable, write_smoothed
        from attn_export.exporter.graph_file import read_graph

        norms, _ = smoothable(read_graph(self.graph))
        statistics = self._statistics((), channels=tuple(norms))
        self._say("moving scales from the norms into the weights")
        path = self._folder / GRAPH
        summary = write_smoothed(self.graph, statistics.channel_maxima, path, alpha=alpha)
        self._notes += [f"{name} is not smoothed: {why}" for name, why in summary.skipped.items()]
        return path

    def _batches(self) -> Iterator[dict[str, Any]]:
        from attn_export.calibration.sampling import batches_of_one_length

        inputs = self._bundle.manifest.inputs
        return batches_of_one_length(self._calibrated.requests, inputs, BATCH_TOKENS)

    def _statistics(self, tensors: Sequence[str], channels: Sequence[str] = ()) -> Statistics:
        from attn_export.calibration.statistics_cache import collect_cached, fingerprint

        total = len(self._calibrated.requests)
        told = 0

        def progress(done: int) -> None:
            nonlocal told
            if done - told >= total / 5 or done == total:
                told = done
                self._say(f"calibrating: {done} of {total} requests")

        statistics, cached = collect_cached(
            self.graph,
            [*tensors, *channels],
            self._batches(),
            folder=self._cache,
            data_sha256=fingerprint(self._calibrated.requests),
            channels=channels,
            progress=progress,
        )
        if cached:
            self._say("the statistics of an earlier calibration are used")
        return statistics

    def _accuracy_of(self, path: Path, *, half: bool = False) -> list[dict[str, Any]]:
        with self._open(path, half=half) as engine:
            return self._accuracy(engine)

    def _accuracy(self, engine: Engine) -> list[dict[str, Any]]:
        requests = list(self._sample.requests)
        if not self._expected:
            with self._open(self._bundle.directory / GRAPH) as whole:
                self._expected = whole.run_many(requests)
        got = engine.run_many(requests)
        return [
            compare_output(name, expected, got[name]).to_json()
            for name, expected in self._expected.items()
        ]

    def _measured(self, path: Path) -> dict[str, Any]:
        """A CPU graph's accuracy, whether that is near enough, and its time for the sample."""
        with self._open(path) as engine:
            accuracy = self._accuracy(engine)
            near = self._is_near(accuracy) and self._holds_parity(engine)
            ms = best_ms(engine, list(self._sample.requests))
        return {"accuracy": accuracy, "near": near, "ms": ms}

    def _is_near(self, accuracy: Sequence[Mapping[str, Any]]) -> bool:
        results = [Accuracy(**item) for item in accuracy]
        return is_near(results, self._options.min_agreement, self._options.min_cosine)

    def _holds_parity(self, engine: Engine) -> bool:
        """Whether the parity matrix will pass: its lengths and ids are not those of the data."""
        golden = self._bundle.manifest.reference
        assert golden is not None
        comparers = {
            spec.name: Comparer(spec.name, atol=0, rtol=0, least_cosine=COSINES["int8"])
            for spec in self._bundle.manifest.outputs
        }
        for case, expected in load_reference(self._bundle.verify(golden)).pairs:
            got = engine.run(case.feeds)
            for name, comparer in comparers.items():
                comparer.add(got[name], expected[name], case=case.name)
        return all(comparer.result().passed for comparer in comparers.values())

    def _open(self, path: Path, *, half: bool = False) -> Engine:
        from attn_export.engines.onnxruntime import open_graph

        manifest = self._bundle.manifest
        graph = GraphRecord(precision=path.stem, files=[], fp16_io=half)
        session = open_graph(
            path,
            inputs=[graph.typed(spec) for spec in manifest.inputs],
            outputs=[graph.typed(spec) for spec in manifest.outputs],
            buckets=manifest.buckets["edges"],
            threads=None,
        )
        record = EngineRecord(backend="onnxruntime", precision=path.stem, graph=path.stem)
        return Engine(session, record, check_ids=False)
