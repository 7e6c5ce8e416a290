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
from attn_export.engines.profiles import Profile
from attn_export.errors import AttnExportError, HostError

from .candidates import BUCKETED, HAND_SORTED, PADDED, Settings, longest_of, padded_size
from .devices import GPU, device_of
from .interpreter import Interpreter
from .latency import Latency
from .loops import Prepared
from .process import LIMIT_S, Worker
from .workload import Ids, save_sequences

SETTLE_S = 0.1  # the thread pools of the last turn stop spinning
# A turn that takes this many times as long as expected, and this many seconds, hangs.
TURNS_PER_LIMIT, LEAST_LIMIT_S = 20, 60.0
Say = Callable[[str], None]
Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure.

    Args:
        turn_s: wanted length of a turn in seconds; fast candidates repeat their requests.
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
        started: the worker's cold start times in seconds, and its versions.
        on_gpu: whether it runs there.
        prepared: what each of its turns runs, ``repeats`` times.
        rate: real samples a second in the warm-up.
        rounds: real samples a second in each round.
        batch_ms: the time of each batch of all rounds.
    """

    def __init__(
        self, settings: Settings, worker: Worker, started: dict[str, Any], *, on_gpu: bool
    ) -> None:
        self.settings, self.worker, self.started = settings, worker, started
        self.on_gpu = on_gpu
        self.rate = 0.0
        self.prepared = Prepared(samples=0, tokens=0, computed_tokens=0, batches=0)
        self.repeats = 1
        self.rounds: list[float] = []
        self.batch_ms: list[float] = []

    @property
    def is_eager(self) -> bool:
        """Whether PyTorch runs it, and no engine."""
        return self.settings.engine is None

    @property
    def is_sorted(self) -> bool:
        """Whether it makes its own batches of all sequences."""
        return self.settings.candidate in (BUCKETED, HAND_SORTED)

    @property
    def limit_s(self) -> float:
        """How long a turn may take: 20 times what the warm-up promised."""
        expected = self.prepared.samples * self.repeats / self.rate
        return max(LEAST_LIMIT_S, TURNS_PER_LIMIT * expected)


class Rounds:
    """All workers of one measurement; they end when ``stack`` closes.

    Args:
        eager: the interpreter of eager candidates; ``engine`` that of the others.

    Attributes:
        entries: the candidates that run.
        skipped: eager candidates that cannot run here, and why.
    """

    def __init__(
        self,
        bundle: Bundle,
        sequences: Sequence[Ids],
        plan: Plan,
        *,
        eager: Interpreter,
        engine: Interpreter,
        say: Say,
        stack: ExitStack,
    ) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._data = folder / "sequences.npz"
        save_sequences(self._data, sequences)
        self._bundle, self._plan, self._say, self._stack = bundle, plan, say, stack
        self.eager, self._engine = eager, engine
        self._total = len(sequences)
        self.typical = int(np.median([len(ids) for ids in sequences]))
        self._is_forward = False
        self.entries: list[Entry] = []
        self.skipped: dict[str, str] = {}

    def start(self, settings: Settings, *, optional: bool = False) -> str | None:
        """Start one worker; the reason, if it is left out.

        An eager candidate that fails is left out. So is an ``optional`` engine that this host
        cannot run, if its worker could say so.

        Raises:
            AttnExportError: if an engine cannot start.
        """
        self._say(f"loading {settings.name}")
        is_eager = settings.engine is None
        interpreter = self.eager if is_eager else self._engine
        worker = self._stack.enter_context(Worker(settings.name, interpreter))
        content: dict[str, Any] = {
            "settings": asdict(settings),
            "bundle": str(self._bundle.directory),
            "data": str(self._data),
            "first_length": self.typical,
        }
        try:
            started = worker.start(content)
        except AttnExportError as error:
            if is_eager:
                self.skipped[settings.name] = str(error)
            elif not (optional and isinstance(error, HostError) and not worker.died):
                raise
            return str(error)
        device = settings.eager_device
        if settings.engine is not None:
            device = device_of(self._bundle.manifest.engines[settings.engine])
        self.entries.append(Entry(settings, worker, started, on_gpu=device == GPU))
        return None

    def prepare(self) -> None:
        """Warm every worker up and give it the work of a turn.

        Raises:
            AttnExportError: if an engine fails.
        """
        for entry in [*self.entries]:
            self._say(f"warming up {entry.settings.name}")
            small = entry.settings.batch_size * (4 if entry.is_sorted else 1)
            self._warm_up(entry, "warm_up", samples=small)
        bucketed = {
            entry.settings.engine: entry.rate
            for entry in self.entries
            if entry.settings.candidate == BUCKETED
        }
        for entry in [*self.entries]:
            samples = entry.rate * self._plan.turn_s
            if entry.is_sorted:  # both sorted candidates of an engine get the same sequences
                rate = bucketed.get(entry.settings.engine, entry.rate)
                samples = min(self._total, rate * self._plan.all_s)
            answer = self._ask(entry, {"do": "prepare", "samples": max(1, int(samples))})
            if answer is None:
                continue
            entry.prepared = Prepared(**answer)
            if entry.on_gpu:
                self._warm_up(entry, "settle")
            entry.repeats = max(1, int(entry.rate * self._plan.turn_s / entry.prepared.samples))

    def _warm_up(self, entry: Entry, order: str, **values: Any) -> None:
        limit = self._plan.warm_up_s
        answer = self._ask(entry, {"do": order, "limit_s": limit, **values}, LIMIT_S + limit)
        if answer is not None:
            entry.rate = answer["samples_per_s"]

    def run(self, title: str) -> None:
        """One round: a turn of each worker, in the opposite order of the last round.

        Raises:
            AttnExportError: if an engine fails.
        """
        self._is_forward = not self._is_forward
        for entry in [*self.entries] if self._is_forward else self.entries[::-1]:
            time.sleep(SETTLE_S)
            turn = self._ask(entry, {"do": "turn", "repeats": entry.repeats}, entry.limit_s)
            if turn is None:
                continue
            entry.rounds.append(entry.prepared.samples * entry.repeats / turn["seconds"])
            entry.batch_ms += turn["batch_ms"]
            self._say(f"{title}: {entry.settings.name} {entry.rounds[-1]:.1f} samples/s")

    def latencies(self) -> dict[str, list[Latency]]:
        """Of each engine on a GPU: one request of typical length, then a padded batch.

        Raises:
            AttnExportError: if an engine fails.
        """
        found = {}
        for entry in self.entries:
            settings = entry.settings
            if settings.candidate == PADDED and settings.engine and entry.on_gpu:
                self._say(f"latency of {settings.engine}")
                record = self._bundle.manifest.engines[settings.engine]
                profiles = [Profile.from_json(profile) for profile in record.profiles]
                padded = padded_size(profiles, settings.batch_size)
                shapes = ((1, self.typical), (padded, longest_of(self._bundle, record)))
                found[settings.engine] = [
                    Latency(**entry.worker.ask({"do": "latency", "batch": b, "length": n}))
                    for b, n in shapes
                ]
        return found

    def stop(self) -> dict[str, Answer]:
        """What each worker needed, by candidate: ``peak_mib`` and ``device_mib``."""
        return {entry.settings.name: entry.worker.ask({"do": "stop"}) for entry in self.entries}

    def _ask(self, entry: Entry, order: Answer, limit_s: float = LIMIT_S) -> Answer | None:
        """The worker's answer; None if it is eager and failed, which leaves it out from now on."""
        try:
            return entry.worker.ask(order, limit_s)
        except AttnExportError as error:
            if not entry.is_eager:
                raise
            self._say(f"left out: {error}")
            self.skipped[entry.settings.name] = str(error)
            self.entries.remove(entry)
            return None
