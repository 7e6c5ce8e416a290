"""What a bundle is compared with: another build that runs beside it, or a recorded measurement."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_export.bundle import MANIFEST, REPORTS, Bundle
from attn_export.errors import BundleError, UsageError
from attn_export.spec import TensorSpec

from .bench_report import BenchReport, CandidateResult
from .candidates import BUCKETED, Settings
from .check_decision import LOOK_CONFIDENCE, LOOKS
from .stats import Interval, ratio_interval

# What the environment tells of the machine, each a dict.
HARDWARE = ("cpu", "machine", "cuda")
HOW = (
    "give a bundle's directory, or the bench.json that 'attn-export bench' writes into its reports"
)


@dataclass(frozen=True, kw_only=True)
class BuildBaseline:
    """Another build, at hand: both run in turn.

    Args:
        note: what a reader must know of the choice.
    """

    bundle: Bundle
    note: str = ""

    @property
    def engines(self) -> list[str]:
        """The engines that it has."""
        return list(self.bundle.manifest.engines)

    @property
    def described(self) -> str:
        """In words."""
        return f"the build {self.bundle.directory}, in turn with this one"


@dataclass(frozen=True, kw_only=True)
class RecordedBaseline:
    """A measurement of the past: the ratios to eager PyTorch are compared."""

    path: Path
    report: BenchReport
    note: str = ""

    @property
    def described(self) -> str:
        """In words."""
        return f"the ratios to eager PyTorch recorded in {self.path}"

    @property
    def engines(self) -> list[str]:
        """The engines that it measured."""
        pairs = [(result.engine, result.candidate) for result in self.report.results]
        return [engine for engine, kind in pairs if engine and kind == BUCKETED]

    def pair(self, engine: Settings, eager: Settings) -> tuple[CandidateResult, CandidateResult]:
        """What was recorded of an engine and of eager PyTorch beside it.

        Raises:
            UsageError: if one of them was not measured.
        """
        results = {result.name: result for result in self.report.results}
        for name in (engine.name, eager.name):
            if name not in results:
                raise UsageError(
                    f"{self.path} has no {name}; it has: {', '.join(results)}. Measure the "
                    "baseline where torch is installed, with every engine that is to be checked"
                )
        return results[engine.name], results[eager.name]

    def ratio(self, engine: Settings, eager: Settings) -> Interval:
        """How many times eager PyTorch the engine was, as wide as a look's interval.

        Raises:
            UsageError: if it was not measured, or in too few rounds.
        """
        found, beside = self.pair(engine, eager)
        if len(found.rounds) < LOOKS[0]:
            raise UsageError(
                f"{self.path} holds {len(found.rounds)} rounds, which is too few for a verdict; "
                f"measure the baseline with at least {LOOKS[0]}: 'attn-export bench' without "
                "--quick"
            )
        if len(found.rounds) != len(beside.rounds):
            raise UsageError(
                f"{self.path} holds {len(found.rounds)} rounds of {found.name} and "
                f"{len(beside.rounds)} of {beside.name}; a ratio needs as many of both. Measure "
                "the baseline again"
            )
        return ratio_interval(found.rounds, beside.rounds, LOOK_CONFIDENCE)


Baseline = BuildBaseline | RecordedBaseline


def open_baseline(path: Path, bundle: Bundle) -> Baseline:
    """Read a baseline; a recorded one whose bundle is there and whole becomes that build.

    The record in the checked bundle's own reports stays a record: a build is not slower than
    itself, but it may be slower than it was.

    Raises:
        UsageError: if there is nothing, it is no report, or it is of other inputs.
        BundleError: if a directory is no bundle or a broken one, or the report is of a newer
            version.
    """
    if path.is_dir():
        if not (path / MANIFEST).is_file():
            raise UsageError(f"the baseline {path} is a directory, but no bundle; {HOW}")
        found = _whole(path)
        _require_same_inputs(found, bundle)
        return BuildBaseline(bundle=found, note=_note(found, bundle))
    report = _read_report(path)
    folder = path.resolve().parent
    is_own = folder.parent == bundle.directory.resolve()
    if folder.name != REPORTS or is_own or not (folder.parent / MANIFEST).is_file():
        return RecordedBaseline(path=path, report=report)
    try:
        found = _whole(folder.parent)
    except BundleError as error:
        return RecordedBaseline(path=path, report=report, note=f"its build cannot run: {error}")
    if found.manifest.model.get("weights_sha256") != report.settings.get("weights_sha256"):
        note = f"the build beside {path} is not the one that it measured"
        return RecordedBaseline(path=path, report=report, note=note)
    _require_same_inputs(found, bundle)
    return BuildBaseline(bundle=found, note=_note(found, bundle))


def _read_report(path: Path) -> BenchReport:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be read: {error.strerror}; {HOW}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the baseline {path} is not a text file; {HOW}") from error
    if not text.strip():
        raise UsageError(f"the baseline {path} is empty; {HOW}")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UsageError(f"the baseline {path} is not JSON ({error}); {HOW}") from error
    try:
        report = BenchReport.from_json(data)
    except (UsageError, BundleError) as error:
        raise type(error)(f"the baseline {path}: {error}") from error
    if wrong := _wrong(report):
        raise UsageError(f"the baseline {path} was edited: {wrong}; {HOW}")
    return report


def _wrong(report: BenchReport) -> str | None:
    """The first thing in a record that no measurement writes, of what a comparison reads."""
    facts = report.environment if isinstance(report.environment, dict) else None
    parts = [facts, report.settings, *((facts or {}).get(name, {}) for name in HARDWARE)]
    for name, part in zip(("environment", "settings", *HARDWARE), parts, strict=True):
        if not isinstance(part, dict):
            return f"its {name} is {part!r}"
    for result in report.results:
        for rate in result.rounds:
            if not isinstance(rate, int | float) or not 0 < rate < math.inf:
                return f"{result.name} has a round of {rate!r} samples/s"
    return None


def _whole(directory: Path) -> Bundle:
    """A bundle whose files are what its manifest says."""
    bundle = Bundle.open(directory)
    for record in bundle.manifest.files:
        bundle.verify(record)
    return bundle


def _require_same_inputs(found: Bundle, bundle: Bundle) -> None:
    theirs, ours = (list(map(_said, b.manifest.inputs)) for b in (found, bundle))
    if theirs != ours:
        raise UsageError(
            f"the baseline {found.directory} takes {', '.join(theirs)}; {bundle.directory} takes "
            f"{', '.join(ours)}: they cannot answer the same requests"
        )


def _said(spec: TensorSpec) -> str:
    ids = f" below {spec.limit}" if spec.limit else ""
    return f"{spec.name} ({spec.dtype} {spec.role}{ids})"


def _note(found: Bundle, bundle: Bundle) -> str:
    if found.directory.resolve() == bundle.directory.resolve():
        return "the baseline is the checked bundle itself: what is compared is noise"
    theirs, ours = (_model(b.manifest.model) for b in (found, bundle))
    return "" if theirs == ours else f"the baseline is another model: {theirs}, here {ours}"


def _model(model: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{key} {value}" for key, value in (model.get("spec") or {}).items())
    described = f"{model.get('name')} with {model.get('parameters')} parameters"
    return f"{described} ({sizes})" if sizes else described
