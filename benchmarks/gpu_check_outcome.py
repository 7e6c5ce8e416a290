"""What came of one task of the GPU check."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .gpu_check_gates import GATES

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one task.

    Args:
        gates: what it should measure; ``values`` is what it measured, ``unmeasured`` why not.
        error: why it did not run to its end; None if it did.
        skipped: why it was not run; None if it was.
        identity: changes when the task ran again; what builds on it must then run again too.
        built_on: the identities of the tasks that it needed.
    """

    step: str
    name: str
    command: list[str]
    seconds: float
    gates: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    skipped: str | None = None
    identity: str = ""
    built_on: dict[str, str] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether it ran to its end, whatever its gates say."""
        return self.error is None and self.skipped is None

    @property
    def state(self) -> str:
        """``"pass"``, ``"fail"`` or ``"skipped"``."""
        if self.skipped is not None:
            return SKIPPED
        failed = any(not GATES[gate].holds(value) for gate, value in self.values.items())
        return FAIL if self.error is not None or failed else PASS

    @property
    def is_in_order(self) -> bool:
        """Whether nothing failed, and only what is optional was not measured."""
        left = [gate for gate in self.gates if gate not in self.values]
        optional = all(GATES[gate].optional for gate in left)
        if self.skipped is not None:
            return bool(left) and optional
        return self.state == PASS and optional

    def missing(self) -> Iterator[tuple[str, str]]:
        """Each gate that was not measured, and why."""
        for gate in self.gates:
            if gate not in self.values:
                reason = self.skipped or self.error or self.unmeasured.get(gate)
                yield gate, reason or "the task did not say"

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with the state."""
        return {**asdict(self), "state": self.state}


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Keep a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(outcome.to_json(), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read_outcome(path: Path) -> Outcome | None:
    """A kept result, or None where there is none that can be read."""
    try:
        data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(**{key: value for key, value in data.items() if key != "state"})
    except (OSError, ValueError, TypeError):
        return None
