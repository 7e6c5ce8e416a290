"""A tiny real bundle: exported from PyTorch, with a golden file, run by ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from attn_export.benchmarks.cases import parity_cases, save_reference
from attn_export.benchmarks.eager import run_case
from attn_export.bundle import Bundle, file_record, write_manifest
from attn_export.engines import onnxruntime
from attn_export.engines.session import CompileOptions
from attn_export.exporter.export import export_graph
from attn_export.exporter.source import ModelSource, load_model, weights_sha256
from attn_export.manifest import EngineRecord, FileRecord, GraphRecord, Manifest

DIMENSIONS = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "vocab_size": 50}
EDGES = (4, 8, 16)


def make_bundle(directory: Path, source: ModelSource) -> Bundle:
    """Export a model; FP32, and as "FP16" the same graph, which is what a CPU makes of one."""
    model = load_model(source)
    digest, parameters = weights_sha256(model.module), model.parameters
    outputs = export_graph(model, directory / "model.onnx", lowering="expand", metadata={})
    model = load_model(source)  # as the textbook has it: exporting changed the first one
    cases = parity_cases(model.inputs, EDGES)
    save_reference(directory / "reference.npz", cases, [run_case(model, case) for case in cases])
    shutil.copy(directory / "model.onnx", directory / "model.fp16.onnx")
    manifest = Manifest(
        model={
            "name": source.name,
            "source": source.to_json(),
            "parameters": parameters,
            "weights_sha256": digest,
            "builtin": source.builtin,
            "max_length": EDGES[-1],
        },
        inputs=list(model.inputs),
        outputs=list(outputs),
        buckets={"edges": list(EDGES)},
        graphs={
            "fp32": GraphRecord(precision="fp32", files=[record(directory, "model.onnx")]),
            "fp16": GraphRecord(
                precision="fp16",
                files=[record(directory, "model.fp16.onnx")],
                twin=record(directory, "model.onnx"),
            ),
        },
        reference=record(directory, "reference.npz"),
    )
    bundle = Bundle(directory, manifest)
    for precision in ("fp32", "fp16"):
        engine: EngineRecord = onnxruntime.compile(bundle, precision, CompileOptions())
        manifest.engines[engine.name] = engine
    write_manifest(directory, manifest)
    return bundle


def record(directory: Path, name: str) -> FileRecord:
    return file_record(directory / name, root=directory)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny MQA bundle for the whole run; tests copy it before they change it."""
    source = ModelSource(model="mqa", options={**DIMENSIONS, "max_length": EDGES[-1]})
    return make_bundle(tmp_path_factory.mktemp("exported"), source).directory


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    shutil.copytree(exported, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def edit_graph(bundle: Bundle) -> Callable[[str, float], FileRecord]:
    """Add a number to a graph's last bias and give the file's new record, as a defect would."""

    def edit(name: str, amount: float) -> FileRecord:
        path = bundle.directory / name
        model = onnx.load(path)
        bias = next(t for t in model.graph.initializer if t.name.endswith("classifier.bias"))
        values = onnx.numpy_helper.to_array(bias) + np.float32(amount)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(model, path)
        return record(bundle.directory, name)

    return edit
