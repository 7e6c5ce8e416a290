"""The reference encoder on packed rows: several texts in a row, each of them attending to itself.

A row holds the tokens of its texts one after the other. Each token carries its position in its own
text and the number of its text, its segment; attention's additive mask is block-diagonal over the
segments (Krell et al. 2021, arXiv:2107.02027, section on cross-contamination). The weights are
those of the padded model, and so are the answers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from attn_export.errors import UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .adapter import Adapter
from .attention import MASKED, Attention
from .encoder import EncoderClassifier
from .export import MAX_BATCH
from .source import BUILTIN, LoadedModel

FIRSTS = "firsts"  # the axis of a row's texts


class PackedEncoder(nn.Module):
    """An encoder's own parts, applied to rows of S tokens that hold up to F texts each."""

    def __init__(self, encoder: EncoderClassifier) -> None:
        super().__init__()
        self.tokens, self.positions = encoder.tokens, encoder.positions
        self.layers = encoder.layers
        self.pooler, self.classifier = encoder.pooler, encoder.classifier

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, first_tokens: Tensor
    ) -> Tensor:
        """Classify each text of each row from its first token.

        Args:
            input_ids: [B, S].
            position_ids: of each token in its own text [B, S].
            segment_ids: of each token its text, above 0 [B, S]; 0 is padding. A token whose id is
                negated reads its text and is not read: a masked first token.
            first_tokens: the texts' first tokens, numbered over all rows [B, F]. Where a row has
                fewer texts, any token; its answer means nothing.

        Returns:
            Logits [B, F, classes].
        """
        x = self.tokens(input_ids) + self.positions(position_ids)
        readers = segment_ids.abs()[:, :, None]
        bias = self._mask(readers, segment_ids, x.dtype)
        for layer in self.layers[:-1]:
            x = layer(x, bias)
        bias = self._mask(_rows_of(readers, first_tokens), segment_ids, x.dtype)
        x = self.layers[-1](x, bias, _rows_of(x, first_tokens))
        return self.classifier(torch.tanh(self.pooler(x)))  # type: ignore[no-any-return]

    def _mask(self, readers: Tensor, segment_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The additive mask: 0 where query and key share a segment, else -1e4.

        Padding shares a segment too, so that no row of scores is masked as a whole.

        Args:
            readers: the queries' segments [B, Sq, 1].

        Returns:
            [B, 1, Sq, S], each row repeated as the scores of folded heads are ordered.
        """
        attention = next(part for part in self.modules() if isinstance(part, Attention))
        if attention.lowering == "fold":
            readers = readers.expand(-1, -1, attention.num_heads // attention.num_kv_heads)
        shared = readers.flatten(1)[:, None, :, None] == segment_ids[:, None, None, :]
        return (shared.to(dtype) - 1) * MASKED


def _rows_of(x: Tensor, numbers: Tensor) -> Tensor:
    """Rows of [B, S, N], numbered over B and S by [B, F] -> [B, F, N]."""
    return nn.functional.embedding(numbers, x.flatten(0, 1))


def packed_model(model: LoadedModel) -> LoadedModel:
    """The same weights as a model of packed rows, which may be longer than its longest text.

    Raises:
        UsageError: if the model cannot be packed.
    """
    encoder = model.module.inner
    if not isinstance(encoder, EncoderClassifier):
        raise UsageError(
            f"{model.source.model} cannot be packed: packing gives each token its position and its "
            "text, and this model takes neither; only the built-in models "
            f"({', '.join(BUILTIN)}) do: build it without packing"
        )
    tokens, firsts = (BATCH, SEQUENCE), (BATCH, FIRSTS)
    spec = encoder.spec
    limits = {"input_ids": spec.vocab_size, "position_ids": spec.max_length}
    inputs = [
        TensorSpec(name=name, dtype="int32", shape=tokens, role="ids", limit=limit)
        for name, limit in limits.items()
    ]
    inputs.append(TensorSpec(name="segment_ids", dtype="int32", shape=tokens))
    inputs.append(TensorSpec(name="first_tokens", dtype="int32", shape=firsts))
    # Two rows of five tokens with up to three texts.
    segments = torch.tensor([[1, 1, 2, 3, 3], [1, 2, 2, -2, 0]], dtype=torch.int32)
    zeros = torch.zeros_like(segments)
    starts = torch.tensor([[0, 2, 3], [5, 6, 5]], dtype=torch.int32)
    names = tuple(item.name for item in inputs)
    return replace(
        model,
        module=Adapter(PackedEncoder(encoder), names, model.module.output_names),
        inputs=tuple(inputs),
        examples=(zeros, zeros.clone(), segments, starts),
        max_length=MAX_BATCH,
    )
