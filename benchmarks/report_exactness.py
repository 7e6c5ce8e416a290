"""How near the engines are to eager PyTorch: parity, INT8's accuracy, and what INT8 costs where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .judge import ENGINE
from .report_data import Results
from .report_document import Bar, Bars, Note, Part, Table
from .report_numbers import number, percent

MOST_PARTS = 24
TITLES = {"layer": "One layer in INT8", "role": "One role in INT8", "node": "One node in INT8"}


def parity(results: Results) -> Iterator[Part]:
    """A row for each engine, graph and output."""
    report = results.found.get("parity")
    if report is None:
        yield results.missing("parity")
        return
    yield Note(
        text=f"{report['cases']} cases, {report['rows']} rows; the reference is "
        f"{report['reference']}: {report['reason']}."
    )
    columns = ("Engine", "Output", "Verdict", "Allowed", "Max diff", "p99")
    yield Table(
        caption="Differences from eager PyTorch FP32",
        columns=(*columns, "Mean", "1 - cosine", "Same label", "Would pass at"),
        rows=[
            (_ran(engine, run), *_output(output))
            for engine in report["engines"]
            for run in engine["runs"]
            for output in run["outputs"]
        ],
        words=4,
    )
    floor = report["noise_floor"]
    if floor:
        told = ", ".join(f"{name} {number(value)}" for name, value in floor.items())
        yield Note(text=f"For comparison, the largest error of eager PyTorch in FP16: {told}.")
    if report["dropped"]:
        yield Note(text=f"Not in the golden file (too large): {', '.join(report['dropped'])}.")


def _ran(engine: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    return f"{engine['engine']}" + ("" if run["what"] == ENGINE else f", {run['what']}")


def _output(output: Mapping[str, Any]) -> tuple[str, ...]:
    cosine, labels = output["cosine"], output["labels"]
    return (
        str(output["output"]),
        str(output["verdict"]),
        _allowed(output),
        *(number(output[key]) for key in ("max_abs", "p99_abs", "mean_abs")),
        "-" if cosine is None else f"{max(0.0, 1 - cosine):.2g}",
        "-" if labels is None else percent(labels),
        number(output["smallest_tolerance"]),
    )


def _allowed(output: Mapping[str, Any]) -> str:
    if output["least_cosine"] is not None:
        return f"cosine ≥ {output['least_cosine']:g}"
    return f"{output['atol']:g} + {output['rtol']:g}·|reference|"


def int8(results: Results) -> Iterator[Part]:
    """Accuracy of each INT8 graph and engine on real requests."""
    manifest = results.manifest
    graphs = manifest.graphs if manifest else {}
    quantized = {name: g.quantization for name, g in graphs.items() if g.quantization}
    if manifest and quantized:
        columns = ("What", "Output", "Accepted", "Ranges by", "Requests", "Same label")
        rows = [
            row
            for name, facts in quantized.items()
            for row in _accuracy(f"graph {name}", facts["accuracy"], facts)
        ]
        for name, engine in manifest.engines.items():
            if engine.accuracy:
                facts = {**quantized[engine.graph], "accepted": engine.accuracy["accepted"]}
                rows += _accuracy(name, engine.accuracy["results"], facts)
        yield Table(
            caption="Each INT8 graph and engine beside FP32, on the requests it was judged by",
            columns=(*columns, "Mean cosine", "Least cosine", "SQNR dB"),
            rows=rows,
            words=4,
        )
    else:
        name = results.directory.name
        yield Note(
            text="The bundle has no INT8 graph. It is made by: "
            f"attn-export calibrate {name} --data FILE",
            is_missing=True,
        )


def _accuracy(
    name: str, measured: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]
) -> Iterator[tuple[str, ...]]:
    for item in measured:
        yield (
            name,
            str(item["output"]),
            "NO" if facts["accepted"] is False else "yes",
            str(facts["method"]),
            f"{item['requests']:,}",
            "-" if item["labels"] is None else percent(item["labels"]),
            f"{item['cosine']:.5f}",
            f"{item['least_cosine']:.5f}",
            "-" if item["sqnr_db"] is None else f"{item['sqnr_db']:.1f}",
        )


def sensitivity(results: Results) -> Iterator[Part]:
    """Bars of the noise that each layer, role or node brings, and what to keep in FP32."""
    report = results.found.get("sensitivity")
    if report is None:
        yield results.missing("sensitivity")
        return
    for kind, title in TITLES.items():
        rows = [row for row in report["rows"] if row["kind"] == kind]
        if rows:
            few = f", the {MOST_PARTS} worst" if len(rows) > MOST_PARTS else ""
            yield Bars(
                caption=f"{title}, all else in FP32{few}: noise beside the signal",
                kinds=("INT8", "kept in FP32"),
                bars=[_noise(row, report["excludes"]) for row in rows[:MOST_PARTS]],
            )
    kept = ", ".join(report["excludes"]) or "none"
    yield Note(text=f"Nodes to keep in FP32: {kept}.")


def _noise(row: Mapping[str, Any], excludes: list[str]) -> Bar:
    sqnr, labels = row["sqnr_db"], row["labels"]
    share = 0.0 if sqnr is None else 10 ** (-float(sqnr) / 10)
    told = "no noise" if sqnr is None else f"{sqnr:.1f} dB"
    return Bar(
        label=str(row["name"]),
        value=share,
        text=told,
        kind=int(bool(set(row["nodes"]) & set(excludes))),
        detail="" if labels is None else f"same label {percent(labels)}",
    )
