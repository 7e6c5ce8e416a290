"""report.html and report.md: everything that is known of a bundle or a matrix, on one page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attn_export import __version__
from attn_export.bundle import write_atomic
from attn_export.errors import HostError

from . import (
    report_exactness,
    report_limits,
    report_matrix,
    report_origin,
    report_packing,
    report_speed,
)
from .environment import gpu_name
from .html_page import html_page
from .html_parts import part
from .markdown_report import blocks_of, markdown_report
from .report_data import Results, guarded, read_results
from .report_document import Document, Part, Section, Verdict
from .report_verdicts import tiles, verdicts

log = logging.getLogger("attn_export")

PAGES = ("report.html", "report.md")
Make = Callable[[Results], Iterator[Part]]
# Title -> what makes its parts, each with the source that it reads.
BUNDLE: dict[str, tuple[tuple[str, Make], ...]] = {
    "Throughput": (("bench", report_speed.throughput),),
    "Peers": (("bench", report_speed.peers),),
    "Latency": (("bench", report_speed.latency),),
    "Throughput by length": (("manifest", report_speed.by_length),),
    "Packing": (("packing", report_packing.packing),),
    "Limits of the machine": (("bench", report_limits.limits),),
    "Parity": (("parity", report_exactness.parity),),
    "INT8": (
        ("manifest", report_exactness.int8),
        ("sensitivity", report_exactness.sensitivity),
    ),
    "Gates": (("check", report_origin.gates), ("self-test", report_origin.self_test)),
    "Plan": (("plan", report_origin.plan),),
}
MATRIX: dict[str, tuple[tuple[str, Make], ...]] = {"Matrix": (("matrix", report_matrix.matrix),)}
LAST: dict[str, tuple[tuple[str, Make], ...]] = {
    "Environment": (
        ("bench", report_origin.environment),
        ("matrix", report_origin.matrix_environment),
    ),
    "Provenance": (("manifest", report_origin.provenance),),
}


def write_reports(directory: Path) -> list[Path]:
    """Write report.html and report.md from whatever results stand in a folder.

    Of a bundle they go into its ``reports``, of a folder of the matrix beside matrix.json. What is
    absent is named with the command that makes it; a broken file becomes a warning on the page.

    Returns:
        The files that were written.

    Raises:
        UsageError: if there is no such folder, or neither a bundle nor any results in it.
        HostError: if the files cannot be written.
    """
    results = read_results(directory)
    document = make_document(results)
    written = []
    for name, render in zip(PAGES, (html_page, markdown_report), strict=True):
        # A folder's name need not be UTF-8, and JSON may hold half a character.
        content = render(document).encode(errors="backslashreplace")
        write_atomic(results.pages / name, content)
        written.append(results.pages / name)
    return written


def refresh_pages(directory: Path) -> list[Path]:
    """Write the pages anew after a measurement; pages that cannot be written get a warning."""
    try:
        return write_reports(directory)
    except HostError as error:
        log.warning("the pages were not written: %s", error)
        return []


def make_document(results: Results) -> Document:
    """What the pages say."""
    is_matrix = "matrix" in results.found and results.manifest is None
    titles = {**(MATRIX if "matrix" in results.found else {}), **({} if is_matrix else BUNDLE)}
    sections = [
        Section(title=title, parts=[p for made in makers for p in _parts(results, *made)])
        for title, makers in {**titles, **LAST}.items()
    ]
    return Document(
        title=f"{results.name}: speed and exactness",
        subtitle=_subtitle(results),
        tiles=[*tiles(results)],
        verdicts=[*verdicts(results)],
        sections=[section for section in sections if section.parts],
        footer=f"Written by attn-export {__version__}. This page loads nothing from elsewhere.",
    )


def _parts(results: Results, source: str, make: Make) -> list[Part]:
    def broken(text: str) -> list[Part]:
        return [Verdict(status="warning", text=text)]

    return [
        shown
        for made in guarded(results, source, lambda: [*make(results)], broken)
        for shown in guarded(results, source, lambda made=made: [_drawable(made)], broken)  # type: ignore[misc]
    ]


def _drawable(made: Part) -> Part:
    """The part, drawn once: on the page it would no longer be known which file is broken."""
    part(made)
    list(blocks_of(made))
    return made


def _subtitle(results: Results) -> str:
    """The model and the machine in one line."""
    said = []
    if results.manifest is not None:
        model = results.manifest.model
        if isinstance(model.get("parameters"), int):
            said.append(f"{model['parameters']:,} parameters")
    for name in ("bench", "matrix"):
        if name in results.found:
            said += guarded(results, name, lambda n=name: _machine(results.found[n]), lambda _: [])  # type: ignore[misc]
            break
    return " · ".join(said)


def _machine(report: dict[str, Any]) -> list[str]:
    environment = report["environment"]
    gpu = gpu_name(environment)
    cpu = environment["cpu"]
    packages = environment.get("packages") or {}
    versions = [f"{k} {packages[k]}" for k in ("torch", "onnxruntime", "openvino") if k in packages]
    return [
        *([gpu] if gpu else []),
        f"{cpu['model']}, {cpu['cores']} cores",
        *versions,
    ]
