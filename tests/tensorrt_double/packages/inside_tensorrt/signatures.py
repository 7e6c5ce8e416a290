"""Check a call against the signatures that pybind11 wrote into the real docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MISSING: Any = object()
ENUM_DEFAULT = re.compile(r"<[\w.]+\.(\w+): -?\d+>")
NAMESPACE = re.compile(r"(?:nvinfer1|nvonnxparser)::(?:v_\d+_\d+::)?")
Classes = dict[str, type]


@dataclass(frozen=True)
class Parameter:
    """One argument: its name, its annotation and, where there is one, its default's text."""

    name: str
    annotation: str
    default: str | None


def parse(signature: str) -> list[Parameter]:
    """The parameters of ``"(self: T, a: int = 0) -> R"``, self included."""
    inside = signature[1 : signature.rindex(") -> ")]
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(inside):
        depth += (letter in "([<") - (letter in ")]>")
        if letter == "," and depth == 0:
            parts.append(inside[start:index])
            start = index + 1
    parts.append(inside[start:])
    return [_parameter(part.strip()) for part in parts if part.strip()]


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(":")
    annotation, found, default = rest.partition(" = ")
    return Parameter(name.strip(), annotation.strip(), default.strip() if found else None)


def bind(name: str, overloads: Sequence[str], classes: Classes, called: Any) -> list[Any]:
    """The positional arguments of the first signature that the call fits, self left out.

    Args:
        called: ``(self or None, args, kwargs)``; None for a function of the module.

    Raises:
        TypeError: as pybind11 words it, if the call fits no signature.
    """
    instance, args, kwargs = called
    for signature in overloads:
        parameters = parse(signature)[0 if instance is None else 1 :]
        values = _fit(parameters, args, kwargs, classes)
        if values is not None:
            return values
    supported = "\n".join(f"    {i}. {text}" for i, text in enumerate(overloads, 1))
    given = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
    raise TypeError(
        f"{name}(): incompatible function arguments. The following argument types are "
        f"supported:\n{supported}\n\nInvoked with: {given}"
    )


def _fit(
    parameters: list[Parameter], args: Sequence[Any], kwargs: dict[str, Any], classes: Classes
) -> list[Any] | None:
    if len(args) > len(parameters) or set(kwargs) - {p.name for p in parameters[len(args) :]}:
        return None
    given = dict(zip((p.name for p in parameters), args, strict=False)) | kwargs
    values = []
    for parameter in parameters:
        value = given.get(parameter.name, MISSING)
        if value is MISSING:
            if parameter.default is None:
                return None
            value = _default(parameter, classes)
        elif not accepts(parameter.annotation, value, classes):
            return None
        values.append(value)
    return values


def _default(parameter: Parameter, classes: Classes) -> Any:
    text = parameter.default or ""
    enum = ENUM_DEFAULT.fullmatch(text)
    if enum:
        return getattr(classes[_class_name(parameter.annotation)], enum.group(1))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _class_name(annotation: str) -> str:
    return NAMESPACE.sub("", annotation).replace("::", ".")


def accepts(annotation: str, value: Any, classes: Classes) -> bool:
    """Whether pybind11 would convert this value to this type. Unknown types take anything."""
    plain = PLAIN.get(annotation)
    if plain is not None:
        return plain(value)
    inner = re.fullmatch(r"(?:collections\.abc\.Sequence|List|list)\[(.*)\]", annotation)
    if inner:
        if isinstance(value, str | bytes) or not hasattr(value, "__getitem__"):
            return False
        return all(accepts(inner.group(1), item, classes) for item in value)
    cls = classes.get(_class_name(annotation))
    if cls is None:
        return True
    if cls.__name__ == "Dims" and isinstance(value, tuple | list):
        return all(map(_is_int, value))
    # pybind11 takes None for most pointers, and the library then crashes: refused here.
    return isinstance(value, cls)


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__")


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


PLAIN: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "typing.SupportsInt": _is_int,
    "float": lambda value: hasattr(value, "__float__") or _is_int(value),
    "typing.SupportsFloat": lambda value: hasattr(value, "__float__") or _is_int(value),
    "str": lambda value: isinstance(value, str | bytes) or value is None,
    "bytes": lambda value: isinstance(value, bytes),
    "bool": lambda value: value is None or hasattr(value, "__bool__"),
    "list": lambda value: isinstance(value, list),
    "tuple": lambda value: isinstance(value, tuple),
    "slice": lambda value: isinstance(value, slice),
    "buffer": _is_buffer,
    "typing_extensions.Buffer": _is_buffer,
    "collections.abc.Buffer": _is_buffer,
    "object": lambda _: True,
}
