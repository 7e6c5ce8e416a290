"""Models by name, by factory, with checkpoints; and every way that can go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attn_export.errors import BuildFailed, UsageError
from attn_export.exporter.source import ModelSource, load_model, load_weights, weights_sha256

from .conftest import tiny_source


@pytest.mark.parametrize(("name", "kv_heads"), [("mha", 12), ("gqa", 4), ("mqa", 1)])
def test_a_name_fixes_the_key_value_heads(name: str, kv_heads: int) -> None:
    assert ModelSource(model=name).spec().num_kv_heads == kv_heads


def test_a_gqa_of_sixteen_heads_is_made() -> None:
    tiny = {"hidden_size": 32, "num_heads": 16, "num_layers": 1, "vocab_size": 60, "max_length": 16}
    source = ModelSource(model="gqa", options=tiny)
    assert source.spec().num_kv_heads == 4
    assert load_model(source).parameters == source.spec().parameter_count


def test_mqa_with_other_key_value_heads_is_refused() -> None:
    with pytest.raises(UsageError, match="mqa has 1 key/value heads, got 3; use the model gqa"):
        ModelSource(model="mqa", options={"num_kv_heads": 3}).spec()


@pytest.mark.parametrize("name", ["nonsense", "mha2"])
def test_an_unknown_name_lists_what_is_allowed(name: str) -> None:
    with pytest.raises(UsageError, match=r"allowed: mha, gqa, mqa, package\.module:factory"):
        load_model(ModelSource(model=name))


def test_the_manifests_source_makes_the_same_weights() -> None:
    source = tiny_source("gqa")
    again = ModelSource.from_json(source.to_json())
    assert again == source
    digests = {weights_sha256(load_model(item).module) for item in (source, again)}
    assert len(digests) == 1
    assert weights_sha256(load_model(tiny_source("gqa", vocab_size=61)).module) not in digests


def test_the_baseline_is_an_mha_of_the_same_size() -> None:
    baseline = tiny_source("gqa").as_mha()
    assert baseline.spec().num_kv_heads == 4
    assert baseline.spec().hidden_size == 32


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_replaces_the_seeded_weights(tmp_path: Path, suffix: str) -> None:
    other = load_model(ModelSource(**{**tiny_source("mqa").to_json(), "seed": 9})).module.inner
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(other.state_dict(), path)
    else:
        save_file(other.state_dict(), path)
    source = ModelSource(**{**tiny_source("mqa").to_json(), "weights": str(path)})
    loaded = load_model(source).module.inner.state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in other.state_dict().items())


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    module = load_model(tiny_source("mha")).module.inner
    state = module.state_dict()
    del state["pooler.bias"]
    state["stranger"] = torch.zeros(1)
    state["classifier.weight"] = torch.zeros(5, 32)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(BuildFailed) as caught:
        load_weights(module, tmp_path / "bad.safetensors")
    message = str(caught.value)
    assert "missing: pooler.bias" in message
    assert "unexpected: stranger" in message
    assert "shape: classifier.weight: [5, 32] for [3, 32]" in message


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.mkdir, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"pooler.bias": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(BuildFailed, match="cannot be read as a checkpoint"):
        load_weights(load_model(tiny_source("mha")).module.inner, tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("absent.pt", None, UsageError),
        ("weights.bin2", b"", UsageError),
        ("broken.safetensors", b"no such thing", BuildFailed),
        ("broken.pt", b"no such thing", BuildFailed),
    ],
)
def test_an_unusable_checkpoint_is_refused(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        load_weights(load_model(tiny_source("mha")).module.inner, tmp_path / name)


def test_dimensions_of_a_users_model_are_its_own() -> None:
    with pytest.raises(UsageError, match="are for the built-in models"):
        load_model(ModelSource(model="a.b:c", options={"num_layers": 2}))
