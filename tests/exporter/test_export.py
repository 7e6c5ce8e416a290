"""An exported graph: equal to eager at every shape, valid, at opset 17, and with no local paths."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from attn_export.errors import BuildFailed
from attn_export.exporter.attention import LOWERINGS, Lowering
from attn_export.exporter.eager import run_eager
from attn_export.exporter.export import export_graph
from attn_export.exporter.source import ModelSource, load_model

from .conftest import Exported, encoder_feeds, run_onnx, tiny_source

Export = Callable[..., Exported]


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("mask", ["full", "right", "left", "masked_row"])
def test_it_equals_eager_at_every_shape(
    exported: Export, model: str, lowering: Lowering, mask: str
) -> None:
    graph = exported(model, lowering)
    textbook = load_model(tiny_source(model)).module
    for batch, length in [(1, 1), (1, 16), (5, 3), (2, 15)]:
        feeds = encoder_feeds(batch, length, mask)
        expected = run_eager(textbook, feeds)["logits"]
        np.testing.assert_allclose(
            run_onnx(graph.path, feeds)["logits"], expected, atol=5e-6, rtol=1e-5
        )


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_attention_is_the_pattern_that_engines_fuse(
    exported: Export, model: str, lowering: Lowering
) -> None:
    proto = onnx.load(exported(model, lowering).path)
    nodes = {node.name: node for node in proto.graph.node}
    for layer in range(2):
        chain = [
            nodes[f"layers.{layer}.attention.{role}"]
            for role in ("scores", "mask_add", "softmax", "context")
        ]
        assert [node.op_type for node in chain] == ["MatMul", "Add", "Softmax", "MatMul"]
        for above, below in pairwise(chain):
            assert above.output[0] in below.input
        assert nodes[f"layers.{layer}.attention.scale"].op_type == "Mul"
        assert nodes[f"layers.{layer}.norm.norm"].op_type == "LayerNormalization"
    operators = {node.op_type for node in proto.graph.node}
    assert not operators & {"Where", "IsNaN", "Concat", "Squeeze", "ConstantOfShape"}


def test_it_is_at_opset_17_with_dynamic_axes_int32_inputs_and_our_metadata(
    exported: Export,
) -> None:
    proto = onnx.load(exported("mqa").path)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 17)]
    for value in proto.graph.input:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.INT32
        dims = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        assert dims == ["batch", "sequence"]
    assert {item.key: item.value for item in proto.metadata_props} == {"attn_export.k": "v"}
    assert proto.producer_name == "attn-export"


def test_nothing_of_the_exporter_or_this_machine_is_left(exported: Export) -> None:
    content = exported("mqa").path.read_bytes()
    assert b"torch" not in content
    assert b".py" not in content
    assert str(Path.home()).encode() not in content


def test_weights_keep_the_modules_names(exported: Export) -> None:
    graph = exported("gqa")
    names = {item.name for item in onnx.load(graph.path).graph.initializer}
    own = set(graph.model.module.inner.state_dict())
    assert own <= names


def test_one_example_tensor_for_two_inputs_does_not_merge_them(tmp_path: Path) -> None:
    code = """
        import torch
        from torch import nn
        class Two(nn.Module):
            def forward(self, a, b):
                return a - 2 * b
        def make():
            same = torch.ones(2, 3)
            axes = {0: "batch", 1: "sequence"}
            module = Two()
            module.max_length = 8
            return module, {"a": same, "b": same}, {"a": axes, "b": axes}
    """
    (tmp_path / "two.py").write_text(textwrap.dedent(code))
    model = load_model(ModelSource(model=f"{tmp_path / 'two.py'}:make"))
    export_graph(model, tmp_path / "model.onnx", lowering="fold", metadata={})
    a, b = np.full((1, 4), 5, np.float32), np.full((1, 4), 2, np.float32)
    got = run_onnx(tmp_path / "model.onnx", {"a": a, "b": b})["output"]
    assert got.tolist() == [[1.0] * 4]


def test_a_module_that_torch_cannot_trace_is_a_build_failure(tmp_path: Path) -> None:
    code = """
        from torch import nn
        class Branches(nn.Module):
            max_length = 8
            def forward(self, input_ids):
                if input_ids.sum() > 3:
                    return input_ids.float()
                return -input_ids.float()
        def make():
            return Branches()
    """
    (tmp_path / "branches.py").write_text(textwrap.dedent(code))
    model = load_model(ModelSource(model=f"{tmp_path / 'branches.py'}:make"))
    with pytest.raises(BuildFailed, match="torch could not export"):
        export_graph(model, tmp_path / "model.onnx", lowering="fold", metadata={})
    assert [path.name for path in tmp_path.glob("*.onnx*")] == []


PEAK = """
import sys
from pathlib import Path
from attn_export.exporter.export import export_graph
from attn_export.exporter.source import ModelSource, load_model

def export(**options):
    model = load_model(ModelSource(model="mha", options=options))
    export_graph(model, Path(sys.argv[1]) / "model.onnx", lowering="fold", metadata={})
    return model

def peak():  # of this program; getrusage's begins with that of the process that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024

export(num_layers=1, hidden_size=24, vocab_size=10)  # brings in all that the exporter imports
base = peak()
weights = 4 * export().parameters
print((peak() - base) / weights)
"""


@pytest.mark.slow
def test_memory_peaks_below_two_and_a_half_times_the_weights(tmp_path: Path, root: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)],
        env={"PYTHONPATH": str(root / "src"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1.0 < float(result.stdout) < 2.5
