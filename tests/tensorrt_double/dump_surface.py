"""Print what the installed TensorRT bindings offer, as JSON: ``python dump_surface.py MODULE``.

Nothing is constructed: without a GPU, a Builder or a Runtime of the real binding ends the process.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

# "name(self: T, a: int = 0) -> R", or "2. name(...) -> R" below "Overloaded function."
SIGNATURE = re.compile(r"^(?:\d+\. )?\w*(\(.*\) -> .*)$", re.MULTILINE)
PREFIX = re.compile(r"tensorrt_(?:lean_)?bindings\.tensorrt(?:_lean)?\.")
DUNDERS = {"__init__", "__len__", "__getitem__", "__setitem__", "__eq__", "__bool__"}


def signatures(function: Any) -> list[str]:
    """Every signature that pybind11 wrote into a docstring, without its name."""
    text = getattr(function, "__doc__", None) or ""
    found = SIGNATURE.findall(text)
    return [PREFIX.sub("", line) for line in (found if "Overloaded" in text else found[:1])]


def enum_member(value: Any) -> list[str] | None:
    """``["DataType", "FLOAT"]`` for a member of an enum, None for anything else."""
    cls = type(value)
    return [cls.__qualname__, value.name] if hasattr(cls, "__members__") else None


def describe(cls: type) -> dict[str, Any]:
    """One class: its methods, properties, members and nested names."""
    members = getattr(cls, "__members__", {})
    entry: dict[str, Any] = {
        "bases": [base.__qualname__ for base in cls.__bases__ if "tensorrt" in base.__module__],
        "dynamic": cls.__dictoffset__ != 0,
        "enum": {name: int(member) for name, member in members.items()} or None,
        "methods": {},
        "properties": {},
        "constants": {},
    }
    for name, value in vars(cls).items():
        if name.startswith("_") and name not in DUNDERS:
            continue
        if isinstance(value, property):
            setter = value.fset and signatures(value.fset)[0]
            entry["properties"][name] = {"get": value.fget is not None, "set": setter}
        elif callable(value) and not isinstance(value, type):
            if signatures(value):
                entry["methods"][name] = signatures(value)
        elif name not in members and enum_member(value):
            entry["constants"][name] = enum_member(value)
    return entry


def surface(module: Any) -> dict[str, Any]:
    """The whole module."""
    found: dict[str, Any] = {
        "version": module.__version__,
        "classes": {},
        "functions": {},
        "constants": {},
    }
    waiting = [value for value in vars(module).values() if isinstance(value, type)]
    while waiting:
        cls = waiting.pop()
        if cls.__qualname__ not in found["classes"] and "tensorrt" in cls.__module__:
            found["classes"][cls.__qualname__] = describe(cls)
            waiting += [value for value in vars(cls).values() if isinstance(value, type)]
    for name, value in vars(module).items():
        if enum_member(value):
            found["constants"][name] = enum_member(value)
        elif type(value).__name__ == "builtin_function_or_method" and signatures(value):
            found["functions"][name] = signatures(value)
    return found


if __name__ == "__main__":
    json.dump(surface(importlib.import_module(sys.argv[1])), sys.stdout)
