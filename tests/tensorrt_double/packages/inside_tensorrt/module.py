"""Fill a module with the classes, enums and functions of one real version."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from .classes import make_classes
from .parser import OnnxParser
from .runtime import Runtime
from .signatures import bind
from .values import NUMPY, Dims
from .world import Double, Logger, World


def fill(namespace: dict[str, Any], surface_file: str, *, lean: bool) -> None:
    """Put everything into a module's namespace, and the knobs under ``double``."""
    from .builder import Builder

    surface = json.loads(Path(surface_file).read_text())
    classes: dict[str, type] = {}
    world = World(surface, classes, Double.from_environment(), lean)
    played = (Builder, Dims, Logger, OnnxParser, Runtime)
    make_classes(surface, classes, {cls.kind: partial(cls, world) for cls in played})
    namespace.update({name: cls for name, cls in classes.items() if "." not in name})
    for name, (cls, member) in surface["constants"].items():
        namespace[name] = getattr(classes[cls], member)
    for name, overloads in surface["functions"].items():
        namespace[name] = _function(name, overloads, classes)
    namespace["__version__"] = surface["version"]
    namespace["double"] = world.double
    namespace["nptype"] = _nptype
    namespace["volume"] = _volume


def _function(name: str, overloads: list[str], classes: dict[str, type]) -> Any:
    answers = {"init_libnvinfer_plugins": True, "get_nv_onnx_parser_version": 8}

    def call(*args: Any, **kwargs: Any) -> Any:
        # A logger may be given where the signature says capsule.
        bind(name, overloads, classes, (None, args, kwargs))
        if name not in answers:
            raise NotImplementedError(f"the double does not play {name}")
        return answers[name]

    return call


def _nptype(dtype: Any) -> Any:
    if dtype.name not in NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return NUMPY[dtype.name]


def _volume(shape: Any) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
