"""Tiny models and their graphs, exported once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from attn_export.exporter.attention import Lowering
from attn_export.exporter.export import export_graph
from attn_export.exporter.source import LoadedModel, ModelSource, load_model
from attn_export.spec import TensorSpec

TINY = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "vocab_size": 60, "max_length": 16}
Feeds = dict[str, np.ndarray[Any, Any]]


def tiny_source(model: str, **options: int) -> ModelSource:
    """A small built-in model; the GQA has 2 key/value heads."""
    kv = {"num_kv_heads": 2} if model == "gqa" else {}
    return ModelSource(model=model, options={**TINY, **kv, **options})


@dataclass(frozen=True)
class Exported:
    """A model in its export form, the file, and its outputs."""

    model: LoadedModel
    path: Path
    outputs: tuple[TensorSpec, ...]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Export a tiny built-in model; the same call gives the same files."""
    made: dict[tuple[str, str], Exported] = {}

    def export(model: str, lowering: Lowering = "fold") -> Exported:
        if (model, lowering) not in made:
            path = tmp_path_factory.mktemp(f"{model}-{lowering}") / "model.onnx"
            loaded = load_model(tiny_source(model))
            outputs = export_graph(loaded, path, lowering=lowering, metadata={"k": "v"})
            made[model, lowering] = Exported(loaded, path, outputs)
        return made[model, lowering]

    return export


def run_onnx(path: Path, feeds: Feeds) -> Feeds:
    """Run a file in ONNX Runtime as it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def encoder_feeds(batch: int, length: int, mask: str = "full", vocab: int = 60) -> Feeds:
    """Seeded ids with one kind of mask: full, right, left, or one row fully masked."""
    rng = np.random.default_rng([batch, length])
    ids = rng.integers(0, vocab, (batch, length), dtype=np.int32)
    keep = np.ones((batch, length), np.int32)
    if mask == "right":
        keep[:, max(1, length // 2) :] = 0
    elif mask == "left":
        keep[:, : length // 2] = 0
    elif mask == "masked_row":
        keep[0] = 0
    return {"input_ids": ids, "attention_mask": keep}
