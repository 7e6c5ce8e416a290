"""Roles found by structure alone, in graphs that are not ours; and names made from them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from attn_export import roles
from attn_export.exporter.attention_pattern import attention_roles
from attn_export.exporter.graph_file import read_graph
from attn_export.exporter.norm_pattern import norm_statistics
from attn_export.roles import role_of

from .conftest import Exported


def export_raw(module: nn.Module, *inputs: torch.Tensor, tmp_path: Path) -> ir.Model:
    """What the exporter writes, before any pass of ours."""
    path = tmp_path / "raw.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(module.eval(), inputs, str(path), dynamo=True, opset_version=18)
    return read_graph(path)


def count(found: dict[ir.Node, str]) -> Counter[str]:
    return Counter(found.values())


class ManualAttention(nn.Module):
    """Scores divided after the product, and a boolean mask through ``where``."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5
        scores = torch.where(keep[:, None, :] > 0, scores, torch.tensor(-1e4))
        out: torch.Tensor = scores.softmax(-1) @ self.v(x)
        return out


class TorchAttention(nn.Module):
    """torch's own attention, which becomes many nodes."""

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        mask = keep.bool()[:, None, None, :]
        x = x[:, None]
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class OldLayerNorm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


class Normalize(nn.Module):
    """A row of length 1: its least divisor, 1e-12, is 0 in FP16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, dim=-1)


class StandardDeviationNorm(nn.Module):
    """Epsilon outside the root."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = torch.sqrt((centred * centred).mean(-1, keepdim=True))
        return centred / (deviation + 1e-6)


class RootOnResidual(nn.Module):
    """The sum that reads the root bounds no divisor: it is a residual."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.sqrt(x.pow(2).mean(-1, keepdim=True)) + x) / 3


@pytest.mark.parametrize("module", [ManualAttention(), TorchAttention()])
def test_a_users_attention_is_recognised(module: nn.Module, tmp_path: Path) -> None:
    keep = torch.ones(2, 5, dtype=torch.int32)
    graph = export_raw(module, torch.randn(2, 5, 8), keep, tmp_path=tmp_path).graph
    found = count(attention_roles(graph))
    assert found[roles.SCORES] == found[roles.SOFTMAX] == found[roles.CONTEXT] == 1
    assert found[roles.MASK_ADD] >= 1
    assert found[roles.MASK] >= 1


def test_the_division_after_the_product_is_a_scale(tmp_path: Path) -> None:
    keep = torch.ones(2, 5, dtype=torch.int32)
    model = export_raw(ManualAttention(), torch.randn(2, 5, 8), keep, tmp_path=tmp_path)
    scales = [n for n, role in attention_roles(model.graph).items() if role == roles.SCALE]
    assert [node.op_type for node in scales] == ["Div"]


def test_a_softmax_without_a_product_is_no_attention(tmp_path: Path) -> None:
    model = export_raw(nn.Softmax(-1), torch.randn(2, 5), tmp_path=tmp_path)
    assert attention_roles(model.graph) == {}


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        (RmsNorm(), {"Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul"}),
        (OldLayerNorm(), {"Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div"}),
        (StandardDeviationNorm(), {"Sub", "Mul", "ReduceMean", "Sqrt", "Add", "Div"}),
        (RootOnResidual(), {"Pow", "ReduceMean", "Sqrt"}),
        (Normalize(), {"ReduceL2", "Clip", "Expand", "Div"}),
    ],
)
def test_a_norm_in_parts_is_found_whole(
    module: nn.Module, needed: set[str], tmp_path: Path
) -> None:
    graph = export_raw(module, torch.randn(3, 8), tmp_path=tmp_path).graph
    found = norm_statistics(graph)
    assert {node.op_type for node in found} == needed
    means = [node for node in graph if node.op_type == "ReduceMean"]
    assert set(means) <= found


def test_a_mean_that_is_no_norm_is_left_alone(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(-1) * 2

    assert norm_statistics(export_raw(Mean(), torch.randn(3, 8), tmp_path=tmp_path).graph) == set()


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
def test_every_node_of_the_encoder_is_named_by_scope_and_role(
    exported: Callable[..., Exported], model: str
) -> None:
    graph = read_graph(exported(model).path).graph
    found = Counter(role_of(node.name or "") for node in graph)
    assert found[roles.GEMM] == 2 * 4 + 2  # 2 layers of 4, pooler, classifier
    assert found[roles.BIAS] == 2 * 4
    assert found[roles.SCORES] == found[roles.SOFTMAX] == found[roles.CONTEXT] == 2
    assert found[roles.MASK_ADD] == found[roles.SCALE] == found[roles.NORM] == 2
    assert found[roles.RESIDUAL] == 2
    assert found[roles.MASK] == 5  # Cast, ReduceMax, Sub, Mul, Unsqueeze
    assert found[roles.EMBEDDING] == 3  # tokens, positions, their sum
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)
    assert "layers.1.attention.key.gemm" in names
