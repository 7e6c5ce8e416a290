"""The charts: where values lie, worked out by hand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from attn_export.benchmarks.report_document import Bar, Histogram, Lines, Series
from attn_export.benchmarks.svg_axes import CountAxis, LogAxis, log_axis
from attn_export.benchmarks.svg_bars import bar, largest_of
from attn_export.benchmarks.svg_histogram import histogram
from attn_export.benchmarks.svg_lines import ROW, apart, lines, short


def test_a_logarithmic_axis_gives_each_power_of_ten_the_same_room() -> None:
    axis = LogAxis(low=1, high=1000, start=0, end=300)
    assert [axis.at(v) for v in (1, 10, 100, 1000)] == pytest.approx([0, 100, 200, 300])
    assert (axis.at(0.1), axis.at(1e6)) == (0, 300)
    assert axis.ticks() == [1, 3, 10, 30, 100, 300, 1000]


def test_a_short_logarithmic_axis_has_even_ticks() -> None:
    axis = LogAxis(low=8.4, high=11.7, start=0, end=300)
    assert axis.ticks() == [9, 10, 11]
    assert len(LogAxis(low=8.4, high=8.6, start=0, end=300).ticks()) >= 3


@pytest.mark.parametrize("values", [[], [0.0], [-1.0], [float("inf")]])
def test_a_logarithmic_axis_needs_a_positive_value(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        log_axis(values, 0, 100)


@pytest.mark.parametrize(
    ("high", "ticks"),
    [
        (1, [0, 1]),
        (2, [0, 1, 2]),
        (4, [0, 1, 2, 3, 4]),
        (10, [0, 2, 4, 6, 8, 10]),
        (28, [0, 5, 10, 15, 20, 25]),
        (165, [0, 50, 100, 150]),
    ],
)
def test_counts_begin_at_zero_and_have_whole_round_ticks(high: int, ticks: list[int]) -> None:
    axis = CountAxis(high=high, start=200, end=100)
    assert (axis.at(0), axis.at(high)) == (200, 100)
    assert axis.ticks() == ticks


def test_a_bar_is_as_long_as_its_share_and_its_whisker_spans_the_interval() -> None:
    shown = Bar(label="", value=50, low=40, high=60, text="", kind=2)
    root = ET.fromstring(bar(shown, largest_of([shown, Bar(label="", value=200, text="")])))
    assert root.get("class") == "bar k2"
    assert [rect.get("width") for rect in root.iter("rect")] == ["25.00%"]
    whisker = next(line for line in root.iter("line") if line.get("class") == "whisker")
    assert (whisker.get("x1"), whisker.get("x2")) == ("20.00%", "30.00%")


def test_bars_of_nothing_have_no_length() -> None:
    root = ET.fromstring(bar(Bar(label="", value=0, text=""), largest_of([])))
    assert [rect.get("width") for rect in root.iter("rect")] == ["0.00%"]


def test_names_at_the_lines_ends_lie_apart_and_inside() -> None:
    assert apart([100, 101, 50], 20, 250) == [100, 114, 50]
    placed = sorted(apart([250, 249, 251, 250], 20, 250))
    assert placed[-1] == 250
    assert all(b - a == ROW for a, b in pairwise(placed))


def test_lines_rise_with_their_values_and_are_told_apart_without_colour() -> None:
    shown = Lines(
        caption="<speed>",
        x="batch",
        y="samples/s",
        series=[
            Series(name="a&b", points=[(16, 10), (32, 100)]),
            Series(name="c", points=[(16, 20), (32, 10)], kind=1),
            Series(name="roof", points=[(16, 100), (32, 100)], is_limit=True),
        ],
    )
    root = ET.fromstring(lines(shown))
    label = root.get("aria-label") or ""
    assert label.startswith("<speed>: samples/s over batch: a&b from 10 to 100; c from 20 to 10")
    paths = [str(line.get("points")) for line in root.iter("polyline")]
    heights = [[float(p.split(",")[1]) for p in path.split()] for path in paths]
    assert heights[0][0] > heights[0][1]  # up is less
    assert heights[0][1] == heights[2][0] == heights[2][1]
    assert heights[0][0] == heights[1][1]
    assert len(list(root.iter("circle"))) == 2
    assert len(list(root.iter("polygon"))) == 2
    assert {"a&b", "c", "roof"} <= {text.text for text in root.iter("text")}


def test_a_long_name_keeps_its_end_and_all_names_have_room() -> None:
    assert short("onnxruntime-fp32") == "onnxruntime-fp32"
    assert short("tensorrt-fp16-sm75-10.16.1") == "…t-fp16-sm75-10.16.1"
    series = [Series(name="a" * 30, points=[(1, 1), (2, 2)])]
    root = ET.fromstring(lines(Lines(caption="", x="", y="", series=series)))
    name = next(text for text in root.iter("text") if text.get("class") == "name")
    assert float(str(name.get("x"))) + 6.5 * len(str(name.text)) < 360  # 6.5: a letter of 12 px


def test_the_numbers_of_a_chart_are_a_table() -> None:
    series = [Series(name="a", points=[(1, 5)]), Series(name="b", points=[(1, 6), (2, 1234)])]
    table = Lines(caption="", x="x", y="y", series=series).table()
    assert table.columns == ("x", "a", "b")
    assert list(table.rows) == [("1.00", "5.00", "6.00"), ("2.00", "-", "1,234")]


def test_a_histograms_columns_have_the_area_of_their_counts_and_empty_ends_are_cut() -> None:
    shown = Histogram(
        caption="", x="ms", edges=[1, 2, 4, 8, 16], counts=[0, 4, 2, 0], marks=[("p50", 3.0)]
    )
    root = ET.fromstring(histogram(shown))
    columns = [(float(str(r.get("width"))), float(str(r.get("height")))) for r in root.iter("rect")]
    assert len(columns) == 2
    assert columns[0][1] == pytest.approx(2 * columns[1][1], abs=0.2)
    assert columns[0][0] == pytest.approx(columns[1][0], abs=0.2)  # each is a doubling
    assert "p50 3.00" in {text.text for text in root.iter("text")}


@pytest.mark.parametrize(("edges", "counts"), [([1.0], []), ([1.0, 2.0], [0]), ([1.0], [3])])
def test_a_histogram_without_counts_or_edges_is_refused(
    edges: list[float], counts: list[int]
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{len(counts)} counts")):
        histogram(Histogram(caption="", x="", edges=edges, counts=counts, marks=[]))
