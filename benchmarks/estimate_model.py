"""The dimensions of the MODEL that a person names: built-in, with options, or a bundle's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.errors import BundleError, UsageError
from attn_export.spec import EncoderSpec, builtin_spec, shared_heads

BUILTIN = ("mha", "gqa", "mqa")
_BY_HAND = (
    "give them by hand, for instance: attn-export estimate gqa --hidden-size 384 --heads 12 "
    "--kv-heads 12 --layers 6 --ffn-size 1536 --vocab-size 30522 --positions 512"
)


def spec_of(model: str, options: dict[str, int], *, length: int) -> EncoderSpec:
    """Dimensions without torch: of a built-in name with options, or of a bundle directory.

    Args:
        options: fields of :class:`EncoderSpec`.
        length: the tokens asked about: a built-in model gets as many positions where its options
            do not say how many it has.

    Raises:
        UsageError: an unknown name, dimensions that do not fit, a bundle that does not know them.
        BundleError: if the directory's manifest cannot be read.
    """
    if model in BUILTIN:
        positions = max(length, EncoderSpec.max_length)
        return builtin_spec(model, {"max_length": positions, **options})
    if not Path(model).is_dir():
        raise UsageError(
            f"unknown model {model!r}; allowed: {', '.join(BUILTIN)} with dimensions, or the "
            f"directory of a bundle. Of any other model {_BY_HAND}"
        )
    if options:
        given = ", ".join(options)
        raise UsageError(f"{model} is a bundle and has its own dimensions; leave out {given}")
    return _of_manifest(model, Bundle.open(model).manifest.model)


def variants(spec: EncoderSpec) -> list[EncoderSpec]:
    """MHA, GQA and MQA of the same size; GQA with the model's own key/value heads, if it is one."""
    heads = spec.num_heads
    shared = shared_heads(heads) if spec.num_kv_heads in {1, heads} else spec.num_kv_heads
    return [replace(spec, num_kv_heads=k) for k in dict.fromkeys((heads, shared, 1))]


def _of_manifest(directory: str, model: dict[str, Any]) -> EncoderSpec:
    dimensions = model.get("spec")
    if not dimensions:
        raise UsageError(
            f"the bundle {directory} holds {model.get('name', 'a model')} with "
            f"{model.get('parameters', 'unknown')} parameters, but not its hidden size, heads and "
            f"layers (only built-in models' are recorded); {_BY_HAND}"
        )
    try:
        return EncoderSpec(**dimensions)
    except TypeError as error:
        raise BundleError(
            f"{directory}: the model's dimensions in the manifest are broken ({error}); rebuild "
            "the bundle"
        ) from error
