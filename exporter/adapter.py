"""Give any module one shape: int32 and float inputs by position, a flat tuple of outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn_export.errors import BuildFailed, UsageError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .factory import Made

EXAMPLE_LENGTH = 8


class Adapter(nn.Module):
    """Calls ``inner`` with named inputs and flattens what it returns.

    Args:
        output_names: one name an output, in the order of :func:`flatten`.
        wanted: the dtype that the inner module needs where it is not the graph's own.
    """

    def __init__(
        self,
        inner: nn.Module,
        input_names: Sequence[str],
        output_names: Sequence[str],
        wanted: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)
        self.wanted = dict(wanted or {})

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs as a flat tuple, in the order of ``output_names``."""
        named = {
            name: tensor.to(self.wanted[name]) if name in self.wanted else tensor
            for name, tensor in zip(self.input_names, inputs, strict=True)
        }
        return tuple(flatten(self.inner(**named)).values())


def flatten(result: Any) -> dict[str, Tensor]:
    """Name a module's outputs: a mapping keeps its keys, a tuple counts, a tensor is ``output``.

    Raises:
        BuildFailed: if something in it is no tensor.
    """
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        named = {str(key): value for key, value in result.items() if value is not None}
    elif isinstance(result, tuple | list):
        named = {f"output_{i}": value for i, value in enumerate(result) if value is not None}
    else:
        named = {"output": result}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise BuildFailed(
                f"the model's output {name!r} is a {type(value).__name__}; return tensors, "
                "a tuple or a dict of tensors"
            )
    return named


def adapt(
    made: Made, *, max_length: int | None
) -> tuple[Adapter, tuple[TensorSpec, ...], tuple[Tensor, ...], int]:
    """Work out a user's inputs: names, dtypes, axes, what they hold, and the longest sequence.

    Raises:
        UsageError: if the inputs or the longest sequence cannot be told.
        BuildFailed: if the module fails on its examples.
    """
    module = made.module.float().eval()
    examples = made.examples if made.examples is not None else _usual_examples(module)
    axes = (
        made.axes if made.axes is not None else {name: {0: BATCH, 1: SEQUENCE} for name in examples}
    )
    _check_axes(examples, axes)
    outputs, limits = _run_once(module, examples)
    wanted = {n: t.dtype for n, t in examples.items() if t.dtype != _graph_tensor(t).dtype}
    inputs = tuple(
        _tensor_spec(name, tensor, axes.get(name, {}), limits) for name, tensor in examples.items()
    )
    longest = _max_length(module, inputs, max_length)
    tensors = tuple(_graph_tensor(tensor).clone() for tensor in examples.values())
    return Adapter(module, tuple(examples), outputs, wanted), inputs, tensors, longest


def _usual_examples(module: nn.Module) -> dict[str, Tensor]:
    """Examples for a module whose forward takes ``input_ids`` and maybe ``attention_mask``."""
    parameters = inspect.signature(module.forward).parameters.values()
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (2, 4)}
    names = {p.name for p in parameters}
    allowed = {"input_ids", "attention_mask"}
    if "input_ids" not in names or required - allowed:
        raise UsageError(
            f"the model's forward takes ({', '.join(p.name for p in parameters)}); without "
            "examples it must take input_ids and attention_mask: let the factory return "
            "(module, example_inputs, axes)"
        )
    ids = torch.arange(2 * EXAMPLE_LENGTH).reshape(2, EXAMPLE_LENGTH) % 2
    examples = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: tensor for name, tensor in examples.items() if name in names}


def _check_axes(examples: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]) -> None:
    for name, dims in axes.items():
        if name not in examples:
            raise UsageError(f"axes name the input {name!r}, which has no example")
        for dim, axis in dims.items():
            if axis not in (BATCH, SEQUENCE):
                raise UsageError(
                    f"axis {axis!r} of {name!r}: dynamic axes are called {BATCH!r} or {SEQUENCE!r}"
                )
            if not 0 <= dim < examples[name].dim():
                raise UsageError(
                    f"{name!r} has {examples[name].dim()} dimensions; axis {dim} is not one of them"
                )
    if not any(dims.get(0) == BATCH for dims in axes.values()):
        raise UsageError(f"no input has dimension 0 named {BATCH!r}; engines need a batch axis")


def _run_once(
    module: nn.Module, examples: Mapping[str, Tensor]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Output names, and the table sizes of the embeddings that read an input as it is."""
    limits: dict[str, int] = {}

    def watch(table: nn.Embedding, arguments: tuple[Any, ...]) -> None:
        for name, tensor in examples.items():
            seen = arguments[0] if arguments else None
            if isinstance(seen, Tensor) and seen.shape == tensor.shape and seen.equal(tensor):
                size = table.num_embeddings
                limits[name] = min(size, limits.get(name, size))

    handles = [
        part.register_forward_pre_hook(watch)
        for part in module.modules()
        if isinstance(part, nn.Embedding)
    ]
    try:
        with torch.inference_mode():
            result = module(**{name: tensor.clone() for name, tensor in examples.items()})
    except Exception as error:
        shapes = ", ".join(f"{n} {t.dtype} {list(t.shape)}" for n, t in examples.items())
        raise BuildFailed(
            f"the model failed on its example inputs ({shapes}): {type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return tuple(flatten(result)), limits


def _graph_tensor(tensor: Tensor) -> Tensor:
    """The same values in the graph's dtype: int32 for integers and booleans, FP32 for floats."""
    return tensor.float() if tensor.is_floating_point() else tensor.int()


def _tensor_spec(
    name: str, tensor: Tensor, axes: Mapping[int, str], limits: Mapping[str, int]
) -> TensorSpec:
    shape = tuple(axes.get(dim, size) for dim, size in enumerate(tensor.shape))
    if tensor.is_floating_point():
        return TensorSpec(name=name, dtype="float32", shape=shape)
    if "mask" in name or tensor.dtype == torch.bool:
        return TensorSpec(name=name, dtype="int32", shape=shape, role="mask")
    limit = limits.get(name, int(tensor.max()) + 1)
    return TensorSpec(name=name, dtype="int32", shape=shape, role="ids", limit=limit)


def _max_length(module: nn.Module, inputs: Sequence[TensorSpec], asked: int | None) -> int:
    if all(spec.axis(SEQUENCE) is None for spec in inputs):
        return 1
    config = getattr(module, "config", None)
    own = getattr(module, "max_length", None) or getattr(config, "max_position_embeddings", None)
    own = own if isinstance(own, int) else None
    if asked is not None and own is not None and asked > own:
        raise UsageError(f"--max-length {asked} is over the model's own maximum of {own}")
    longest = asked or own
    if longest is None:
        raise UsageError(
            "the longest sequence of this model is unknown: pass --max-length, or give the "
            "module an attribute max_length"
        )
    return longest
