"""The matrix of models, ways to run them, batches and padding; matrix.json by its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .matrix_factors import EXERCISE_PLACE
from .report_data import Results
from .report_document import Lines, Link, Part, Picture, Series, Table
from .report_numbers import measured, number, percent, spread

Cell = Mapping[str, Any]
MODES = {"padded": "padded to the maximum", "bucketed": "bucketed by length"}


def matrix(results: Results) -> Iterator[Part]:
    """The figure, throughput against batch, the factors, the cells and the bundles."""
    report = results.found.get("matrix")
    if report is None:
        yield results.missing("matrix")
        return
    if results.picture is not None:
        up = "../" if results.pages != results.directory else ""
        yield Picture(
            caption="The matrix at a glance", content=results.picture, file=f"{up}matrix.png"
        )
    cells: Sequence[Cell] = report["cells"]
    yield from _by_batch(cells)
    here = [factor for factor in report["factors"] if factor["batch"] == EXERCISE_PLACE.batch]
    yield _factors(
        here, "Improvement factors, round by round, beside what the source exercise reports"
    )
    others = [factor for factor in report["factors"] if factor not in here]
    if others:
        yield _factors(others, "Improvement factors at other batches", is_long=True)
    yield _savings(report["savings"])
    yield _table(cells)
    if results.bundles:
        yield Table(
            caption="The bundles behind it",
            columns=("Bundle", "Report"),
            rows=[(name, _page(bundle)) for name, bundle in results.bundles.items()],
            words=2,
        )


def _page(bundle: Results) -> Link | str:
    if not (bundle.pages / "report.html").is_file():
        return f"none yet: attn-export report {bundle.directory.name}"
    return Link(text="report.html", target=f"{bundle.directory.name}/reports/report.html")


def _by_batch(cells: Sequence[Cell]) -> Iterator[Lines]:
    """A chart for each model and padding; all with the same y axis."""
    done = [cell for cell in cells if cell["samples_per_s"]]
    kinds = {name: kind for kind, name in enumerate(dict.fromkeys(c["variant"] for c in done))}
    rates = [float(cell["samples_per_s"]["median"]) for cell in done]
    for mode, said in MODES.items():
        for model in dict.fromkeys(cell["model"] for cell in done):
            mine = [cell for cell in done if (cell["model"], cell["mode"]) == (model, mode)]
            variants = dict.fromkeys(cell["variant"] for cell in mine)
            if mine:
                yield Lines(
                    caption=f"{model.upper()}, {said}",
                    x="batch (log scale)",
                    y="samples/s (log scale)",
                    series=[_series(mine, variant, kinds[variant]) for variant in variants],
                    y_range=(min(rates), max(rates)),
                )


def _series(cells: Sequence[Cell], variant: str, kind: int) -> Series:
    points = [
        (cell["batch"], cell["samples_per_s"]["median"])
        for cell in sorted(cells, key=lambda cell: int(cell["batch"]))
        if cell["variant"] == variant
    ]
    return Series(name=variant, points=points, kind=kind)


def _factors(factors: Sequence[Mapping[str, Any]], caption: str, *, is_long: bool = False) -> Table:
    return Table(
        caption=caption,
        is_long=is_long,
        columns=("Factor", "Of", "Against", "Batch", "Times as fast", "Interval", "The exercise's"),
        rows=[
            (
                str(factor["name"]),
                _side(factor["of"]),
                _side(factor["against"]),
                str(factor["batch"]),
                number(factor["ratio"]["median"]) + "x",
                spread(factor["ratio"]),
                "-" if factor["exercise"] is None else f"{factor['exercise']}x",
            )
            for factor in factors
        ],
        words=3,
    )


def _side(side: Mapping[str, Any]) -> str:
    return f"{str(side['model']).upper()} {side['variant']} {side['mode']}"


def _savings(savings: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        caption="Memory saved against MHA, both eager FP32",
        columns=("Model", "Padding", "Batch", "Saved", "The exercise's"),
        rows=[
            (
                str(saving["model"]).upper(),
                str(saving["mode"]),
                str(saving["batch"]),
                percent(saving["share"]),
                "-" if saving["exercise"] is None else percent(saving["exercise"]),
            )
            for saving in savings
        ],
        words=2,
    )


def _table(cells: Sequence[Cell]) -> Table:
    columns = ("Model", "Variant", "Padding", "Note", "Batch", "Samples/s", "p50 ms", "p90 ms")
    return Table(
        caption="Every cell; latency is the time until all requests of a group are answered",
        columns=(*columns, "p99 ms", "Peak MiB"),
        rows=[_row(cell) for cell in cells],
        words=4,
        is_long=True,
    )


def _row(cell: Cell) -> tuple[str, ...]:
    ms, rate, peak = cell["latency_ms"], cell["samples_per_s"], cell["peak_mib"]
    failed = f"FAILED: {cell['failed']}" if cell["failed"] else None
    return (
        str(cell["model"]).upper(),
        str(cell["variant"]),
        str(cell["mode"]),
        failed or cell["note"] or "",
        str(cell["batch"]),
        measured(rate) if rate else "-",
        *(number(ms[key]) if ms else "-" for key in ("p50", "p90", "p99")),
        "-" if peak is None else number(peak),
    )
