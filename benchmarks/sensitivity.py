"""What INT8 costs, layer by layer and role by role, and what must be left out of it.

Each layer and each role is quantized alone on a sample of the requests. Where INT8 as a whole is
beyond the bound, nodes are left out until it holds over all requests, the most harmful first by an
estimate from their layer's noise and their role's. What was left out is then measured node by node,
and the least harmful come back while the bound holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from attn_export import roles
from attn_export.calibration.graph_structure import read_structure
from attn_export.calibration.placement import Edge, Placement, PlacementOptions, place
from attn_export.calibration.qdq import write_qdq
from attn_export.calibration.ranges import Ranges
from attn_export.calibration.requests import Request
from attn_export.calibration.sampling import batches_of_one_length, stratified_sample
from attn_export.errors import BuildFailed
from attn_export.spec import TensorSpec

from .accuracy import Accuracy, is_near
from .sensitivity_graph import Feeds, SwitchedGraph, Trials
from .sensitivity_parts import Part, split_by_layer
from .sensitivity_report import Row, SensitivityReport
from .sensitivity_search import by_estimate, fewest_excluded

SAMPLED = 200
BATCH_TOKENS = 2048
WORST_DB = -100.0

Say = Callable[[str], None]


def measure_sensitivity(
    graph: Path,
    ranges: Ranges,
    options: PlacementOptions,
    requests: Sequence[Request],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    edges: Sequence[int],
    min_agreement: float,
    min_cosine: float | None = None,
    sampled: int = SAMPLED,
    workdir: Path | None = None,
    say: Say = lambda _: None,
) -> SensitivityReport:
    """Quantize each layer and each role alone, and find what to exclude to hold a bound.

    The Q/DQ graph is run as it rounds, in FP32 arithmetic, so that the numbers are those of no
    one engine. An engine of the graph without its ``excludes`` still has its own gate.

    Args:
        graph: the FP32 graph.
        ranges: of the tensors that ``options`` quantize in it.
        requests: what accuracy is over; ``edges``, ascending, in tokens, must hold them.
        min_agreement, min_cosine: the bound, as :func:`~.accuracy.require_accuracy` takes it.
        sampled: of how many requests, spread over the lengths, one part alone is measured.
        workdir: an existing folder with room for a copy of the weights; left as it was.

    Raises:
        InputError: if there are no requests, or one is too long.
        BundleError: if the ranges are those of another graph, or lack a tensor.
        BuildFailed: if the graph cannot be quantized or run.
        UsageError: if ``options`` do not suit it.
        MissingPackage: if onnxruntime is not installed.
    """
    few = stratified_sample(requests, sampled, edges, 0, inputs=inputs).requests
    model = ir.serde.deserialize_model(read_structure(graph))
    placement = place(model, options)
    with TemporaryDirectory(dir=workdir, prefix=".sensitivity-") as folder:
        say("writing the Q/DQ graph")
        path = Path(folder) / "quantized.onnx"
        summary = write_qdq(graph, ranges, placement, path)
        switched = SwitchedGraph(path)

        def trials(of: Sequence[Request]) -> Trials:
            batches: list[Feeds] = list(batches_of_one_length(of, inputs, BATCH_TOKENS))
            return Trials(switched, batches, outputs)

        say(f"running FP32 over {len(requests)} requests")
        whole = trials(requests)
        study = _Study(
            model=model,
            placement=placement,
            whole=whole,
            few=whole if len(few) == len(requests) else trials(few),
            min_agreement=min_agreement,
            min_cosine=min_cosine,
            say=say,
        )
        report = study.report(requests=len(requests), sampled=len(few))
    return replace(report, notes=(*summary.notes, *report.notes))


@dataclass(frozen=True, kw_only=True)
class _Study:
    """One graph, its requests and the bound."""

    model: ir.Model
    placement: Placement
    whole: Trials
    few: Trials
    min_agreement: float
    min_cosine: float | None
    say: Say

    def report(self, *, requests: int, sampled: int) -> SensitivityReport:
        nodes = tuple(dict.fromkeys(node for node, _ in self.placement.edges))
        layers, by_role = split_by_layer(nodes)
        rows = self._alone([*layers, *by_role])
        excluded: list[str] = []
        if not self._holds(()):
            excluded = self._excluded(by_estimate(rows))
            singles = self._alone([Part(name, "node", (name,)) for name in excluded])
            excluded = self._excluded([row.name for row in singles])
            rows += singles
        trials = {id(item): item for item in (self.whole, self.few)}.values()
        return SensitivityReport(
            rows=tuple(rows),
            excludes=tuple(name for name in nodes if name in set(excluded)),
            nodes=len(nodes),
            before=self.whole.measure(self.placement.edges),
            after=self.whole.measure(self._edges_without(excluded)),
            min_agreement=self.min_agreement,
            min_cosine=self.min_cosine,
            requests=requests,
            sampled=sampled,
            evaluations=sum(item.runs for item in trials),
            notes=_notes(excluded, nodes),
        )

    def _alone(self, parts: Sequence[Part]) -> list[Row]:
        """Each part quantized alone; the most harmful first."""
        rows = []
        for number, part in enumerate(parts, start=1):
            edges = [edge for edge in self.placement.edges if edge[0] in part.nodes]
            rows.append(_row(part, self.few.measure(edges)))
            self.say(f"alone in INT8, {number} of {len(parts)}: {part.name}")
        return sorted(rows, key=lambda row: row.noise, reverse=True)

    def _excluded(self, order: Sequence[str]) -> list[str]:
        return list(fewest_excluded(order, self._holds))

    def _holds(self, excluded: Collection[str]) -> bool:
        results = self.whole.measure(self._edges_without(excluded))
        near = is_near(results, self.min_agreement, self.min_cosine)
        self.say(f"without {len(excluded)} nodes: {'holds' if near else 'does not hold'}")
        return near

    def _edges_without(self, excluded: Collection[str]) -> frozenset[Edge]:
        """What placement quantizes when these nodes are excluded as well."""
        edges = frozenset(self.placement.edges)
        if not excluded:
            return edges
        given = self.placement.options
        left = {node for node, _ in edges} - set(excluded)
        products = {node for node in left if roles.role_of(node) in (roles.SCORES, roles.CONTEXT)}
        options = replace(
            given,
            exclude=(*given.exclude, *map(re.escape, excluded)),
            attention=given.attention and bool(products),  # asked for, some must be there
        )
        try:
            return edges & frozenset(place(self.model, options).edges)
        except BuildFailed:  # nothing is left
            return frozenset()


def _row(part: Part, results: Sequence[Accuracy]) -> Row:
    noises = [result.sqnr_db for result in results if result.sqnr_db is not None]
    labels = [result.labels for result in results if result.labels is not None]
    return Row(
        name=part.name,
        kind=part.kind,
        nodes=part.nodes,
        sqnr_db=min(map(_finite, noises), default=None),
        labels=min(labels, default=None),
        cosine=min(result.cosine for result in results),
    )


def _finite(decibels: float) -> float:
    """A result that is NaN or infinite has the worst of numbers."""
    return max(decibels, WORST_DB) if math.isfinite(decibels) else WORST_DB


def _notes(excluded: Sequence[str], nodes: Sequence[str]) -> tuple[str, ...]:
    if len(excluded) < len(nodes):
        return ()
    return (
        "INT8 does not hold the bound anywhere in this graph; calibrate with other data or "
        "ranges, or ask for less",
    )
