"""Python classes that have exactly the members of the real ones, made from the surface."""

from __future__ import annotations

from collections.abc import Callable
from functools import total_ordering
from typing import Any, cast

from .signatures import Classes, accepts, bind, parse
from .world import Behaviour, World

Surface = dict[str, Any]
MODULE = "tensorrt_bindings.tensorrt"
# What a bytearray offers and the real IHostMemory does not.
HIDDEN = [n for n in dir(bytearray) if not n.startswith("__")]
HIDDEN_DUNDERS = "__len__ __getitem__ __setitem__ __delitem__ __iter__ __contains__ __add__ __mul__"


class BoundType(type):
    """Refuse an object whose class forgot to call ``__init__`` of the TensorRT class."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        if made._inside is NOT_READY:
            base = next(c for c in cls.__mro__ if c.__module__ == MODULE)
            raise TypeError(
                f"{MODULE}.{base.__qualname__}.__init__() must be called when overriding __init__"
            )
        return made


NOT_READY = object()


def make_classes(surface: Surface, made: Classes, behaviours: dict[str, Any]) -> None:
    """Fill ``made``: qualified name -> class, bases first.

    Args:
        behaviours: class name -> function (\\*arguments) -> the inside of a new object.
    """
    entries = surface["classes"]

    def make(name: str) -> None:
        if name in made:
            return
        for base in entries[name]["bases"]:
            make(base)
        maker = _make_enum if entries[name]["enum"] else _make_class
        made[name] = maker(name, entries[name], made, behaviours)

    for name in entries:
        make(name)
    for name, entry in entries.items():
        if "." in name:
            outer, inner = name.split(".")
            setattr(made[outer], inner, made[name])
        for constant, (cls, member) in entry["constants"].items():
            setattr(made[name], constant, getattr(made[cls], member))
    # tensorrt/__init__.py adds these two by hand.
    made["Logger"].Severity = made["ILogger.Severity"]  # type: ignore[attr-defined]
    itemsizes = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT32": 4, "INT64": 8, "INT4": 0.5, "FP4": 0.5}
    made["DataType"].itemsize = property(  # type: ignore[attr-defined]
        lambda dtype: itemsizes.get(dtype.name, 1)
    )


@total_ordering
class Member:
    """A member of pybind11's enum: neither an int nor a Python Enum."""

    __slots__ = ("_name", "_value")
    __members__: dict[str, Member]
    _name: str
    _value: int

    def __new__(cls, value: int) -> Member:
        for member in cls.__members__.values():
            if member._value == int(value):
                return member
        raise ValueError(f"{value} is no {cls.__name__}")

    name = property(lambda self: self._name)
    value = property(lambda self: self._value)

    def __int__(self) -> int:
        return self._value

    __index__ = __int__

    def __hash__(self) -> int:
        return self._value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._value == self._value

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            raise TypeError("Expected an enumeration of matching type!")
        return self._value < other._value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self._name}: {self._value}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self._name}"


def _make_class(name: str, entry: Surface, made: Classes, behaviours: dict[str, Any]) -> type:
    bases = tuple(made[base] for base in entry["bases"])
    space: dict[str, Any] = {"__module__": MODULE, "__qualname__": name, "__slots__": ()}
    if not bases:
        bases = (bytearray,) if name == "IHostMemory" else ()
        space["__slots__"] = ("_inside", "__weakref__") + ("__dict__",) * entry["dynamic"]
        space["__new__"] = _new
        space["__hash__"] = object.__hash__
    if name == "IHostMemory":
        space |= _memory_guards()
    for method, overloads in entry["methods"].items():
        space[method] = _method(method, overloads, made)
    for prop, access in entry["properties"].items():
        space[prop] = _property(name, prop, access, made)
    space["__repr__"] = lambda self: repr(unwrap(self)) if self._inside else f"<{name}>"
    space["__init__"] = _constructor(name, entry["methods"].get("__init__"), made, behaviours)
    return BoundType(name.rpartition(".")[2], bases, space)


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    base = bytearray if issubclass(cls, bytearray) else object
    made: Any = base.__new__(cls)
    object.__setattr__(made, "_inside", NOT_READY)
    return made


def _memory_guards() -> dict[str, Any]:
    def absent(name: str) -> property:
        def refuse(shown: Any) -> Any:
            raise AttributeError(f"'{MODULE}.IHostMemory' object has no attribute {name!r}")

        return property(refuse)

    hidden: dict[str, Any] = {name: absent(name) for name in HIDDEN}
    hidden |= dict.fromkeys(HIDDEN_DUNDERS.split())
    return hidden | {"__bool__": lambda _: True, "__eq__": lambda a, b: a is b}


def _constructor(
    name: str, overloads: list[str] | None, made: Classes, behaviours: dict[str, Any]
) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if overloads is None:
            raise TypeError(f"{MODULE}.{name}: No constructor defined!")
        values = bind("__init__", overloads, made, (self, args, kwargs))
        object.__setattr__(self, "_inside", None)
        if name in behaviours:
            behaviours[name](*map(unwrap, values)).adopt(self)

    return __init__


def unwrap(value: Any) -> Any:
    """The inside of an object of ours; user classes and plain values stay what they are."""
    inside = getattr(value, "_inside", None)
    return inside if isinstance(inside, Behaviour) else value


def _world(self: Any, what: str) -> tuple[Any, World]:
    inside = getattr(self, "_inside", None)
    if not isinstance(inside, Behaviour):
        raise NotImplementedError(f"the double does not play {type(self).__name__}.{what}")
    return inside, inside.world


def _method(name: str, overloads: list[str], made: Classes) -> Callable[..., Any]:
    static = not (parse(overloads[0]) and parse(overloads[0])[0].name == "self")

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        values = bind(name, overloads, made, (self, args, kwargs))
        inside, world = _world(self, name)
        played = getattr(inside, name, None)
        if played is None:
            raise NotImplementedError(f"the double does not play {type(self).__name__}.{name}")
        return world.show(played(*map(unwrap, values)))

    def call_static(*args: Any, **kwargs: Any) -> Any:
        bind(name, overloads, made, (None, args, kwargs))
        raise NotImplementedError(f"the double does not play {name}")

    call.__name__ = name
    return staticmethod(call_static) if static else call


def _property(cls: str, name: str, access: Surface, made: Classes) -> property:
    def get(self: Any) -> Any:
        inside, world = _world(self, name)
        if name not in vars(inside) and not hasattr(type(inside), name):
            raise NotImplementedError(f"the double does not play {cls}.{name}")
        return world.show(getattr(inside, name))

    def put(self: Any, value: Any) -> None:
        parameter = parse(access["set"])[1]
        pointer = parameter.annotation in made and value is None
        if not pointer and not accepts(parameter.annotation, value, made):
            raise TypeError(
                f"(): incompatible function arguments. The following argument types are "
                f"supported:\n    1. {access['set']}\n\nInvoked with: {self!r}, {value!r}"
            )
        setattr(_world(self, name)[0], name, unwrap(value))

    return property(get if access["get"] else None, put if access["set"] else None)


def _make_enum(name: str, entry: Surface, made: Classes, behaviours: dict[str, Any]) -> type:
    short = name.rpartition(".")[2]
    cls: Any = type(short, (Member,), {"__module__": MODULE, "__qualname__": name, "__slots__": ()})
    cls.__members__ = {}
    for member, number in entry["enum"].items():
        value = object.__new__(cls)
        value._name, value._value = member, number
        cls.__members__[member] = value
        setattr(cls, member, value)
    return cast("type", cls)
