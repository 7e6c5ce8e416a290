"""One model in one variant, in a process: ``python -m attn_export.benchmarks.matrix_worker``.

It reads JSON lines from stdin and answers each with one line on stdout; between them it sleeps in
a read. The first order is ``start``; then come ``prepare`` and ``turn``, each for a batch size and
a mode. An error of ours is an answer, and so is a lack of memory: smaller batches may still do.
Any other error ends the process with a traceback on stderr.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from attn_export.bundle import Bundle
from attn_export.errors import AttnExportError

from .answers import Answer, Answers, failure

if TYPE_CHECKING:
    from .matrix_runners import Call, Runner

# A heap's size differs by a tenth from one call to the next: the median of a few is taken.
PEAKS = 3
NO_MEMORY = ("can't allocate memory", "CUDA out of memory", "std::bad_alloc", "Failed to allocate")


def main() -> None:
    """Serve until stdin ends."""
    answers = Answers()
    service: _Service | None = None
    with ExitStack() as stack:
        for line in sys.stdin:
            order = json.loads(line)
            do = order.pop("do")
            try:
                if service is None:
                    service, answer = _start(order, stack)
                else:
                    answer = getattr(service, do)(**order)
            except AttnExportError as error:
                answer = _no_memory(error) or failure(error)
            except (MemoryError, RuntimeError) as error:
                lacking = _no_memory(error)
                if lacking is None:
                    raise
                answer = lacking
            answers.send(answer)


def _no_memory(error: Exception) -> Answer | None:
    """The answer to a lack of memory; None if the error is another one."""
    text = str(error) or type(error).__name__
    if not isinstance(error, MemoryError) and not any(words in text for words in NO_MEMORY):
        return None
    return {"out_of_memory": text.splitlines()[0]}


def _start(given: Answer, stack: ExitStack) -> tuple[_Service, Answer]:
    from .matrix_runners import eager_runner, engine_runner

    bundle, data, threads = Bundle.open(given["bundle"]), Path(given["data"]), given["threads"]
    runner: Runner
    if given["engine"] is None:
        runner = eager_runner(bundle, given["variant"], data, given["device"], threads)
    else:
        runner = engine_runner(bundle, given["engine"], data, threads, stack)
    service = _Service(runner, given["length"])
    return service, {"memory": runner.memory.what}


class _Service:
    """The orders after the first one, each a method."""

    def __init__(self, runner: Runner, length: int) -> None:
        self._runner, self._length = runner, length

    def prepare(self, batch: int, mode: str, first: int, groups: int, seconds: float) -> Answer:
        """Measure the memory of one group, and warm up until steady or the time is over."""
        from .steadiness import run_until_steady

        calls = self._calls(batch, mode, first, groups)
        peaks = [self._peak_mib(calls[0]) for _ in range(PEAKS)]
        steady = run_until_steady(lambda: _answer_all(calls), seconds, least=1)
        self._runner.memory.release()
        return {
            "seconds": steady.seconds,
            "peak_mib": statistics.median(peaks),
            "remark": self._runner.remark(batch) if mode == "padded" else None,
        }

    def _peak_mib(self, call: Call) -> float:
        self._runner.memory.reset()
        call()
        return self._runner.memory.peak_mib()

    def turn(self, batch: int, mode: str, first: int, groups: int, seconds: float) -> Answer:
        """Answer the groups once, and again until the time is over; the ms of each answer.

        The first group is answered once more before, untimed.
        """
        calls = self._calls(batch, mode, first, groups)
        calls[0]()  # the first one after a wait is slower
        end = time.perf_counter() + seconds
        ms = _answer_all(calls)
        while time.perf_counter() < end:
            ms += _answer_all(calls)
        self._runner.memory.release()
        return {"ms": ms}

    def _calls(self, batch: int, mode: str, first: int, groups: int) -> list[Call]:
        return [self._call(mode, first + batch * index, batch) for index in range(groups)]

    def _call(self, mode: str, first: int, count: int) -> Call:
        """The requests from ``first`` on; after the last one comes the first."""
        import numpy as np

        group = (first + np.arange(count)) % len(self._runner.workload.lengths)
        if mode == "padded":
            return self._runner.padded(group, self._length)
        return self._runner.bucketed(group)


def _answer_all(calls: Sequence[Call]) -> list[float]:
    """Make all calls, one after the other; the ms of each."""
    found = []
    for call in calls:
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return found


if __name__ == "__main__":
    main()
