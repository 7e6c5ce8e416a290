"""A folder of the matrix: what is built, what is reused, what is written."""

from __future__ import annotations

import importlib.abc
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from attn_export import matrix
from attn_export.benchmarks import matrix as measuring
from attn_export.benchmarks.matrix_lineup import Contestant, contestants
from attn_export.benchmarks.matrix_report import MatrixReport
from attn_export.benchmarks.matrix_rounds import MatrixPlan
from attn_export.build import BuildPlan, build
from attn_export.bundle import Bundle
from attn_export.errors import BundleError, HostError, InputError, UsageError
from attn_export.exporter.source import ModelSource

TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_heads": 4,
    "num_layers": 2,
    "max_length": 16,
}
MOMENT = MatrixPlan(rounds=1, samples=1, turn_s=0.0, warm_up_s=0.0)


def engines_alone(bundles: Mapping[str, Bundle]) -> list[Contestant]:
    """A matrix that starts in moments: PyTorch takes seconds."""
    return [entry for entry in contestants(bundles) if entry.engine]


def run(directory: Path, data: Path | None = None) -> tuple[MatrixReport, list[str]]:
    return matrix.run(
        directory, data=data, tokenizer=None, quick=True, threads=1, say=lambda text: None
    )


def make(directory: Path, model: str, **changed: int) -> None:
    source = ModelSource(model=model, options={**TINY, **changed})
    build(BuildPlan(source=source, backend="onnxruntime"), directory / model, say=lambda text: None)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of which the models other than MHA were built by the matrix itself."""
    directory = tmp_path_factory.mktemp("folder") / "matrix"
    make(directory, "mha")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "QUICK", MOMENT)
        patch.setattr(measuring, "contestants", engines_alone)
        report, said = run(directory)
    assert said == [f"{directory}/matrix.json: the numbers", f"{directory}/matrix.png: the picture"]
    assert MatrixReport.from_json(json.loads((directory / "matrix.json").read_text())) == report
    return directory


@pytest.fixture
def folder(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change."""
    monkeypatch.setattr(measuring, "QUICK", MOMENT)
    monkeypatch.setattr(measuring, "contestants", engines_alone)
    return Path(shutil.copytree(kept, tmp_path / "matrix"))


def test_missing_bundles_are_built_as_large_as_the_one_that_is_there(kept: Path) -> None:
    models = {name: Bundle.open(kept / name).manifest for name in ("mha", "gqa", "mqa")}
    sizes = {name: manifest.model["source"]["options"] for name, manifest in models.items()}
    assert sizes["mha"] == sizes["gqa"] == sizes["mqa"] == TINY
    assert list(models["mha"].graphs) == ["fp32"]  # not built anew
    assert list(models["gqa"].graphs) == ["fp32", "fp16"]
    assert (kept / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_measured_again_without_building(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.onnx")}
    (folder / "data.jsonl").write_text('{"input_ids": [1, 2, 3]}\n{"input_ids": [4]}\n')
    report, _ = run(folder, data=folder / "data.jsonl")
    assert report.settings["data"] == "2 given sequences"
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.onnx")} == before


def test_an_altered_bundle_is_refused_and_the_old_results_stay(folder: Path) -> None:
    before = (folder / "matrix.json").read_bytes()
    with (folder / "mqa" / "model.onnx").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(BundleError, match=r"model\.onnx has"):
        run(folder)
    assert (folder / "matrix.json").read_bytes() == before


def test_bundles_of_different_size_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "gqa")
    make(folder, "gqa", num_layers=1)
    with pytest.raises(UsageError, match="different size"):
        run(folder)


def test_a_bundle_is_no_folder_of_the_matrix(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a bundle; the matrix takes a folder of its own"):
        run(folder / "mha")


@pytest.mark.parametrize("text", ['{"input_ids": [1, 200]}\n', ""])
def test_data_that_the_models_do_not_take_is_refused(folder: Path, text: str) -> None:
    (folder / "data.jsonl").write_text(text)
    with pytest.raises(InputError):
        run(folder, data=folder / "data.jsonl")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(HostError, match="is not a directory"):
        run(tmp_path / "file" / "matrix")


class NoMatplotlib(importlib.abc.MetaPathFinder):
    """As if it were not installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")


def test_without_matplotlib_there_are_numbers_and_a_note(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoMatplotlib(), *sys.meta_path])
    (folder / "matrix.json").unlink()
    _, said = run(folder)
    assert said[1] == (
        "no picture: matplotlib is not installed; run: pip install 'attn-export[plot]'"
    )
    assert not (folder / "matrix.png").exists()
    assert (folder / "matrix.json").exists()
