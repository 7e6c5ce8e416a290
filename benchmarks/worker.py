"""One candidate in a process of its own: ``python -m attn_export.benchmarks.worker``.

It reads JSON lines from stdin and answers each with one line on stdout. Between them it waits in
a read, asleep. The first line holds the settings; then come ``warm_up``, ``prepare``, ``turn``
and ``stop``. An error of ours is an answer with its class and text; any other ends the process
with a traceback on stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from attn_export.bundle import Bundle
from attn_export.errors import AttnExportError

STABLE = 0.05  # a warm-up ends when two turns in a row differ by less


def main() -> None:
    """Serve one candidate until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C stops
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a user's model may print
    with ExitStack() as stack:
        try:
            _serve(sys.stdin, answers, stack)
        except AttnExportError as error:
            _answer(answers, {"error": type(error).__name__, "text": str(error)})


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _serve(orders: TextIO, answers: TextIO, stack: ExitStack) -> None:
    given = json.loads(orders.readline())
    # These import NumPy, which belongs to the measured start.
    from attn_export.calibration.data import read_sequences
    from attn_export.engines.feeds import seeded_feeds

    from .candidates import Settings, import_packages, make
    from .workload import Workload

    settings = Settings(**given["settings"])
    bundle = Bundle.open(given["bundle"])
    import_packages(bundle, settings)
    imported = time.monotonic()
    candidate = make(bundle, settings, stack)
    candidate.first(seeded_feeds(bundle.manifest.inputs, 1, given["first_length"]))
    answered = time.monotonic()
    workload = Workload(bundle.manifest.inputs, read_sequences(Path(given["data"])))
    _answer(
        answers,
        {
            "cold_start_s": answered - imported,
            "cold_start_with_imports_s": answered - given["spawned"],
        },
    )
    for line in orders:
        order = json.loads(line)
        match order["do"]:
            case "warm_up":
                prepared = candidate.prepare(workload, order["samples"])
                seconds = _warm_up(candidate.turn, order["limit_s"])
                _answer(answers, {"samples_per_s": prepared.samples / seconds})
            case "prepare":
                _answer(answers, asdict(candidate.prepare(workload, order["samples"])))
            case "turn":
                candidate.wake()
                seconds, batch_ms = _timed(candidate.turn)
                _answer(answers, {"seconds": seconds, "batch_ms": batch_ms})
            case "stop":
                _answer(answers, {"peak_mib": _peak_mib()})
                return


def _warm_up(turn: Callable[[], list[float]], limit_s: float) -> float:
    """Repeat a turn until two in a row agree, or for ``limit_s``; return the last one's seconds."""
    end = time.monotonic() + limit_s
    before, _ = _timed(turn)
    while True:
        seconds, _ = _timed(turn)
        if abs(seconds - before) <= STABLE * before or time.monotonic() > end:
            return seconds
        before = seconds


def _timed(turn: Callable[[], list[float]]) -> tuple[float, list[float]]:
    start = time.perf_counter()
    batch_ms = turn()
    return time.perf_counter() - start, batch_ms


def _peak_mib() -> float:
    """The largest resident size of this program; getrusage's counts the parent's before exec."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
