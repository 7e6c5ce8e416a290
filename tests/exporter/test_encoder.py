"""The reference encoder: its size, its exact shortcut, and weights that tell inputs apart."""

from __future__ import annotations

import pytest
import torch

from attn_export.exporter.attention import LOWERINGS, Lowering
from attn_export.exporter.encoder import EncoderClassifier, build_encoder, lower
from attn_export.spec import EncoderSpec

SMALL = {"hidden_size": 32, "num_heads": 4, "num_layers": 3, "vocab_size": 60, "max_length": 16}


@pytest.mark.parametrize(
    ("kv_heads", "parameters"),
    [(12, 52_498_947), (4, 43_049_475), (1, 39_505_923)],
    ids=["mha", "gqa", "mqa"],
)
def test_the_default_sizes_add_up_to_these_parameters(kv_heads: int, parameters: int) -> None:
    with torch.device("meta"):
        module = EncoderClassifier(EncoderSpec(num_kv_heads=kv_heads))
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_with_a_feed_forward_block_the_layers_are_those_of_bert_base() -> None:
    spec = EncoderSpec(num_kv_heads=12, ffn_size=3072)
    with torch.device("meta"):
        layers = EncoderClassifier(spec).layers
    # 12 x (4 projections, 2 feed-forward matrices, 2 LayerNorms) of Devlin et al. 2019.
    assert sum(p.numel() for p in layers.parameters()) == 85_054_464
    with torch.device("meta"):
        module = EncoderClassifier(spec)
    assert sum(p.numel() for p in module.parameters()) == spec.parameter_count


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("ffn_size", [0, 48])
def test_the_export_form_equals_the_textbook(
    kv_heads: int, lowering: Lowering, ffn_size: int
) -> None:
    module = build_encoder(EncoderSpec(num_kv_heads=kv_heads, ffn_size=ffn_size, **SMALL), seed=3)
    ids = torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(0)).int()
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    mask[1, :5] = 0
    mask[2] = 0
    with torch.inference_mode():
        expected = module(ids, mask)
        lower(module, lowering)
        torch.testing.assert_close(module(ids, mask), expected, atol=5e-6, rtol=1e-5)


def test_padding_does_not_change_the_answer() -> None:
    module = build_encoder(EncoderSpec(num_kv_heads=1, **SMALL), seed=0)
    ids = torch.arange(5, dtype=torch.int32)[None]
    padded = torch.nn.functional.pad(ids, (0, 7))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 7))
    with torch.inference_mode():
        torch.testing.assert_close(module(padded, mask), module(ids, torch.ones_like(ids)))


def test_different_inputs_give_different_logits() -> None:
    module = build_encoder(EncoderSpec(num_kv_heads=1, hidden_size=192, num_layers=12), seed=0)
    ids = torch.randint(0, 30522, (32, 20), generator=torch.Generator().manual_seed(0)).int()
    ids[:, 0] = 101  # all begin with the same token, as texts do
    with torch.inference_mode():
        logits = module(ids, torch.ones_like(ids))
    assert logits.std(dim=0).min() > 0.3
    assert len(logits.argmax(dim=1).unique()) > 1


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    spec = EncoderSpec(num_kv_heads=2, **SMALL)
    first, again, other = (build_encoder(spec, seed).state_dict() for seed in (5, 5, 6))
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["tokens.weight"].equal(other["tokens.weight"])
