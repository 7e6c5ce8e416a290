"""What a test can set, what all objects of one TensorRT share, and how objects are shown."""

from __future__ import annotations

import json
import os
import time
import weakref
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass
class Double:
    """The knobs: ``tensorrt.double``, or ``ATTN_EXPORT_DOUBLE`` with a JSON object of them.

    Args:
        fail_build: "tactic", "memory", "conflict" (no tactic while layers must keep their
            precision), or the text of any other error that ends the build.
        slow_build_s: how long a build takes, spread over its steps.
        unsupported_ops: op types for which the parser has no importer.
        compute_capability: of the GPU that engines are built for and loaded on.
        fail_execute: execution contexts refuse to run.
        builds: how many builds have started.
    """

    fail_build: str | None = None
    slow_build_s: float = 0.0
    unsupported_ops: list[str] = field(default_factory=lambda: ["Unsupported"])
    compute_capability: str = "7.5"
    fail_execute: bool = False
    builds: int = 0

    @classmethod
    def from_environment(cls) -> Double:
        """The knobs that a test gave, and the GPU of ``ATTN_EXPORT_DOUBLE_GPU``."""
        gpu = os.environ.get("ATTN_EXPORT_DOUBLE_GPU", "Tesla T4;7.5;15109").split(";")
        knobs = {"compute_capability": gpu[1]}
        return cls(**knobs | json.loads(os.environ.get("ATTN_EXPORT_DOUBLE", "{}")))


class World:
    """One TensorRT: its version, its classes and its knobs."""

    def __init__(
        self,
        surface: dict[str, Any],
        classes: dict[str, type],
        double: Double,
        lean: bool,
    ) -> None:
        self.version: str = surface["version"]
        self.classes = classes
        self.double = double
        self.lean = lean

    @property
    def major(self) -> int:
        """8, 10 or 11."""
        return int(self.version.partition(".")[0])

    def has(self, cls: str, member: str) -> bool:
        """Whether this version's class has this member."""
        return hasattr(self.classes.get(cls), member)

    def enum(self, cls: str, member: str) -> Any:
        """One member of an enum."""
        return getattr(self.classes[cls], member)

    def bit(self, cls: str, member: str) -> int:
        """A member's bit in a set of flags; 0 where this version lacks it."""
        return 1 << int(self.enum(cls, member)) if self.has(cls, member) else 0

    def log(self, logger: Any, severity: str, text: str) -> None:
        """Send one line to the logger that the user gave."""
        logger.log(self.enum("ILogger.Severity", severity), text)

    def show(self, value: Any) -> Any:
        """What the user sees of a result: a behaviour becomes its object of the real class."""
        if isinstance(value, Behaviour):
            return value.public()
        if isinstance(value, list):
            return [self.show(item) for item in value]
        return value


class Behaviour:
    """The inside of one object. Methods and properties that it lacks are not played."""

    kind: ClassVar[str]

    def __init__(self, world: World) -> None:
        self.world = world
        self._shown: weakref.ref[Any] | None = None

    def public(self) -> Any:
        """The object that the user holds; one as long as it is alive."""
        shown = self._shown() if self._shown else None
        if shown is None:
            cls: Any = self.world.classes[self.kind]
            shown = cls.__new__(cls)
            self.adopt(shown)
        return shown

    def __repr__(self) -> str:
        return f"<tensorrt_bindings.tensorrt.{self.kind} object>"

    def adopt(self, shown: Any) -> None:
        """Become the inside of this object."""
        object.__setattr__(shown, "_inside", self)
        self._shown = weakref.ref(shown)


class Logger(Behaviour):
    """``tensorrt.Logger``: prints what is severe enough."""

    kind = "Logger"

    def __init__(self, world: World, min_severity: Any) -> None:
        super().__init__(world)
        self.min_severity = min_severity

    def log(self, severity: Any, text: str) -> None:
        """Print one line, as the real one does."""
        if int(severity) <= int(self.min_severity):
            stamp = time.strftime("%m/%d/%Y-%H:%M:%S")
            print(f"[{stamp}] [TRT] [{severity.name[0]}] {text}", flush=True)  # noqa: T201
