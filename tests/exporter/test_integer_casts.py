"""int32 goes straight to where it is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from attn_export.exporter.eager import run_eager
from attn_export.exporter.export import export_graph
from attn_export.exporter.source import ModelSource, load_model

from .conftest import run_onnx

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    max_length = 9
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 4)
    def forward(self, input_ids, attention_mask):
        near = (input_ids * 2) % 20
        return (self.table(input_ids) + self.table(near)) * attention_mask.float()[:, :, None]

def make():
    return Net()
"""


def test_casts_to_int64_are_gone_where_int32_serves(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    model = load_model(ModelSource(model=f"{tmp_path / 'net.py'}:make"))
    export_graph(model, tmp_path / "model.onnx", lowering="fold", metadata={})
    graph = onnx.load(tmp_path / "model.onnx").graph
    # The arithmetic on ids keeps its int64; the plain lookup and the mask do not.
    assert Counter(node.op_type for node in graph.node)["Cast"] == 2
    feeds = {
        "input_ids": np.array([[1, 5, 19]], np.int32),
        "attention_mask": np.array([[1, 1, 0]], np.int32),
    }
    np.testing.assert_array_equal(
        run_onnx(tmp_path / "model.onnx", feeds)["output"],
        run_eager(model.module, feeds)["output"],
    )
