"""The matrix of a folder: the three reference bundles, built where they are missing, and measured.

A folder of the matrix holds the bundles ``mha``, ``gqa`` and ``mqa``, and the results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn_export.benchmarks.matrix_cell import MODELS
from attn_export.bucketing import BucketOptions
from attn_export.bundle import MANIFEST, Bundle, write_atomic
from attn_export.errors import HostError, MissingPackage, UsageError
from attn_export.int8_options import Int8Options
from attn_export.options import command_line
from attn_export.portable import Fp16Options, Say, require_export

if TYPE_CHECKING:
    from attn_export.benchmarks.matrix_report import MatrixReport
    from attn_export.exporter.source import ModelSource

REPORT, PICTURE = "matrix.json", "matrix.png"


def run(
    directory: Path,
    *,
    data: Path | None,
    tokenizer: Path | None,
    quick: bool,
    threads: int | None,
    say: Say,
) -> tuple[MatrixReport, list[str]]:
    """Build the bundles that are missing, measure all three, write ``matrix.json`` and a picture.

    Missing bundles get FP16, and INT8 where there is data to calibrate it with; they are as large
    as those that are there.

    Returns:
        The report, and a line for each file that was written or could not be.

    Raises:
        UsageError: if ``directory`` is a bundle itself, or its bundles are of different size.
        AttnExportError: of the class that the failing step documents. Cells that fail are in the
            report.
    """
    from attn_export.benchmarks.matrix import run_matrix
    from attn_export.calibration.data import read_sequences

    if (directory / MANIFEST).exists():
        raise UsageError(
            f"{directory} is a bundle; the matrix takes a folder of its own for the bundles "
            f"{', '.join(MODELS)}, which it makes"
        )
    _build_missing(directory, data, tokenizer, say)
    bundles = {name: _verified(directory / name, say) for name in MODELS}
    sequences = None
    if data is not None:
        longest = min(bundle.manifest.max_length for bundle in bundles.values())
        sequences = read_sequences(data, tokenizer=tokenizer, max_length=longest)
    report = run_matrix(bundles, sequences=sequences, quick=quick, threads=threads, say=say)
    return report, [_keep(directory / REPORT, report), _draw(directory / PICTURE, report)]


def _keep(path: Path, report: MatrixReport) -> str:
    """Write the numbers; where that fails, the terminal still shows them."""
    try:
        write_atomic(path, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    except HostError as error:
        return f"no {path.name}: {error}"
    return f"{path}: the numbers"


def _draw(path: Path, report: MatrixReport) -> str:
    from attn_export.benchmarks.matrix_plot import plot_matrix

    try:
        plot_matrix(report, path)
    except (MissingPackage, UsageError) as error:
        path.unlink(missing_ok=True)  # of an earlier run
        return f"no picture: {error}"
    except HostError as error:
        return f"no picture: {error}"
    return f"{path}: the picture"


def _build_missing(directory: Path, data: Path | None, tokenizer: Path | None, say: Say) -> None:
    missing = [name for name in MODELS if not (directory / name / MANIFEST).exists()]
    if not missing:
        return
    require_export()
    from attn_export.build import BuildPlan, build

    like = _like(directory)
    for name in missing:
        plan = BuildPlan(
            source=replace(like, model=name),
            buckets=BucketOptions(data=data, tokenizer=tokenizer),
            fp16=Fp16Options(),
            int8=Int8Options(data=str(data), tokenizer=tokenizer) if data else None,
            command=command_line(),
        )
        build(plan, directory / name, say=_prefixed(say, name))


def _like(directory: Path) -> ModelSource:
    """The source of a bundle that is there, without its key/value heads; or the full-sized one."""
    from attn_export.exporter.source import ModelSource

    for found in _models(directory):
        source = ModelSource.from_json(found["source"])
        options = {k: v for k, v in source.options.items() if k != "num_kv_heads"}
        return replace(source, options=options, weights=None)
    return ModelSource(model=MODELS[0])


def _models(directory: Path) -> Iterator[dict[str, Any]]:
    for name in MODELS:
        if (directory / name / MANIFEST).exists():
            model = Bundle.open(directory / name).manifest.model
            if model.get("builtin"):
                yield model


def _verified(directory: Path, say: Say) -> Bundle:
    say(f"checking {directory}")
    bundle = Bundle.open(directory)
    for record in bundle.manifest.files:
        bundle.verify(record)
    return bundle


def _prefixed(say: Say, name: str) -> Say:
    return lambda text: say(f"{name}: {text}")
