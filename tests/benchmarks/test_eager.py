"""The bundle's model, made again in eager PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attn_export.benchmarks.cases import parity_cases
from attn_export.benchmarks.eager import NoiseFloor, rebuild, run_case, source_of
from attn_export.bundle import Bundle
from attn_export.errors import BundleError, UsageError
from attn_export.exporter.source import ModelSource, load_model

OVERFLOWS = """
import torch

class Model(torch.nn.Module):
    max_length = 4
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(9, 2)
        torch.nn.init.ones_(self.table.weight)
    def forward(self, input_ids):
        return self.table(input_ids).sum(1) * 1000.0 * 1000.0

def make():
    return Model(), {"input_ids": torch.ones(2, 3, dtype=torch.int64)}, {
        "input_ids": {0: "batch", 1: "sequence"}}
"""


def test_the_model_is_rebuilt_with_the_bundles_weights(bundle: Bundle) -> None:
    model = rebuild(bundle.manifest)
    assert model.parameters == bundle.manifest.model["parameters"]


def test_other_weights_are_refused(bundle: Bundle) -> None:
    bundle.manifest.model["source"]["seed"] = 1
    with pytest.raises(BundleError, match="has other weights than the bundle"):
        rebuild(bundle.manifest)


def test_a_factory_that_is_gone_is_a_usage_error(bundle: Bundle) -> None:
    bundle.manifest.model["source"] = ModelSource(model="gone.py:make").to_json()
    with pytest.raises(UsageError, match=r"gone\.py"):
        rebuild(bundle.manifest)


@pytest.mark.parametrize("source", [None, {}, {"model": "mqa", "unknown": 1}])
def test_a_broken_source_is_a_broken_bundle(bundle: Bundle, source: object) -> None:
    bundle.manifest.model["source"] = source
    with pytest.raises(BundleError, match="model source is broken"):
        source_of(bundle.manifest)


def test_the_noise_floor_is_the_error_of_half_precision(bundle: Bundle) -> None:
    model = rebuild(bundle.manifest)
    floor = NoiseFloor(model, ["logits"])
    case = parity_cases(model.inputs, [8])[-1]
    expected = run_case(model, case)
    floor.add(case, expected)
    found = floor.max_abs()
    assert found is not None
    with torch.inference_mode():
        half = model.module.half()(*map(torch.from_numpy, case.feeds.values()))[0].float().numpy()
    assert found["logits"] == pytest.approx(float(np.abs(half - expected["logits"]).max()))
    assert 0 < found["logits"] < 1e-2


def test_a_model_that_overflows_in_half_precision_has_no_floor(tmp_path: Path) -> None:
    (tmp_path / "overflows.py").write_text(OVERFLOWS)
    model = load_model(ModelSource(model=f"{tmp_path / 'overflows.py'}:make"))
    floor = NoiseFloor(model, ["output"])
    case = parity_cases(model.inputs, [4])[0]
    floor.add(case, run_case(model, case))
    assert floor.max_abs() is None
    assert floor.reason == "eager FP16 is not finite itself"
