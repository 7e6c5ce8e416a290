"""A part of a Q/DQ graph that is chosen computes what the graph written for that part computes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from attn_export.benchmarks.sensitivity_graph import SwitchedGraph, Trials
from attn_export.calibration.placement import Placement, PlacementOptions, place
from attn_export.calibration.qdq import write_qdq
from attn_export.calibration.ranges import Ranges
from attn_export.errors import BuildFailed, InputError
from attn_export.spec import TensorSpec
from tests.calibration.tiny_graphs import (
    Array,
    encoder_feeds,
    encoder_ranges,
    export_encoder,
    run_graph,
)

LOGITS = TensorSpec(name="logits", dtype="float32", shape=("batch", 3))
BATCHES = [encoder_feeds(length, batch=3) for length in (5, 12)]


@dataclass(frozen=True)
class Made:
    """An FP32 graph and its Q/DQ form."""

    fp32: Path
    placement: Placement
    ranges: Ranges
    quantized: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("encoder")
    graph = export_encoder(folder, "gqa", "expand")
    placement = place(ir.load(graph), PlacementOptions())
    ranges = encoder_ranges(graph, placement)
    write_qdq(graph, ranges, placement, folder / "q.onnx")
    return Made(graph, placement, ranges, folder / "q.onnx")


def as_it_rounds(path: Path, feeds: dict[str, Array]) -> Any:
    """A Q/DQ graph's first output, with nothing fused."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options).run(None, feeds)[0]


def test_no_edges_are_the_fp32_graph(made: Made) -> None:
    got = SwitchedGraph(made.quantized).answers((), BATCHES, [LOGITS])["logits"]
    expected = np.concatenate([run_graph(made.fp32, feeds) for feeds in BATCHES])
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(".*", id="all"),
        pytest.param(r"layers\.1\..*", id="a layer"),
        pytest.param(r".*\.query\.gemm", id="a role"),
        pytest.param(r"layers\.0\.attention\.output\.gemm", id="a node"),
    ],
)
def test_a_choice_is_the_graph_that_is_written_without_the_rest(
    chosen: str, made: Made, tmp_path: Path
) -> None:
    edges = [edge for edge in made.placement.edges if re.fullmatch(chosen, edge[0])]
    rest = {node for node, _ in made.placement.edges} - {node for node, _ in edges}
    options = PlacementOptions(exclude=tuple(map(re.escape, sorted(rest))))
    path = tmp_path / "alone.onnx"
    write_qdq(made.fp32, made.ranges, place(ir.load(made.fp32), options), path)
    got = SwitchedGraph(made.quantized).answers(edges, BATCHES, [LOGITS])["logits"]
    expected = np.concatenate([as_it_rounds(path, feeds) for feeds in BATCHES])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    fp32 = np.concatenate([run_graph(made.fp32, feeds) for feeds in BATCHES])
    assert np.abs(got - fp32).max() > 1e-4  # more than arithmetic: it is quantized


def test_pairs_that_nobody_reads_are_gone_and_weights_stay_in_their_file(made: Made) -> None:
    switched = SwitchedGraph(made.quantized)
    edges = [edge for edge in made.placement.edges if edge[0] == "layers.0.attention.key.gemm"]
    assert len(edges) == 2
    model = switched.model(edges)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 2
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == 2
    assert all(node.op_type != "QuantizeLinear" for node in switched.model(()).graph.node)
    assert model.ByteSize() < 0.5 * onnx.load(made.quantized).ByteSize()


def test_trials_run_each_choice_once_and_compare_with_fp32(made: Made) -> None:
    trials = Trials(SwitchedGraph(made.quantized), BATCHES, [LOGITS])
    (first,) = trials.measure(made.placement.edges)
    assert trials.measure(list(reversed(made.placement.edges))) == (first,)
    assert (trials.runs, first.requests, first.output) == (1, 6, "logits")
    assert first.sqnr_db is not None
    assert 10 < first.sqnr_db < 60
    (nothing,) = trials.measure(())
    assert (trials.runs, nothing.sqnr_db) == (1, None)


def test_rows_of_different_lengths_stay_apart(made: Made) -> None:
    hidden = TensorSpec(name="logits", dtype="float32", shape=("batch", "sequence"))
    got = SwitchedGraph(made.quantized).answers(made.placement.edges, BATCHES, [hidden])["logits"]
    assert isinstance(got, list)
    assert len(got) == 6


def test_feeds_that_do_not_fit_are_refused(made: Made) -> None:
    with pytest.raises(InputError, match=r"input_ids \[3\]"):
        SwitchedGraph(made.quantized).answers((), [{"input_ids": np.zeros(3, np.int32)}], [LOGITS])


def test_a_graph_that_cannot_be_opened_is_refused(made: Made, tmp_path: Path) -> None:
    model = onnx.load(made.quantized)
    model.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    with pytest.raises(BuildFailed, match="cannot open the Q/DQ graph"):
        SwitchedGraph(path).answers((), BATCHES, [LOGITS])
