"""What a build refuses, in TensorRT's words."""

from __future__ import annotations

from collections.abc import Iterator

from .config import BuilderConfig
from .network import Layer, Network, Tensor

PRECISION_FLAGS = ("FP16", "BF16", "INT8", "FP8")


def problems(network: Network, config: BuilderConfig) -> Iterator[str]:
    """Every reason against this build; the first one ends it."""
    if not network.outputs:
        yield "Error Code 4: Internal Error (Network must have at least one output)"
    if network.has_implicit_batch_dimension:
        yield "Error Code 4: Internal Error (Network must have an explicit batch dimension)"
    yield from _profile_problems(network, config)
    yield from _type_problems(network, config)


def _profile_problems(network: Network, config: BuilderConfig) -> Iterator[str]:
    dynamic = [tensor for tensor in network.inputs if -1 in tensor.shape.values]
    if dynamic and not config.profiles:
        yield (
            "Error Code 4: Internal Error (Network has dynamic or shape inputs, but no "
            "optimization profile has been defined.)"
        )
    names = {tensor.name for tensor in network.inputs}
    for index, profile in enumerate(config.profiles):
        for name in sorted(set(profile.shapes) - names):
            yield f"Error Code 4: Internal Error ({name} of profile {index} is no network input.)"
        for tensor in network.inputs:
            shapes = profile.shapes.get(tensor.name)
            if shapes is None:
                if tensor in dynamic:
                    yield (
                        f"Error Code 4: Internal Error ({tensor.name}: dynamic input is missing "
                        f"dimensions in profile {index}.)"
                    )
                continue
            yield from _shape_problems(tensor, shapes, index)


def _shape_problems(
    tensor: Tensor, shapes: tuple[tuple[int, ...], ...], index: int
) -> Iterator[str]:
    real = tensor.shape.values
    if any(len(shape) != len(real) for shape in shapes):
        yield (
            f"Error Code 4: Internal Error ({tensor.name}: for profile {index} the number of "
            f"dimensions is not {len(real)}.)"
        )
        return
    for axis, size in enumerate(real):
        found = {shape[axis] for shape in shapes}
        if size != -1 and found != {size}:
            yield (
                f"Error Code 4: Internal Error ({tensor.name}: for dimension number {axis} in "
                f"profile {index} does not match network definition (got {sorted(found)}, "
                f"expected {size}).)"
            )


def _type_problems(network: Network, config: BuilderConfig) -> Iterator[str]:
    flags = [name for name in PRECISION_FLAGS if config.has_flag(name)]
    pinned = [layer for layer in network.layers if layer.precision_is_set or layer.output_types]
    if network.strongly_typed:
        if flags:
            yield (
                "Error Code 4: API Usage Error (For strongly typed networks, builder flags "
                f"{', '.join(flags)} are not allowed.)"
            )
        for layer in pinned:
            yield (
                f"Error Code 4: API Usage Error ({layer.name}: a layer of a strongly typed "
                "network has no precision to set.)"
            )
        return
    ops = {layer.op for layer in network.layers}
    if ops & {"QuantizeLinear", "DequantizeLinear"} and "INT8" not in flags:
        yield (
            "Error Code 9: Internal Error (Networks with Q/DQ layers need the INT8 flag: int8 "
            "precision has been set for a layer or layer output, but int8 is not configured in "
            "the builder)"
        )
    if "FP16" not in flags and any(map(_asks_for_half, network.layers)):
        yield (
            "Error Code 4: API Usage Error (fp16 precision has been set for a layer or layer "
            "output, but fp16 is not configured in the builder)"
        )
    for layer in pinned:
        if not layer.computes_floats:
            yield (
                f"Error Code 4: API Usage Error ({layer.name}: floating-point precision was set "
                f"on a layer of type {layer.type.name} that computes none)"
            )


def _asks_for_half(layer: Layer) -> bool:
    types = [layer.pinned, *layer.output_types.values(), *(t.dtype for t in layer.outputs)]
    return any(dtype is not None and dtype.name == "HALF" for dtype in types)
