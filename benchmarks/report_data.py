"""The results that stand in a bundle or in a folder of the matrix, read without trusting them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from attn_export.bundle import MANIFEST, REPORTS
from attn_export.errors import BundleError, UsageError
from attn_export.manifest import SCHEMA_VERSION, Manifest, read_manifest

from .report_document import Note

Made = TypeVar("Made")
PNG = b"\x89PNG\r\n\x1a\n"
# What a file that is not what its name says runs into.
BROKEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of results: the newest schema that is read, and the command that writes it."""

    file: str
    schema: int
    command: str
    holds: str


RESULTS = {
    "parity": Source(file=f"{REPORTS}/parity.json", schema=1, command="parity {0}", holds="parity"),
    "bench": Source(file=f"{REPORTS}/bench.json", schema=2, command="bench {0}", holds="speed"),
    "check": Source(file=f"{REPORTS}/check.json", schema=1, command="check {0}", holds="gates"),
    "self-test": Source(
        file=f"{REPORTS}/self-test.json",
        schema=1,
        command="bench {0} --self-test",
        holds="a self-test of the measurement",
    ),
    "sensitivity": Source(
        file=f"{REPORTS}/sensitivity.json",
        schema=1,
        command="calibrate {0} --sensitivity --data FILE",
        holds="sensitivity to INT8",
    ),
    "plan": Source(
        file=f"{REPORTS}/plan.json",
        schema=1,
        command="plan {0} --rate RATE",
        holds="a deployment plan",
    ),
    "packing": Source(
        file=f"{REPORTS}/packing.json", schema=1, command="packing {0}", holds="a study of packing"
    ),
    "matrix": Source(
        file="matrix.json", schema=1, command="bench {0} --matrix", holds="the matrix of models"
    ),
}
SOURCES = {
    **RESULTS,
    "manifest": Source(
        file=MANIFEST, schema=SCHEMA_VERSION, command="build -o {0}", holds="a bundle"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was found.

    Args:
        found: the content of each file of ``RESULTS`` that is there and can be read.
        problems: what is there and cannot be read, one sentence each, by source.
        picture: the content of matrix.png.
        bundles: the results of the bundles in this folder, where it is a folder of the matrix.
    """

    directory: Path
    manifest: Manifest | None
    found: Mapping[str, dict[str, Any]]
    problems: Mapping[str, str]
    picture: bytes | None
    bundles: Mapping[str, Results]

    @property
    def name(self) -> str:
        """What the page calls it: the model, or the folder."""
        if self.manifest is not None:
            return str(self.manifest.model.get("name") or self.directory.name)
        return self.directory.name

    @property
    def pages(self) -> Path:
        """Where its pages go: beside the results."""
        is_bundle = self.manifest is not None or (self.directory / REPORTS).is_dir()
        return self.directory / REPORTS if is_bundle else self.directory

    def missing(self, name: str) -> Note:
        """Says that a source is not there, and which command writes it."""
        source = SOURCES[name]
        if name in self.problems:
            return Note(text=self.problems[name], is_missing=True)
        return Note(
            text=f"Not here yet: {source.holds}. It is written by: {self.command(name)}",
            is_missing=True,
        )

    def command(self, name: str) -> str:
        """The command that writes a source."""
        return "attn-export " + SOURCES[name].command.format(self.directory.name)


def read_results(directory: Path) -> Results:
    """Read what stands in a folder; a file that cannot be read becomes a problem, not an error.

    Raises:
        UsageError: if there is no such folder, or neither a bundle nor any results in it.
    """
    if not directory.is_dir():
        raise UsageError(
            f"{directory} is not a folder; name a bundle, or the folder of 'bench --matrix'"
        )
    directory = directory.resolve()  # "." has no name
    results = _read(directory)
    if results.manifest is None and not results.found and not results.problems:
        raise UsageError(
            f"{directory} holds neither a bundle nor results ({MANIFEST}, {REPORTS}/*.json, "
            f"matrix.json); make a bundle with 'attn-export build -o {directory}'"
        )
    return results


def _read(directory: Path) -> Results:
    found: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    present = {k: v for k, v in RESULTS.items() if (directory / v.file).exists()}
    for name, source in present.items():
        try:
            found[name] = _content(directory / source.file, source)
        except (OSError, ValueError, RecursionError) as error:  # noqa: PERF203 - a few files
            problems[name] = f"{source.file} cannot be read: {error}"
    manifest = None
    try:
        manifest = read_manifest(directory / MANIFEST)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, BundleError) as error:
        problems["manifest"] = f"{MANIFEST} cannot be read: {error}"
    inner = sorted(directory.glob(f"*/{MANIFEST}")) if "matrix" in found else []
    return Results(
        directory=directory,
        manifest=manifest,
        found=found,
        problems=problems,
        picture=_picture(directory / "matrix.png"),
        bundles={path.parent.name: _read(path.parent) for path in inner},
    )


def _content(path: Path, source: Source) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ValueError: if it is no JSON object, or of a newer schema.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("it holds no JSON object")
    version = data.get("schema_version", 1)
    if not isinstance(version, int) or version > source.schema:
        raise ValueError(
            f"it has schema {version}, this version of attn-export reads up to {source.schema}; "
            "upgrade attn-export, or measure again"
        )
    return data


def _picture(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if content.startswith(PNG) else None


def guarded(
    results: Results, name: str, make: Callable[[], Made], otherwise: Callable[[str], Made]
) -> Made:
    """What ``make`` makes of a source; where its content is not what it should be, the other."""
    try:
        return make()
    except BROKEN as error:
        return otherwise(
            f"{SOURCES[name].file} is not what this version of attn-export writes "
            f"({type(error).__name__}: {error}); write it again with: {results.command(name)}"
        )
