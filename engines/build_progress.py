"""What a person is told while TensorRT builds, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INTERVAL_S = 5.0
LONGEST_LINE = 100


@dataclass
class _Phase:
    steps: int
    begun: float
    done: int = 0


class Progress:
    """Follows the phases of one build; TensorRT's threads call it.

    A line is said when a phase of a new name begins, and else once in :data:`INTERVAL_S`.

    Args:
        what: begins each line, ``"building fp16"``.
        clock: seconds, as ``time.monotonic``.
    """

    def __init__(
        self,
        what: str,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._say, self._clock = what, say, clock
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._known: set[str] = set()
        self._last_said = -INTERVAL_S
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask the build to end at its next step."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether the build was asked to end."""
        return self._stop.is_set()

    def phase_start(self, name: str, steps: int) -> None:
        """A phase begins inside those that are under way."""
        with self._lock:
            self._phases[name] = _Phase(steps, self._clock())
            new = name not in self._known
            self._known.add(name)
            self._tell(name if steps < 2 else f"{name}, {steps} steps", now=new)

    def step_complete(self, name: str, step: int) -> bool:
        """A step, counted from 0, is done. False asks TensorRT to stop."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done = max(phase.done, step + 1)
            self._tell(self._innermost(), now=False)
        return not self.stopped

    def phase_finish(self, name: str) -> None:
        """A phase has ended, with all its steps or before."""
        with self._lock:
            self._phases.pop(name, None)

    def line(self, text: str) -> None:
        """A line of TensorRT's log, where that is all there is."""
        with self._lock:
            self._tell(text[:LONGEST_LINE], now=False)

    def _innermost(self) -> str:
        """The last phase that has steps to count; phases are kept in the order they began."""
        for name, phase in reversed(self._phases.items()):
            if phase.steps > 1 and phase.done:
                left = (self._clock() - phase.begun) / phase.done * (phase.steps - phase.done)
                return f"{name}, {phase.done} of {phase.steps}, about {_duration(left)} left"
        return next(reversed(self._phases), "")

    def _tell(self, text: str, *, now: bool) -> None:
        time_s = self._clock()
        if not text or not (now or time_s - self._last_said >= INTERVAL_S):
            return
        self._last_said = time_s
        # An exception may not cross TensorRT's own code.
        with contextlib.suppress(Exception):
            self._say(f"{self._what}: {text}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class _Monitor:
    """TensorRT's IProgressMonitor; the names and arguments of its methods are TensorRT's."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._progress.phase_start(phase_name, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        return self._progress.step_complete(phase_name, step)

    def phase_finish(self, phase_name: str) -> None:
        self._progress.phase_finish(phase_name)


def can_be_followed(trt: Any) -> bool:
    """Whether this TensorRT tells its progress and can be stopped: 10 and later."""
    return hasattr(trt, "IProgressMonitor")


def make_monitor(trt: Any, progress: Progress) -> Any:
    """An IProgressMonitor of this TensorRT; only where :func:`can_be_followed`."""
    return type("Monitor", (_Monitor, trt.IProgressMonitor), {})(progress)
