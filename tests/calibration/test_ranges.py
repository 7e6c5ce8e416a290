"""Ranges and statistics: scales, files, merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.calibration.activation_statistics import Statistics, merge
from attn_export.calibration.histogram import Histogram
from attn_export.calibration.ranges import Ranges, TensorRange
from attn_export.errors import BundleError, UsageError

GRAPH, OTHER = "a" * 64, "b" * 64


def ranges(**tensors: tuple[float, float]) -> Ranges:
    return Ranges(
        graph_sha256=GRAPH,
        method="minmax",
        samples=2,
        tokens=6,
        tensors={name: TensorRange(*bounds) for name, bounds in tensors.items()},
        constants={"flat": 0.5},
        data={"runs": [{"file": "tweets.jsonl"}]},
    )


def statistics(*values: float, graph: str = GRAPH, name: str = "x") -> Statistics:
    histogram = Histogram()
    histogram.add(np.array(values, np.float32))
    return Statistics(
        graph_sha256=graph,
        samples=1,
        tokens=len(values),
        tensors={name: histogram},
        channel_maxima={name: np.array([max(values), 1.0], np.float32)},
        data=({"tokens": len(values)},),
    )


@pytest.mark.parametrize(
    ("bounds", "scale"),
    [((-1.27, 0.5), 0.01), ((0.0, 254.0), 2.0), ((0.0, 0.0), 1 / 127), ((-1e-40, 0.0), 1 / 127)],
)
def test_the_scale_is_the_larger_bound_over_127_and_never_zero(
    bounds: tuple[float, float], scale: float
) -> None:
    assert ranges(x=bounds).scale("x") == pytest.approx(scale)


def test_a_tensor_without_a_range_is_named() -> None:
    with pytest.raises(BundleError, match=r"layers\.0\.q .* \(1 others"):
        ranges(x=(0.0, 1.0)).scale("layers.0.q")


@pytest.mark.parametrize(
    "bounds", [(0.1, 1.0), (-1.0, -0.1), (0.0, float("inf")), (float("nan"), 1.0)]
)
def test_a_range_holds_zero_and_is_finite(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="does not hold 0"):
        TensorRange(*bounds)


def test_ranges_come_back_from_their_file(tmp_path: Path) -> None:
    kept = ranges(x=(-0.1, 1 / 3), y=(0.0, 7.5))
    kept.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json", graph_sha256=GRAPH) == kept


def test_statistics_come_back_from_their_file(tmp_path: Path) -> None:
    kept = statistics(0.1, -4.0, 3.0)
    kept.save(tmp_path / "statistics.json")
    read = Statistics.load(tmp_path / "statistics.json", graph_sha256=GRAPH)
    assert read.to_json() == kept.to_json()
    assert read.ranges("mse") == kept.ranges("mse")


@pytest.mark.parametrize("kept", [ranges(x=(0.0, 1.0)), statistics(1.0)])
def test_a_file_of_another_graph_is_refused(tmp_path: Path, kept: Ranges | Statistics) -> None:
    kept.save(tmp_path / "kept.json")
    with pytest.raises(BundleError, match=f"kept.json is of another graph.*aaaa….*{'b' * 12}…"):
        type(kept).load(tmp_path / "kept.json", graph_sha256=OTHER)


def test_ranges_of_another_graph_are_refused() -> None:
    ranges().require_graph(GRAPH)
    with pytest.raises(BundleError, match="another graph"):
        ranges().require_graph(OTHER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"holds": "statistics"}, "no file of calibration ranges"),
        ({"tensors": {"x": {"low": 1.0, "high": 2.0}}}, "does not hold 0"),
        ({"tensors": {"x": {"low": "a", "high": 2.0}}}, "broken"),
        ({"tensors": []}, "broken"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**ranges(x=(0.0, 1.0)).to_json(), **change}))
    with pytest.raises(BundleError, match=message):
        Ranges.load(tmp_path / "r.json", graph_sha256=GRAPH)


@pytest.mark.parametrize(
    "change", [{"tensors": {"x": {}}}, {"channel_maxima": {"x": "a"}}, {"tensors": None}]
)
def test_broken_statistics_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="statistics are broken"):
        Statistics.from_json({**statistics(1.0).to_json(), **change})


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"r\.json .*JSON"):
        Ranges.load(tmp_path / "r.json", graph_sha256=GRAPH)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json cannot be read"):
        Ranges.load(tmp_path / "none.json", graph_sha256=GRAPH)


def test_statistics_give_ranges_by_every_method() -> None:
    found = statistics(-1.0, 0.5, 3.0)
    minmax = found.ranges("minmax")
    assert minmax.tensors == {"x": TensorRange(-1.0, 3.0)}
    assert (minmax.method, minmax.samples, minmax.tokens) == ("minmax", 1, 3)
    assert minmax.data == {"runs": [{"tokens": 3}]}
    percentile = found.ranges("percentile", percentile=66)
    assert percentile.data["percentile"] == 66
    assert percentile.tensors["x"].high < 1.01


@pytest.mark.parametrize(("value", "scale"), [(0.0, 1 / 127), (-2.54, 0.02)])
def test_constants_are_noted(value: float, scale: float) -> None:
    found = statistics(value, value).ranges("percentile")
    assert found.constants == {"x": pytest.approx(value)}
    assert found.notes == [
        f"x is {value:g} everywhere in the calibration data; its range holds that alone"
    ]
    assert found.scale("x") == pytest.approx(scale)


def test_varying_tensors_are_not_noted() -> None:
    assert statistics(1.0, 2.0).ranges("minmax").notes == []


def test_merged_statistics_are_those_of_all_data() -> None:
    total = merge([statistics(1.0, -2.0), statistics(0.5), statistics(9.0, 0.1, 0.2)])
    whole = statistics(1.0, -2.0, 0.5, 9.0, 0.1, 0.2)
    assert total.tensors["x"].to_json() == whole.tensors["x"].to_json()
    assert (total.samples, total.tokens) == (3, 6)
    assert total.channel_maxima["x"].tolist() == [9.0, 1.0]
    assert [run["tokens"] for run in total.data] == [2, 1, 3]


def test_statistics_of_other_graphs_tensors_or_none_do_not_merge() -> None:
    with pytest.raises(BundleError, match="another graph"):
        merge([statistics(1.0), statistics(1.0, graph=OTHER)])
    with pytest.raises(UsageError, match="holds x, y"):
        merge([statistics(1.0), statistics(1.0, name="y")])
    with pytest.raises(UsageError, match="at least one"):
        merge([])
