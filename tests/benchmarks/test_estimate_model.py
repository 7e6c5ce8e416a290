"""The dimensions of the model that a person names."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from attn_export.benchmarks.estimate_model import spec_of, variants
from attn_export.bundle import Bundle
from attn_export.errors import BundleError, UsageError
from attn_export.exporter.source import ModelSource
from attn_export.spec import EncoderSpec


@pytest.mark.parametrize("model", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_heads": 6, "hidden_size": 96},
        {"num_heads": 16, "hidden_size": 1024},
        {"num_heads": 1, "hidden_size": 8, "max_length": 256, "ffn_size": 3, "vocab_size": 5},
    ],
    ids=["plain", "six-heads", "sixteen-heads", "one-head"],
)
def test_dimensions_are_those_that_build_takes(model: str, options: dict[str, int]) -> None:
    assert spec_of(model, options, length=1) == ModelSource(model=model, options=options).spec()


def test_key_value_heads_are_gqas_to_choose() -> None:
    assert spec_of("gqa", {"num_kv_heads": 6}, length=1).num_kv_heads == 6
    with pytest.raises(UsageError, match="mqa has 1 key/value heads, got 2; use the model gqa"):
        spec_of("mqa", {"num_kv_heads": 2}, length=1)


def test_positions_follow_the_length_unless_they_are_given() -> None:
    assert spec_of("mha", {}, length=64).max_length == 128
    assert spec_of("mha", {}, length=512).max_length == 512
    assert spec_of("mha", {"max_length": 100}, length=512).max_length == 100


def test_a_bundle_gives_its_own_dimensions(bundle: Bundle) -> None:
    spec = EncoderSpec(num_kv_heads=2, hidden_size=32, num_heads=4, num_layers=2)
    record(bundle, {"spec": asdict(spec)})
    assert spec_of(str(bundle.directory), {}, length=1) == spec
    with pytest.raises(UsageError, match="leave out num_heads, num_layers"):
        spec_of(str(bundle.directory), {"num_heads": 2, "num_layers": 1}, length=1)


def test_a_bundle_of_a_users_model_is_told_what_is_missing(bundle: Bundle) -> None:
    record(bundle, {"name": "minilm", "spec": None, "parameters": 22713216})
    with pytest.raises(UsageError, match="minilm with 22713216 parameters, but not its hidden"):
        spec_of(str(bundle.directory), {}, length=1)


def test_a_broken_manifest_is_a_broken_bundle(bundle: Bundle, tmp_path: Path) -> None:
    record(bundle, {"spec": {"heads": 3}})
    with pytest.raises(BundleError, match="rebuild the bundle"):
        spec_of(str(bundle.directory), {}, length=1)
    with pytest.raises(BundleError, match="is not a bundle"):
        spec_of(str(tmp_path), {}, length=1)


def test_an_unknown_name_lists_what_is_allowed() -> None:
    with pytest.raises(UsageError, match="unknown model 'bert'; allowed: mha, gqa, mqa"):
        spec_of("bert", {}, length=1)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [
        pytest.param(12, 12, [12, 4, 1], id="mha"),
        pytest.param(12, 6, [12, 6, 1], id="gqa-6"),
        pytest.param(16, 1, [16, 4, 1], id="a-third-does-not-divide"),
        pytest.param(7, 7, [7, 1], id="prime"),
        pytest.param(2, 1, [2, 1], id="two"),
        pytest.param(1, 1, [1], id="one"),
    ],
)
def test_the_other_kinds_of_attention_divide_the_heads(
    heads: int, kv_heads: int, expected: list[int]
) -> None:
    spec = EncoderSpec(num_kv_heads=kv_heads, num_heads=heads, hidden_size=heads * 8)
    assert [item.num_kv_heads for item in variants(spec)] == expected


def record(bundle: Bundle, model: dict[str, Any]) -> None:
    """Change what the manifest says of the model."""
    path = bundle.directory / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"].update(model)
    path.write_text(json.dumps(data), encoding="utf-8")
