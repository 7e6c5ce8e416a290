"""The workers of one measurement: started, warmed up, and asked in turn A B C, C B A, A B C.

Only one works at a time; the others are blocked in a read. What slows the machine for a while so
slows them all, and none always runs after the same other one. Each turn begins with a little work
that is not timed: the first batch after a wait is slower, and a short turn has hardly another.
A worker that crashes or hangs is out of the measurement; the others go on.
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

from .candidates import (
    BUCKETED,
    EAGER_DYNAMIC,
    Settings,
    longest_of,
    padded_size,
)
from .devices import GPU, device_of
from .interpreter import Interpreter
from .latency import Histogram, Latency
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
        rounds: 6 are the least that give 95 % intervals; 9 still do with one outlier on each side.
        turn_s: wanted length of a turn in seconds; fast candidates repeat their requests.
        all_s: sorted candidates run every sequence where that takes no longer than this.
        warm_up_s: when a warm-up that is not stable ends.
        latency_s: how long to time single batches of one shape.
    """

    rounds: int
    turn_s: float
    all_s: float
    warm_up_s: float
    latency_s: float


FULL = Plan(rounds=9, turn_s=1.5, all_s=6.0, warm_up_s=15.0, latency_s=5.0)
QUICK = Plan(rounds=6, turn_s=0.3, all_s=0.5, warm_up_s=3.0, latency_s=1.0)


class Entry:
    """A running candidate and what it has shown so far.

    Attributes:
        started: the worker's cold start times in seconds, and its versions.
        on_gpu: whether it runs there.
        prepared: what each of its turns runs, ``repeats`` times.
        rate: real samples a second in the warm-up.
        stable: whether the warm-up ended because its times no longer changed; ``warm_up_cv`` is
            the coefficient of variation of its last ones.
        rounds: real samples a second in each round.
        batch_ms: the time of each batch of all rounds.
    """

    def __init__(
        self, settings: Settings, worker: Worker, started: dict[str, Any], *, on_gpu: bool
    ) -> None:
        self.settings, self.worker, self.started = settings, worker, started
        self.on_gpu = on_gpu
        self.rate, self.stable, self.warm_up_cv = 0.0, False, 0.0
        self.prepared = Prepared(samples=0, tokens=0, computed_tokens=0, batches=0)
        self.repeats = 1
        self.rounds: list[float] = []
        self.batch_ms: list[float] = []

    @property
    def is_eager(self) -> bool:
        """Whether PyTorch runs it, and no engine."""
        return self.settings.engine is None

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
        data: the file of the sequences.
        entries: the candidates that run.
        skipped: eager candidates that cannot run here, and why.
        failed: candidates that failed where they should have run, in the order of their failures.
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
        self.data = folder / "sequences.npz"
        save_sequences(self.data, sequences)
        self._bundle, self._plan, self._say, self._stack = bundle, plan, say, stack
        self.eager, self._engine = eager, engine
        self._total = len(sequences)
        lengths = [len(ids) for ids in sequences]
        self.typical = int(np.median(lengths))
        self._long = int(np.percentile(lengths, 99, method="inverted_cdf"))
        self._is_forward = False
        self.entries: list[Entry] = []
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, AttnExportError] = {}

    def start(self, settings: Settings, *, optional: bool = False) -> str | None:
        """Start one worker; the reason, if it is left out.

        An eager candidate that says why it cannot run is skipped. So is an ``optional`` engine that
        says that this host cannot run it. Any other failure is noted as one.

        Raises:
            HostError: if this host cannot run an engine that is not ``optional``.
        """
        self._say(f"loading {settings.name}")
        is_eager = settings.engine is None
        interpreter = self.eager if is_eager else self._engine
        worker = self._stack.enter_context(Worker(settings.name, interpreter))
        content: dict[str, Any] = {
            "settings": asdict(settings),
            "bundle": str(self._bundle.directory),
            "data": str(self.data),
            "first_length": self.typical,
        }
        try:
            started = worker.start(content)
        except AttnExportError as error:
            unsuited = isinstance(error, HostError) and not worker.died
            if is_eager and not worker.died:
                self.skipped[settings.name] = str(error)
            elif is_eager or not unsuited:
                self.failed[settings.name] = error
            elif not optional:
                raise
            return str(error)
        device = settings.eager_device
        if settings.engine is not None:
            device = device_of(self._bundle.manifest.engines[settings.engine])
        self.entries.append(Entry(settings, worker, started, on_gpu=device == GPU))
        return None

    def prepare(self) -> None:
        """Warm every worker up, give it the work of a turn, and let it run that once untimed."""
        for entry in [*self.entries]:
            self._say(f"warming up {entry.settings.name}")
            self._warm_up(entry)
        bucketed = {
            entry.settings.engine: entry.rate
            for entry in self.entries
            if entry.settings.candidate == BUCKETED
        }
        for entry in [*self.entries]:
            samples = entry.rate * self._plan.turn_s
            if (
                entry.settings.is_sorted
            ):  # both sorted candidates of an engine get the same sequences
                rate = bucketed.get(entry.settings.engine, entry.rate)
                samples = min(self._total, rate * self._plan.all_s)
            answer = self._ask(entry, {"do": "prepare", "samples": max(1, int(samples))})
            if answer is None:
                continue
            entry.prepared = Prepared(**answer)
            if not self._settle(entry):
                continue
            entry.repeats = max(1, int(entry.rate * self._plan.turn_s / entry.prepared.samples))

    def _warm_up(self, entry: Entry) -> None:
        samples = entry.settings.batch_size * (4 if entry.settings.is_sorted else 1)
        self._until_stable(entry, {"do": "warm_up", "samples": samples})

    def _settle(self, entry: Entry) -> bool:
        """Let it run a turn's work untimed, on a GPU until that is stable; whether it could."""
        if entry.on_gpu:
            return self._until_stable(entry, {"do": "settle"})
        turn = self._ask(entry, {"do": "turn", "repeats": 1}, entry.limit_s)
        if turn is not None:
            entry.rate = entry.prepared.samples / turn["seconds"]
        return turn is not None

    def _until_stable(self, entry: Entry, order: Answer) -> bool:
        limit_s = self._plan.warm_up_s
        answer = self._ask(entry, {**order, "limit_s": limit_s}, LIMIT_S + limit_s)
        if answer is not None:
            entry.rate = answer["samples_per_s"]
            entry.stable, entry.warm_up_cv = answer["stable"], answer["cv"]
        return answer is not None

    def run(self, title: str) -> None:
        """One round: a turn of each worker, in the opposite order of the last round."""
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
        """One request of typical length, a long one, then a padded batch: of each engine.

        Of eager PyTorch the requests alone, under the name of the candidate that pads least.
        """
        found: dict[str, list[Latency]] = {}
        for entry in [*self.entries]:
            settings = entry.settings
            name = settings.engine or settings.name
            if name in found or not (settings.engine or settings.candidate == EAGER_DYNAMIC):
                continue
            self._say(f"latency of {name}")
            measured = self._latencies(entry)
            if measured:
                found[name] = measured
        return found

    def _latencies(self, entry: Entry) -> list[Latency]:
        """None at all, if the worker fails."""
        shapes, found = [(1, self.typical), (1, self._long)], []
        if entry.settings.engine is not None:
            record = self._bundle.manifest.engines[entry.settings.engine]
            profiles = [Profile.from_json(profile) for profile in record.profiles]
            size = padded_size(profiles, entry.settings.batch_size)
            shapes.append((size, longest_of(self._bundle, record)))
        for batch, length in shapes:
            order = {"do": "latency", "batch": batch, "length": length}
            answer = self._ask(entry, {**order, "limit_s": self._plan.latency_s})
            if answer is None:
                return []
            counts = Histogram(**answer.pop("histogram"))
            found.append(Latency(**answer, histogram=counts))
        return found

    def stop(self) -> dict[str, Answer]:
        """What each worker needed, by candidate: ``peak_mib`` and ``device_mib``."""
        answers = {entry: self._ask(entry, {"do": "stop"}) for entry in [*self.entries]}
        return {entry.settings.name: found for entry, found in answers.items() if found}

    def _ask(self, entry: Entry, order: Answer, limit_s: float = LIMIT_S) -> Answer | None:
        """The worker's answer; None if it failed, which leaves it out from now on."""
        try:
            return entry.worker.ask(order, limit_s)
        except AttnExportError as error:
            self._say(f"failed: {error}")
            self.failed[entry.settings.name] = error
            self.entries.remove(entry)
            return None
