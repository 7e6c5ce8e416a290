"""The workers of one measurement: started, warmed up, and asked in turn A B C, C B A, A B C.

Only one works at a time; the others are blocked in a read. What slows the machine for a while so
slows them all, and none always runs after the same other one. Each turn begins with a little work
that is not timed: the first batch after a wait is slower, and a short turn has hardly another.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.errors import AttnExportError

from .candidates import BUCKETED, HAND_SORTED, Prepared, Settings
from .process import Worker
from .workload import Ids, save_sequences

SETTLE_S = 0.1  # the thread pools of the last turn stop spinning
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure.

    Args:
        turn_s: wanted length of a turn in seconds.
        all_s: sorted candidates run every sequence where that takes no longer than this.
        warm_up_s: when a warm-up that is not stable ends.
    """

    rounds: int
    turn_s: float
    all_s: float
    warm_up_s: float


FULL = Plan(rounds=7, turn_s=2.0, all_s=8.0, warm_up_s=10.0)
QUICK = Plan(rounds=2, turn_s=0.5, all_s=0.5, warm_up_s=1.0)


class Entry:
    """A running candidate and what it has shown so far.

    Attributes:
        started: the worker's cold start times, in seconds.
        prepared: what each of its turns runs.
        rounds: real samples a second in each round.
        batch_ms: the time of each batch of all rounds.
    """

    def __init__(self, settings: Settings, worker: Worker, started: dict[str, float]) -> None:
        self.settings, self.worker, self.started = settings, worker, started
        self.rate = 0.0
        self.prepared = Prepared(samples=0, tokens=0, computed_tokens=0, batches=0)
        self.rounds: list[float] = []
        self.batch_ms: list[float] = []

    @property
    def is_sorted(self) -> bool:
        """Whether it makes its own batches of all sequences."""
        return self.settings.candidate in (BUCKETED, HAND_SORTED)


class Rounds:
    """All workers of one measurement; they end when ``stack`` closes.

    Attributes:
        entries: the candidates that run.
        skipped: those that cannot run here, and why.
    """

    def __init__(
        self, bundle: Bundle, sequences: Sequence[Ids], plan: Plan, say: Say, stack: ExitStack
    ) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._data = folder / "sequences.npz"
        save_sequences(self._data, sequences)
        self._bundle, self._plan, self._say, self._stack = bundle, plan, say, stack
        self._total = len(sequences)
        self._typical = int(np.median([len(ids) for ids in sequences]))
        self._is_forward = False
        self.entries: list[Entry] = []
        self.skipped: dict[str, str] = {}

    def start(self, settings: Settings) -> None:
        """Start one worker; an eager candidate that cannot start is skipped.

        Raises:
            AttnExportError: if an engine cannot start.
        """
        self._say(f"loading {settings.name}")
        worker = self._stack.enter_context(Worker(settings.name))
        content: dict[str, Any] = {
            "settings": asdict(settings),
            "bundle": str(self._bundle.directory),
            "data": str(self._data),
            "first_length": self._typical,
        }
        try:
            started = worker.start(content)
        except AttnExportError as error:
            if settings.engine is not None:
                raise
            self.skipped[settings.name] = str(error)
            return
        self.entries.append(Entry(settings, worker, started))

    def prepare(self) -> None:
        """Warm every worker up and give it the work of a turn."""
        for entry in self.entries:
            self._say(f"warming up {entry.settings.name}")
            small = entry.settings.batch_size * (4 if entry.is_sorted else 1)
            order = {"do": "warm_up", "samples": small, "limit_s": self._plan.warm_up_s}
            entry.rate = entry.worker.ask(order)["samples_per_s"]
        bucketed = {
            entry.settings.engine: entry.rate
            for entry in self.entries
            if entry.settings.candidate == BUCKETED
        }
        for entry in self.entries:
            samples = entry.rate * self._plan.turn_s
            if entry.is_sorted:  # both sorted candidates of an engine get the same sequences
                samples = min(self._total, bucketed[entry.settings.engine] * self._plan.all_s)
            order = {"do": "prepare", "samples": max(1, int(samples))}
            entry.prepared = Prepared(**entry.worker.ask(order))

    def run(self, title: str) -> None:
        """One round: a turn of each worker, in the opposite order of the last round."""
        self._is_forward = not self._is_forward
        for entry in self.entries if self._is_forward else reversed(self.entries):
            time.sleep(SETTLE_S)
            turn = entry.worker.ask({"do": "turn"})
            entry.rounds.append(entry.prepared.samples / turn["seconds"])
            entry.batch_ms += turn["batch_ms"]
            self._say(f"{title}: {entry.settings.name} {entry.rounds[-1]:.1f} samples/s")

    def stop(self) -> dict[str, float]:
        """End all workers; the largest resident size of each in MiB, by candidate."""
        return {
            entry.settings.name: entry.worker.ask({"do": "stop"})["peak_mib"]
            for entry in self.entries
        }
