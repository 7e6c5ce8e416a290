"""Where the numbers come from: the machine, the settings, the files and their hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from .report_data import SOURCES, Results
from .report_document import Note, Part, Table
from .report_numbers import bytes_text, percent

MOST_ITEMS = 12


def environment(results: Results) -> Iterator[Part]:
    """The machine and the settings of the bundle's measurement."""
    if "bench" in results.found:
        yield from _circumstances(results, "bench")
    elif "matrix" not in results.found:
        yield results.missing("bench")


def matrix_environment(results: Results) -> Iterator[Part]:
    """The machine and the settings of the matrix."""
    if "matrix" in results.found:
        yield from _circumstances(results, "matrix")


def _circumstances(results: Results, name: str) -> Iterator[Table]:
    report = results.found[name]
    before, after = report["load_average"]
    rows = flat(report["environment"])
    rows.append(("load average", f"{before:.1f} before, {after:.1f} after"))
    yield Table(
        caption=f"The machine of {SOURCES[name].file}",
        columns=("What", "Found"),
        rows=rows,
        words=2,
    )
    settings = flat(report.get("settings") or {})
    if settings:
        yield Table(
            caption=f"The settings of {SOURCES[name].file}",
            columns=("Setting", "Value"),
            rows=settings,
            words=2,
            is_long=True,
        )


def provenance(results: Results) -> Iterator[Part]:
    """The model, the command that built it, every file's hash, and when results were written."""
    manifest = results.manifest
    if manifest is not None:
        tool = manifest.tool
        rows = [
            *flat({"model": {k: v for k, v in manifest.model.items() if k != "source"}}),
            ("built by", f"attn-export {tool.get('version', '?')}"),
            *flat({"packages of the build": tool.get("packages", {})}),
            ("command", manifest.command or "-"),
        ]
        yield Table(caption="The bundle", columns=("What", "Value"), rows=rows, words=2)
        yield Table(
            caption="Its files and their SHA-256",
            columns=("File", "SHA-256", "Size"),
            rows=[(f.file, f.sha256, bytes_text(f.bytes)) for f in manifest.files],
            words=2,
            is_long=True,
        )
    elif not results.bundles:
        yield Note(text="There is no manifest here: what was measured is not known.")
    yield Table(
        caption="The results on this page",
        columns=("File", "Written (UTC)", "Rewrite it with"),
        rows=[
            (SOURCES[name].file, _written(results, name), results.command(name))
            for name in results.found
        ],
        words=3,
    )


def plan(results: Results) -> Iterator[Part]:
    """The deployment plan, as it stands in its file."""
    report = results.found.get("plan")
    if report is None:
        yield results.missing("plan")
        return
    yield Table(
        caption="The deployment plan", columns=("What", "Value"), rows=flat(report), words=2
    )


def gates(results: Results) -> Iterator[Part]:
    """Every gate of check.json with its numbers."""
    report = results.found.get("check")
    if report is None:
        yield results.missing("check")
        return
    if report["baseline"]:
        yield Note(text=f"The baseline: {report['baseline']}.")
    yield Table(
        caption="Gates; the interval of the ratio to the baseline must exceed the limit",
        columns=("Gate", "Engine", "Verdict", "What was found", "Ratio", "Interval", "Limit", "CV"),
        rows=[_gate(gate) for gate in report["results"]],
        words=4,
    )


def _gate(gate: Mapping[str, Any]) -> tuple[str, ...]:
    ratio, limit, noise = gate["ratio"], gate["limit"], gate["noise"]
    return (
        str(gate["gate"]),
        str(gate["engine"]),
        str(gate["verdict"]),
        str(gate["text"]),
        f"{ratio['median']:.3f}" if ratio else "-",
        f"[{ratio['low']:.3f} to {ratio['high']:.3f}]" if ratio else "-",
        f"{limit:.3f}" if limit else "-",
        percent(noise) if noise is not None else "-",
    )


def self_test(results: Results) -> Iterator[Part]:
    """The measurement of an engine against itself."""
    report = results.found.get("self-test")
    if report is None:
        yield results.missing("self-test")
        return
    yield Note(
        text=f"Self-test: {report['engine']} against itself. A run sees differences from about "
        f"{percent(report['resolution'])}; up to {percent(report['practical'])} count as none; the "
        f"largest was {percent(report['largest_difference'])}."
    )
    yield Table(
        caption="Each run of the self-test",
        columns=("Run", "Ratio", "Interval"),
        rows=[
            (str(run), f"{r['median']:.3f}", f"[{r['low']:.3f} to {r['high']:.3f}]")
            for run, r in enumerate(report["ratios"], 1)
        ],
        is_long=True,
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as rows of a name and a text; a mapping of plain values is one row.

    >>> flat({"cpu": {"cores": 4, "features": {"avx2": True, "amx": False}}, "gpus": []})
    [('cpu cores', '4'), ('cpu features', 'avx2'), ('gpus', '-')]
    """
    rows = []
    for key, value in values.items():
        is_nested = isinstance(value, Mapping) and any(
            isinstance(item, Mapping) for item in value.values()
        )
        if is_nested:
            rows += flat(value, f"{prefix}{key} ")
        else:
            rows.append((f"{prefix}{key}".replace("_", " "), _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        if value and all(isinstance(item, bool) for item in value.values()):
            return ", ".join(str(key) for key, item in value.items() if item) or "-"
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        shown = ", ".join(_plain(item) for item in value[:MOST_ITEMS])
        more = f" and {len(value) - MOST_ITEMS} more" if len(value) > MOST_ITEMS else ""
        return f"{shown}{more}" or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None or value == "" else str(value)


def _written(results: Results, name: str) -> str:
    seconds = (results.directory / SOURCES[name].file).stat().st_mtime
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")
