"""The workers of the matrix: warmed up from the smallest batch on, then asked in turn.

For each batch and mode every worker takes a short turn on the same groups of requests, one after
the other and in the opposite order of the last round; the others sleep in a read. What goes wrong
in a worker costs its own cells alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.errors import AttnExportError

from .devices import Device
from .matrix_cell import BUCKETED, PADDED, Cell, Place
from .matrix_lineup import Contestant
from .process import LIMIT_S, Worker
from .rounds import LEAST_LIMIT_S, SETTLE_S, TURNS_PER_LIMIT
from .stats import median_interval, percentiles

WORKER = "attn_export.benchmarks.matrix_worker"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MatrixPlan:
    """How long to measure.

    Args:
        samples: requests that every worker answers in a turn, or one group where that is more.
        turn_s: fast workers answer the same ones again until this time is over.
        warm_up_s: when the warm-up of a cell that is not steady ends.
    """

    rounds: int
    samples: int
    turn_s: float
    warm_up_s: float

    def groups(self, batch: int) -> int:
        """The groups of a turn."""
        return max(1, self.samples // batch)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all workers share.

    Args:
        data: a file of sequences; ``length`` is what padded batches are padded to.
    """

    bundles: Mapping[str, Bundle]
    data: Path
    length: int
    device: Device
    threads: int


@dataclass
class Progress:
    """What a cell has shown so far; ``note`` is why it is not run, ``remark`` how it is."""

    seconds: float = 0.0
    peak_mib: float | None = None
    rounds: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    failed: str | None = None
    note: str | None = None
    remark: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is still to be measured."""
        return self.failed is None and self.note is None

    def fail(self, reason: str) -> None:
        """Leave it out, unless it is already."""
        if self.is_open:
            self.failed = reason


class Entry:
    """A contestant, its worker, and its row of the matrix."""

    def __init__(self, contestant: Contestant, places: Sequence[Place]) -> None:
        self.contestant = contestant
        self.progress = {place: Progress(note=contestant.absent) for place in places}
        self.worker: Worker | None = None
        self.memory: str | None = None

    def open_places(self) -> list[Place]:
        """What is still to be measured, the smallest batch first."""
        return [place for place, progress in self.progress.items() if progress.is_open]

    def fail(self, places: Sequence[Place], reason: str) -> None:
        """Leave some cells out."""
        for place in places:
            self.progress[place].fail(reason)

    def cells(self) -> list[Cell]:
        """Its cells, measured or not."""
        return [self._cell(place, progress) for place, progress in self.progress.items()]

    def _cell(self, place: Place, progress: Progress) -> Cell:
        of = self.contestant
        cell = {"model": of.model, "variant": of.variant, "engine": of.engine, **place._asdict()}
        if not (progress.is_open and progress.rounds):
            return Cell(**cell, failed=progress.failed, note=progress.note)
        return Cell(
            **cell,
            samples_per_s=median_interval(progress.rounds),
            rounds=progress.rounds,
            latency_ms=percentiles(progress.ms),
            groups=len(progress.ms),
            peak_mib=progress.peak_mib,
            note=progress.remark,
        )


class MatrixRounds:
    """All workers of the matrix; they end when ``stack`` closes.

    Attributes:
        entries: a row for each contestant, also of those that do not run.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        batches: Sequence[int],
        setting: Setting,
        plan: MatrixPlan,
        *,
        say: Say,
        stack: ExitStack,
    ) -> None:
        # Bucketed needs less memory than padded: allocators keep what a larger cell needed.
        self._places = [Place(batch, mode) for batch in batches for mode in (BUCKETED, PADDED)]
        self._setting, self._plan, self._say, self._stack = setting, plan, say, stack
        self._number = 0
        self.entries = [Entry(contestant, self._places) for contestant in contestants]

    def prepare(self) -> None:
        """Start all workers and warm them up."""
        for entry in self.entries:
            if entry.contestant.absent is None:
                self._prepare(entry)

    def run(self, title: str) -> None:
        """One round."""
        for place in self._places:
            self._say(f"{title}: batch {place.batch}, {place.mode}")
            for entry in self.entries if self._number % 2 == 0 else self.entries[::-1]:
                if entry.progress[place].is_open:
                    time.sleep(SETTLE_S)
                    self._turn(entry, place)
        self._number += 1

    def _prepare(self, entry: Entry) -> None:
        """Start a worker and run each of its cells, the smallest first.

        Where the process dies, it is started again for the smaller cells, which it can do.
        """
        places = entry.open_places()
        if not self._start(entry, places):
            return
        for index, place in enumerate(places):
            answer = self._ask(entry, place, "prepare", LIMIT_S)
            if answer is not None:
                entry.progress[place].seconds = answer["seconds"]
                entry.progress[place].peak_mib = answer["peak_mib"]
                entry.progress[place].remark = answer["remark"]
            elif entry.worker is None:
                reason = f"not tried: its process died at batch {place.batch}, {place.mode}"
                entry.fail(places[index + 1 :], reason)
                if entry.open_places():
                    self._prepare(entry)
                return

    def _start(self, entry: Entry, places: Sequence[Place]) -> bool:
        of, setting = entry.contestant, self._setting
        self._say(f"loading and warming up {of.name}")
        worker = self._stack.enter_context(Worker(of.name, module=WORKER))
        content = {
            "bundle": str(setting.bundles[of.model].directory),
            "variant": of.variant,
            "engine": of.engine,
            "data": str(setting.data),
            "length": setting.length,
            "device": setting.device,
            "threads": setting.threads,
        }
        try:
            answer = worker.ask({"do": "start", **content})
        except AttnExportError as error:
            entry.fail(places, str(error))
            return False
        if "out_of_memory" in answer:
            entry.fail(places, f"out of memory while loading: {answer['out_of_memory']}")
            return False
        entry.worker, entry.memory = worker, answer["memory"]
        return True

    def _turn(self, entry: Entry, place: Place) -> None:
        progress = entry.progress[place]
        expected = progress.seconds + self._plan.turn_s
        limit = max(LEAST_LIMIT_S, TURNS_PER_LIMIT * expected)
        answer = self._ask(entry, place, "turn", limit)
        if answer is not None:
            progress.rounds.append(place.batch * len(answer["ms"]) / sum(answer["ms"]) * 1e3)
            progress.ms += answer["ms"]
        elif entry.worker is None:
            reason = f"its process died at batch {place.batch}, {place.mode}: {progress.failed}"
            entry.fail(self._places[self._places.index(place) + 1 :], reason)
            if entry.open_places():
                self._prepare(entry)

    def _ask(self, entry: Entry, place: Place, do: str, limit_s: float) -> dict[str, Any] | None:
        """The worker's answer; None if it has none, which marks the cell.

        A worker that died is taken out of its entry.
        """
        plan, progress = self._plan, entry.progress[place]
        groups = plan.groups(place.batch)
        order = {
            "do": do,
            **place._asdict(),
            "groups": groups,
            "first": self._number * groups * place.batch,
            "seconds": plan.turn_s if do == "turn" else plan.warm_up_s,
        }
        assert entry.worker is not None
        try:
            answer = entry.worker.ask(order, limit_s)
        except AttnExportError as error:
            progress.fail(str(error))
            self._say(f"left out: {error}")
            if entry.worker.died:
                entry.worker = None
            return None
        if "out_of_memory" in answer:
            progress.note = f"out of memory: {answer['out_of_memory']}"
            self._say(
                f"{entry.contestant.name}, batch {place.batch}, {place.mode}: {progress.note}"
            )
            return None
        return answer
