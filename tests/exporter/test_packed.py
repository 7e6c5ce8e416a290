"""Packed rows: each text's answer is the one it has alone, whatever shares its row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from attn_export.errors import UsageError
from attn_export.exporter.attention import LOWERINGS, Lowering
from attn_export.exporter.eager import run_eager
from attn_export.exporter.encoder import lower
from attn_export.exporter.export import export_graph
from attn_export.exporter.graph_file import read_graph
from attn_export.exporter.lint import unreadable_by
from attn_export.exporter.packed import packed_model
from attn_export.exporter.source import ModelSource, load_model

from .conftest import Feeds, run_onnx, tiny_source

MODELS = ("mha", "gqa", "mqa")
TEXTS = ([3, 1, 4], [1, 5], [9, 2, 6, 5], [3], [5, 8, 9, 7])
PackedGraph = Callable[[str, Lowering], Path]


@pytest.fixture(scope="module")
def packed_graph(tmp_path_factory: pytest.TempPathFactory) -> PackedGraph:
    made: dict[tuple[str, str], Path] = {}

    def export(model: str, lowering: Lowering) -> Path:
        if (model, lowering) not in made:
            path = tmp_path_factory.mktemp("packed") / "model.packed.onnx"
            packed = packed_model(load_model(tiny_source(model)))
            export_graph(packed, path, lowering=lowering, metadata={})
            made[model, lowering] = path
        return made[model, lowering]

    return export


def rows_of(*rows: list[list[int]], length: int) -> Feeds:
    """Texts laid out by hand, row by row."""
    names = ("input_ids", "position_ids", "segment_ids")
    feeds = {name: np.zeros((len(rows), length), np.int32) for name in names}
    feeds["first_tokens"] = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, texts in enumerate(rows):
        at = 0
        for place, text in enumerate(texts):
            there = (row, slice(at, at + len(text)))
            feeds["input_ids"][there] = text
            feeds["position_ids"][there] = range(len(text))
            feeds["segment_ids"][there] = place + 1
            feeds["first_tokens"][row, place] = row * length + at
            at += len(text)
    return feeds


def alone(model: str, text: list[int]) -> list[float]:
    ids = np.array([text], np.int32)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    module = load_model(tiny_source(model)).module
    return [float(logit) for logit in run_eager(module, feeds)["logits"][0]]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("length", [9, 13])
def test_each_text_has_the_answer_that_it_has_alone(
    packed_graph: PackedGraph, model: str, lowering: Lowering, length: int
) -> None:
    a, b, c, d, e = TEXTS
    rows = ([a, b, c], [d, e])
    got = run_onnx(packed_graph(model, lowering), rows_of(*rows, length=length))["logits"]
    assert got.shape == (2, 3, 3)
    for row, texts in enumerate(rows):
        for place, text in enumerate(texts):
            expected = alone(model, text)
            np.testing.assert_allclose(got[row, place], expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_graph_equals_the_module_on_rows_longer_than_the_longest_text(
    packed_graph: PackedGraph, lowering: Lowering
) -> None:
    packed = packed_model(load_model(tiny_source("gqa")))
    lower(packed.module, lowering)
    path = packed_graph("gqa", lowering)
    for feeds in (rows_of([[7]], length=1), rows_of(*[[*TEXTS] * 3] * 4, length=50)):
        expected = run_eager(packed.module, feeds)["logits"]
        np.testing.assert_allclose(run_onnx(path, feeds)["logits"], expected, atol=5e-6, rtol=1e-5)


def test_a_text_cannot_see_its_neighbours_to_the_last_bit(packed_graph: PackedGraph) -> None:
    path = packed_graph("mqa", "fold")
    mine = [3, 1, 4]
    one = run_onnx(path, rows_of([[5, 5], mine, [1]], length=8))["logits"][0, 1]
    other = run_onnx(path, rows_of([[50, 2], mine, [9]], length=8))["logits"][0, 1]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_token_with_a_negated_segment_reads_its_text_and_is_not_read(
    packed_graph: PackedGraph, lowering: Lowering
) -> None:
    """As a masked first token of a padded batch, which the answer is read from."""
    model = load_model(tiny_source("mqa")).module
    padded = {
        "input_ids": np.array([[8, 3, 1, 4]], np.int32),
        "attention_mask": np.array([[0, 0, 1, 1]], np.int32),
    }
    feeds = rows_of([[2, 2], [8, 1, 4]], length=6)
    feeds["position_ids"][0, 2:5] = [0, 2, 3]
    feeds["segment_ids"][0, 2] *= -1
    got = run_onnx(packed_graph("mqa", lowering), feeds)["logits"][0, 1]
    expected = run_eager(model, padded)["logits"][0]
    np.testing.assert_allclose(got, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_attention_is_the_pattern_that_engines_fuse_and_the_mask_is_made_once(
    packed_graph: PackedGraph, model: str, lowering: Lowering
) -> None:
    path = packed_graph(model, lowering)
    nodes = {node.name: node for node in onnx.load(path).graph.node}
    for layer in range(2):
        chain = [
            nodes[f"layers.{layer}.attention.{role}"]
            for role in ("scores", "mask_add", "softmax", "context")
        ]
        assert [node.op_type for node in chain] == ["MatMul", "Add", "Softmax", "MatMul"]
        for above, below in pairwise(chain):
            assert above.output[0] in below.input
    operators = [node.op_type for node in nodes.values()]
    assert operators.count("Equal") == 2  # for all tokens, and for the last layer's first tokens
    assert not {"Where", "IsNaN", "Shape"} & set(operators)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_tensorrt_can_read_it(packed_graph: PackedGraph, lowering: Lowering) -> None:
    assert unreadable_by(read_graph(packed_graph("gqa", lowering))) == {}


def test_a_users_model_cannot_be_packed(tmp_path: Path) -> None:
    code = """
from torch import nn
class Bag(nn.Module):
    max_length = 8
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
    def forward(self, input_ids):
        return self.table(input_ids).sum(1)
"""
    (tmp_path / "bag.py").write_text(code)
    model = load_model(ModelSource(model=f"{tmp_path / 'bag.py'}:Bag"))
    with pytest.raises(UsageError, match=r"bag.py:Bag cannot be packed.*mha, gqa, mqa"):
        packed_model(model)
