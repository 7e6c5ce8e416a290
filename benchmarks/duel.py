"""Two contestants in turn, in processes of their own, until a question is answered.

A round is nine short turns each, A B B A A B and so on, and in the next round B A A B B A: what
slows the machine for a while slows both, and no one always goes first. A contestant's speed in a
round is the median of its turns, so that disturbed turns do not count; the round's ratio is that of
the two medians. On a machine with three times more work than CPUs the median of nine turns of 0.1 s
varied half as much as that of three turns of 0.4 s. A contestant that needs longer for a batch has
three turns a round.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attn_export.bundle import Bundle

from .candidates import BUCKETED, Settings
from .check_decision import LOOKS
from .devices import GPU, device_of
from .process import LIMIT_S, Worker
from .rounds import LEAST_LIMIT_S, TURNS_PER_LIMIT, Say
from .workload import Ids, save_sequences

TURN_S, WARM_UP_S = 0.1, 5.0
SHORT_TURNS, LONG_TURNS = 9, 3
LONG_S = 0.3  # a turn that takes longer is a long one
# Shorter than in a bench: each turn's untimed waking follows, and lets spinning threads stop too.
SETTLE_S = 0.02
# No further look is waited for when it would come later than this.
LONGEST_S = 300.0
Settled = Callable[[Sequence[float]], bool]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One side of a duel.

    Args:
        name: what messages call it.
        samples: the requests of a turn, as a recorded measurement had them; None for as many as
            a short turn takes.
    """

    name: str
    bundle: Bundle
    settings: Settings
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class DuelResult:
    """What a duel measured.

    Args:
        rates: real samples a second in each round, of the first and of the second contestant.
        seconds: from the start of the processes.
    """

    rates: tuple[list[float], list[float]]
    seconds: float

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the second the first was in each round."""
        return [a / b for a, b in zip(*self.rates, strict=True)]


def run_duel(
    pair: tuple[Contestant, Contestant], sequences: Sequence[Ids], *, settled: Settled, say: Say
) -> DuelResult:
    """Run rounds until ``settled`` says so at one of the planned looks, or there is no time left.

    Two engines run the same requests in each turn; eager PyTorch runs as many of its batches as
    fit.

    Args:
        settled: asked with the ratios so far, after the rounds of ``check_decision.LOOKS``.

    Raises:
        AttnExportError: what a worker raised; HostError if it was killed or gave no answer.
    """
    start = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_sequences(folder / "sequences.npz", sequences)
        first, second = (_Corner(side, folder / "sequences.npz", stack) for side in pair)
        typical = int(np.median([len(ids) for ids in sequences]))
        for corner in (first, second):
            say(f"loading {corner.name}")
            corner.start(typical)
        _share_work(first, second, len(sequences))
        is_long = max(first.turn_s, second.turn_s) > LONG_S
        turns = LONG_TURNS if is_long else SHORT_TURNS
        rates: tuple[list[float], list[float]] = ([], [])
        loaded = time.monotonic() - start
        while True:
            number = len(rates[0])
            for corner, rate, found in zip(
                (first, second), _round((first, second), order(turns, number)), rates, strict=True
            ):
                found.append(rate)
                say(f"round {number + 1}: {corner.name} {rate:.1f} samples/s")
            result = DuelResult(rates=rates, seconds=time.monotonic() - start)
            if _is_over(result, settled, loaded):
                return result


def order(turns: int, number: int) -> list[int]:
    """Whose turn it is in a round, as 0 and 1: the pairs alternate, and so do the rounds."""
    pairs = [(0, 1) if (pair + number) % 2 == 0 else (1, 0) for pair in range(turns)]
    return [index for pair in pairs for index in pair]


def _is_over(result: DuelResult, settled: Settled, loaded: float) -> bool:
    """Only looks may end a duel, and the clock, which knows nothing of the ratios.

    Args:
        loaded: seconds until the first round.
    """
    rounds = len(result.ratios)
    if rounds not in LOOKS:
        return False
    if rounds == LOOKS[-1] or settled(result.ratios):
        return True
    following = LOOKS[LOOKS.index(rounds) + 1]
    a_round = (result.seconds - loaded) / rounds
    return loaded + a_round * following > LONGEST_S


def _round(corners: Sequence[_Corner], indices: Sequence[int]) -> list[float]:
    turns: tuple[list[float], list[float]] = ([], [])
    for index in indices:
        turns[index].append(corners[index].turn())
    return [statistics.median(rates) for rates in turns]


def _share_work(first: _Corner, second: _Corner, total: int) -> None:
    """Give both their requests: the same ones where both schedule for themselves."""
    slower = min(first.rate, second.rate)
    alike = first.is_engine and second.is_engine
    for corner in (first, second):
        rate = slower if alike else corner.rate
        corner.prepare(min(total, max(1, int(rate * TURN_S))))


class _Corner:
    """A contestant's process.

    Attributes:
        rate: real samples a second in the warm-up.
    """

    def __init__(self, side: Contestant, data: Path, stack: ExitStack) -> None:
        self.name, self._side, self._data = side.name, side, data
        self._worker = stack.enter_context(Worker(side.name))
        self.is_engine = side.settings.candidate == BUCKETED
        self.rate = 0.0
        self._samples, self._repeats = 0, 1

    @property
    def turn_s(self) -> float:
        """How long a turn takes, as the warm-up has it."""
        return self._samples * self._repeats / self.rate

    def start(self, first_length: int) -> None:
        """Load it and warm it up."""
        settings = self._side.settings
        content: dict[str, Any] = {
            "settings": asdict(settings),
            "bundle": str(self._side.bundle.directory),
            "data": str(self._data),
            "first_length": first_length,
        }
        self._worker.start(content)
        self._warm_up("warm_up", samples=settings.batch_size * (4 if self.is_engine else 1))

    def prepare(self, samples: int) -> None:
        """Choose the requests of its turns, and how often a turn runs them."""
        wanted = self._side.samples or samples
        answer = self._worker.ask({"do": "prepare", "samples": wanted})
        self._samples, self._repeats = answer["samples"], 1
        if self._on_gpu():
            self._warm_up("settle")
        else:
            self.rate = self.turn()  # its shapes have not been met before
        self._repeats = max(1, int(self.rate * TURN_S / self._samples))

    def turn(self) -> float:
        """One turn; real samples a second."""
        time.sleep(SETTLE_S)
        limit = max(LEAST_LIMIT_S, TURNS_PER_LIMIT * self.turn_s)
        answer = self._worker.ask({"do": "turn", "repeats": self._repeats}, limit)
        return float(self._samples * self._repeats / answer["seconds"])

    def _warm_up(self, order: str, **values: Any) -> None:
        asked = {"do": order, "limit_s": WARM_UP_S, **values}
        self.rate = float(self._worker.ask(asked, LIMIT_S + WARM_UP_S)["samples_per_s"])

    def _on_gpu(self) -> bool:
        settings = self._side.settings
        if settings.engine is None:
            return settings.eager_device == GPU
        return device_of(self._side.bundle.manifest.engines[settings.engine]) == GPU
