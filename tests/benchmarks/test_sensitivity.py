"""What INT8 costs and what must be left out of it, on encoders that are spoiled on purpose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from attn_export.benchmarks.sensitivity import measure_sensitivity
from attn_export.benchmarks.sensitivity_report import SensitivityReport
from attn_export.calibration.collect import collect
from attn_export.calibration.placement import PlacementOptions, place
from attn_export.calibration.qdq import write_qdq
from attn_export.calibration.ranges import Ranges
from attn_export.calibration.requests import Request
from attn_export.calibration.sampling import batches_of_one_length
from attn_export.errors import BundleError, InputError
from attn_export.spec import TensorSpec
from tests.calibration.tiny_graphs import export_encoder, node, run_graph, save_graph

INPUTS = (
    TensorSpec(name="input_ids", dtype="int32", shape=("batch", "sequence"), role="ids", limit=60),
    TensorSpec(name="attention_mask", dtype="int32", shape=("batch", "sequence"), role="mask"),
)
OUTPUTS = (TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),)
EDGES = (8, 16)
SPOILED = "layers.1.attention.output.gemm"
DEFAULT = PlacementOptions()


def ids(count: int) -> list[Request]:
    rng = np.random.default_rng(7)
    lengths = rng.integers(2, 17, count)
    return [{"input_ids": rng.integers(0, 60, n, dtype=np.int32)} for n in lengths]


REQUESTS = ids(300)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_encoder(tmp_path_factory.mktemp("healthy"), "mha", "expand", num_layers=3)


@pytest.fixture(scope="module")
def spoiled(healthy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One channel of the values 1,000 times as large, and the next weight's row as small.

    The model computes the same. In INT8 that channel takes the whole range of what the output
    projection reads, and the other channels become zero.
    """
    model = onnx.load(healthy)
    scale(model, "layers.1.attention.value.weight", (slice(None), 5), 1000)
    scale(model, "layers.1.attention.value.bias", (5,), 1000)
    scale(model, "layers.1.attention.output.weight", (5, slice(None)), 1 / 1000)
    path = tmp_path_factory.mktemp("spoiled") / "model.onnx"
    onnx.save(model, path)
    return path


def scale(model: onnx.ModelProto, name: str, where: tuple[Any, ...], factor: float) -> None:
    (tensor,) = [item for item in model.graph.initializer if item.name == name]
    values = numpy_helper.to_array(tensor).copy()
    values[where] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def calibrated(graph: Path, options: PlacementOptions = DEFAULT) -> Ranges:
    placement = place(ir.load(graph), options)
    batches = batches_of_one_length(REQUESTS, INPUTS, 512)
    return collect(graph, placement.activations, batches, threads=1).ranges("minmax")


def study(
    graph: Path,
    *,
    options: PlacementOptions = DEFAULT,
    min_agreement: float = 0.99,
    min_cosine: float | None = None,
    **more: Any,
) -> SensitivityReport:
    return measure_sensitivity(
        graph,
        calibrated(graph, options),
        options,
        REQUESTS,
        inputs=INPUTS,
        outputs=OUTPUTS,
        edges=EDGES,
        min_agreement=min_agreement,
        min_cosine=min_cosine,
        **more,
    )


@pytest.fixture(scope="module")
def found(spoiled: Path) -> SensitivityReport:
    return study(spoiled, min_agreement=0.97, sampled=60)


def agreement(graph: Path, quantized: Path) -> float:
    same = [
        (run_graph(graph, feeds).argmax(1) == run_graph(quantized, feeds).argmax(1))
        for feeds in batches_of_one_length(REQUESTS, INPUTS, 512)
    ]
    return float(np.concatenate(same).mean())


# Numbers


def test_the_noise_of_one_product_by_hand(tmp_path: Path) -> None:
    # Steps: x 0.02, w 0.01 and 0.02 by column; all of w is on its grid, and of x 1.0 is, while
    # -0.403 becomes -0.4. So y = [1.4715, -3.02362] is off by 0.003 * [-0.5, 2.54].
    weight = np.array([[1.27, -2.0], [-0.5, 2.54]], np.float32)
    graph = save_graph(tmp_path / "model.onnx", [node("MatMul", "x,w", "y")], {"w": weight})
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", "sequence", 2))
    requests = [{"x": np.array([[1.0, -0.403]], np.float32)}]
    # The largest magnitude, 2.54, is 127 steps.
    wide = [{"x": np.array([[[2.54, 0.0]]], np.float32)}]
    report = measure_sensitivity(
        graph,
        collect(graph, ["x"], wide, threads=1).ranges("minmax"),
        DEFAULT,
        requests,
        inputs=[spec],
        outputs=[TensorSpec(name="y", dtype="float32", shape=("batch", "sequence", 2))],
        edges=(4,),
        min_agreement=1.0,
    )
    signal = 1.4715**2 + 3.02362**2
    noise = (0.003 * 0.5) ** 2 + (0.003 * 2.54) ** 2
    (row,) = report.rows
    assert (row.name, row.kind, row.nodes, row.labels) == ("y", "layer", ("y",), None)
    assert row.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=1e-2)  # 52.73
    assert report.before[0].sqnr_db == row.sqnr_db
    assert report.excludes == ()  # a cosine of 0.99 is asked for where there are no labels


# What is found


def test_the_spoiled_layer_and_role_are_ranked_first(found: SensitivityReport) -> None:
    layers, roles = found.rows_of("layer"), found.rows_of("role")
    assert (layers[0].name, roles[0].name) == ("layers.1", "layers.*.attention.output.gemm")
    assert {row.name for row in layers} == {"layers.0", "layers.1", "layers.2"}
    assert len(roles) == 4
    for rows in (layers, roles):
        noises = [row.sqnr_db or 0.0 for row in rows]
        assert noises == sorted(noises)
        assert noises[0] + 10 < noises[1]


def test_the_spoiled_node_alone_is_excluded(found: SensitivityReport) -> None:
    assert found.excludes == (SPOILED,)
    assert found.rows_of("node")[0].name == SPOILED
    before, after = found.before[0], found.after[0]
    assert before.requests == after.requests == found.requests == len(REQUESTS)
    assert before.labels is not None
    assert after.labels is not None
    assert before.labels < 0.97 <= after.labels


def test_the_excludes_do_in_the_written_graph_what_the_report_says(
    found: SensitivityReport, spoiled: Path, tmp_path: Path
) -> None:
    shares = []
    for exclude in ((), tuple(found.patterns())):
        path = tmp_path / "model.int8.onnx"
        placement = place(ir.load(spoiled), PlacementOptions(exclude=exclude))
        write_qdq(spoiled, calibrated(spoiled), placement, path)
        shares.append(agreement(spoiled, path))
    # The engine's INT8 kernels add up in another order than the simulation.
    assert shares == pytest.approx([found.before[0].labels, found.after[0].labels], abs=0.01)


def test_where_all_is_fine_nothing_is_excluded(healthy: Path) -> None:
    report = study(healthy, min_agreement=0.9)
    assert report.excludes == ()
    assert report.after == report.before
    assert {row.kind for row in report.rows} == {"layer", "role"}
    assert report.notes == ()
    # 3 layers and 4 roles on the sample, and all of them once on all requests.
    assert report.evaluations == 8


@pytest.mark.parametrize("min_cosine", [0.999, 0.9999, 0.99998])
def test_the_budget_is_held(healthy: Path, min_cosine: float) -> None:
    report = study(healthy, min_cosine=min_cosine, sampled=60)
    assert report.after[0].cosine >= min_cosine
    assert bool(report.excludes) == (report.before[0].cosine < min_cosine)
    assert len(report.excludes) < report.nodes


def test_a_tighter_budget_excludes_more(healthy: Path) -> None:
    counts = [
        len(study(healthy, min_cosine=bound, sampled=60).excludes)
        for bound in (0.9, 0.9999, 0.99998)
    ]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[1] < counts[2]


def test_where_no_int8_holds_everything_is_excluded_and_said(healthy: Path) -> None:
    report = study(healthy, min_cosine=1.1)
    assert len(report.excludes) == report.nodes
    assert "INT8 does not hold the bound anywhere" in report.notes[0]
    assert report.after[0].sqnr_db is None


def test_residual_adds_and_the_attentions_products_are_parts_too(healthy: Path) -> None:
    options = PlacementOptions(residuals=True, attention=True, max_length=16)
    report = study(healthy, options=options, min_cosine=1.1, sampled=60)
    roles = {row.name for row in report.rows_of("role")}
    assert {"layers.*.residual", "layers.*.attention.scores"} < roles
    assert set(report.excludes) == {n for row in report.rows_of("layer") for n in row.nodes}


def test_what_the_options_exclude_is_not_looked_at(spoiled: Path) -> None:
    options = PlacementOptions(exclude=(re.escape(SPOILED), "classifier.*"))
    report = study(spoiled, options=options, min_agreement=0.9)
    assert SPOILED not in {name for row in report.rows for name in row.nodes}
    assert report.excludes == ()


def test_progress_is_told_and_the_folder_is_left_as_it_was(healthy: Path, tmp_path: Path) -> None:
    said: list[str] = []
    study(healthy, min_agreement=0.5, workdir=tmp_path, say=said.append)
    assert "alone in INT8, 7 of 7: layers.*.attention.output.gemm" in said
    assert list(tmp_path.iterdir()) == []


# Bad input


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        pytest.param([], "no requests", id="none"),
        pytest.param(
            [{"input_ids": np.zeros(17, np.int32)}], "the last bucket ends at 16", id="too long"
        ),
    ],
)
def test_requests_that_do_not_serve_are_refused(
    healthy: Path, requests: Sequence[Request], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure_sensitivity(
            healthy,
            calibrated(healthy),
            DEFAULT,
            requests,
            inputs=INPUTS,
            outputs=OUTPUTS,
            edges=EDGES,
            min_agreement=0.9,
        )


def test_ranges_of_another_graph_are_refused(healthy: Path, spoiled: Path) -> None:
    with pytest.raises(BundleError):
        measure_sensitivity(
            healthy,
            calibrated(spoiled),
            DEFAULT,
            REQUESTS,
            inputs=INPUTS,
            outputs=OUTPUTS,
            edges=EDGES,
            min_agreement=0.9,
        )
