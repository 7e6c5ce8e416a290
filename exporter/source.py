"""Where a model comes from: a built-in name, ``package.module:factory`` or ``file.py:factory``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attn_export.errors import BuildFailed, UsageError
from attn_export.lazy import require
from attn_export.spec import BATCH, SEQUENCE, EncoderSpec, TensorSpec, builtin_spec

from .adapter import Adapter, adapt
from .encoder import build_encoder
from .factory import call_factory

BUILTIN = ("mha", "gqa", "mqa")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What it takes to make the same model again; the manifest keeps it.

    Args:
        model: a built-in name or ``place:factory``.
        options: dimensions of a built-in model (fields of EncoderSpec).
        weights: a .safetensors or .pt checkpoint, or None for the seeded or own weights.
        max_length: the longest sequence of a user's model, where the model does not say.
    """

    model: str
    options: dict[str, int] = field(default_factory=dict)
    weights: str | None = None
    seed: int = 0
    max_length: int | None = None

    @property
    def builtin(self) -> bool:
        """Whether this is one of our reference models."""
        return self.model in BUILTIN

    @property
    def name(self) -> str:
        """A short name for files and tables: the built-in name, or that of the module's file."""
        place = self.model.rpartition(":")[0]
        return Path(place).stem.rpartition(".")[2] if place else self.model

    def spec(self) -> EncoderSpec:
        """The dimensions of a built-in model.

        Raises:
            UsageError: if they do not fit together, or are not what the model's name says.
        """
        return builtin_spec(self.model, self.options)

    def as_mha(self) -> ModelSource:
        """The MHA of the same size with its own seeded weights: the baseline of benchmarks."""
        options = {k: v for k, v in self.options.items() if k != "num_kv_heads"}
        return replace(self, model="mha", options=options, weights=None)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelSource:
        """The inverse of :meth:`to_json`."""
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A module in eval mode and FP32, with what its graph will take.

    Args:
        module: takes the inputs by position and returns a tuple of tensors.
        examples: one tensor an input, batch 2 where the batch is dynamic.
    """

    source: ModelSource
    module: Adapter
    inputs: tuple[TensorSpec, ...]
    examples: tuple[torch.Tensor, ...]
    max_length: int

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def load_model(source: ModelSource) -> LoadedModel:
    """Make the model, with its weights.

    Raises:
        UsageError: unknown name, dimensions that do not fit, no such factory.
        BuildFailed: the factory raised or returned no module; the checkpoint does not fit.
    """
    if source.builtin:
        return _load_builtin(source)
    if source.options:
        raise UsageError(
            f"dimension options ({', '.join(source.options)}) are for the built-in models "
            f"{', '.join(BUILTIN)}; {source.model} sets its own"
        )
    if ":" not in source.model:
        raise UsageError(
            f"unknown model {source.model!r}; allowed: {', '.join(BUILTIN)}, "
            "package.module:factory or path/file.py:factory"
        )
    made = call_factory(source.model)
    if source.weights:
        load_weights(made.module, Path(source.weights))
    adapter, inputs, examples, max_length = adapt(made, max_length=source.max_length)
    return LoadedModel(
        source=source, module=adapter, inputs=inputs, examples=examples, max_length=max_length
    )


def _load_builtin(source: ModelSource) -> LoadedModel:
    spec = source.spec()
    if source.max_length is not None:
        raise UsageError("a built-in model's longest sequence is its dimension max_length")
    encoder = build_encoder(spec, source.seed)
    if source.weights:
        load_weights(encoder, Path(source.weights))
    shape = (BATCH, SEQUENCE)
    inputs = (
        TensorSpec(name="input_ids", dtype="int32", shape=shape, role="ids", limit=spec.vocab_size),
        TensorSpec(name="attention_mask", dtype="int32", shape=shape, role="mask"),
    )
    length = min(8, spec.max_length)
    ids = torch.arange(2 * length, dtype=torch.int32).reshape(2, length) % spec.vocab_size
    examples = (ids, torch.ones_like(ids))
    return LoadedModel(
        source=source,
        module=Adapter(encoder, ("input_ids", "attention_mask"), ("logits",)),
        inputs=inputs,
        examples=examples,
        max_length=spec.max_length,
    )


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint into a module, strictly.

    Raises:
        UsageError: if the file is absent or of another kind.
        BuildFailed: if keys or shapes differ; they are named.
    """
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}")
    state = _read_checkpoint(path)
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name}: {list(state[name].shape)} for {list(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    problems = [
        f"{label}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes))
        if names
    ]
    if problems:
        raise BuildFailed(f"{path} does not fit the model; " + "; ".join(problems))
    module.load_state_dict(state)


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            loaded = require("safetensors.torch", extra="export").load_file(path)
        elif path.suffix in (".pt", ".pth", ".bin"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise UsageError(f"{path}: weights must be a .safetensors, .pt, .pth or .bin file")
    except (UsageError, BuildFailed):
        raise
    except Exception as error:  # each reader has its own errors; all mean the file is no good
        raise BuildFailed(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in loaded.values()
    ):
        raise BuildFailed(f"{path} holds no state dict (a mapping of names to tensors)")
    return loaded


def weights_sha256(module: nn.Module) -> str:
    """A digest of all weights: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        header = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(header).encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
