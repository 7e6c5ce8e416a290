"""What a node is in the attention, read from its name.

Every node of an exported graph is called ``<module scope>.<role>``, and ``_2``, ``_3`` are added
where one scope holds a role more than once: ``layers.3.attention.scores``. Precision, Q/DQ
placement and the engine's inspector read roles from these names, so they survive every tool that
keeps names. A node with no role of its own is called by its operator: ``layers.3.reshape_2``.
"""

from __future__ import annotations

import re

GEMM = "gemm"  # a matrix product with a weight
BIAS = "bias_add"
SCALE = "scale"  # the 1/sqrt(D) of the query or of the scores
SCORES = "scores"  # Q K^T
MASK_ADD = "mask_add"
SOFTMAX = "softmax"
CONTEXT = "context"  # softmax times V
MASK = "mask"  # the arithmetic that turns an attention mask into an additive one
NORM = "norm"  # LayerNormalization as one op
NORM_STATISTICS = "norm_statistics"  # mean, variance, root of a norm written out in parts
EMBEDDING = "embedding"
RESIDUAL = "residual"

ROLES = frozenset(
    (
        GEMM,
        BIAS,
        SCALE,
        SCORES,
        MASK_ADD,
        SOFTMAX,
        CONTEXT,
        MASK,
        NORM,
        NORM_STATISTICS,
        EMBEDDING,
        RESIDUAL,
    )
)

_NUMBER = re.compile(r"_\d+$")


def role_of(name: str) -> str:
    """The role in a node's name, or its operator's name where it has none.

    >>> role_of("layers.3.attention.scores")
    'scores'
    >>> role_of("mask_2")
    'mask'
    """
    return _NUMBER.sub("", name.rpartition(".")[2])
