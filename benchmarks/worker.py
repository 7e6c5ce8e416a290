"""One candidate in a process of its own: ``python -m attn_export.benchmarks.worker``.

It reads JSON lines from stdin and answers each with one line on stdout. Between them it waits in
a read, asleep. The first order is ``start``; then come ``warm_up``, ``prepare``, ``settle``,
``turn``, ``latency`` and ``stop``. An error of ours is an answer with its class and text; any other
ends the process with a traceback on stderr.

Its interpreter may be another one than the parent's, with no more than what the candidate needs.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from attn_export.bundle import Bundle
from attn_export.errors import AttnExportError

from .answers import Answer, Answers, failure

if TYPE_CHECKING:
    from .candidates import Made
    from .steadiness import Steadiness
    from .workload import Workload

# On a GPU a shape is fast from its third run on, when its CUDA graph is there.
SETTLING_TURNS = 4
VERSIONED = ("numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt_lean", "torch")


def main() -> None:
    """Serve one candidate until stdin ends."""
    answers = Answers()
    with ExitStack() as stack:
        try:
            _serve(sys.stdin, answers, stack)
        except AttnExportError as error:
            answers.send(failure(error))


def _serve(orders: TextIO, answers: Answers, stack: ExitStack) -> None:
    made, workload, started = _start(json.loads(orders.readline()), stack)
    answers.send(started)
    service = _Service(made, workload)
    for line in orders:
        order = json.loads(line)
        answers.send(getattr(service, order.pop("do"))(**order))


def _start(given: dict[str, Any], stack: ExitStack) -> tuple[Made, Workload, Answer]:
    """Load the candidate and let it answer one request."""
    # These import NumPy, which belongs to the measured start.
    from attn_export.calibration.data import read_sequences
    from attn_export.engines.feeds import seeded_feeds

    from .candidates import Settings, import_packages, make
    from .workload import Workload

    settings = Settings(**given["settings"])
    bundle = Bundle.open(given["bundle"])
    import_packages(bundle, settings)
    imported = time.monotonic()
    made = make(bundle, settings, stack)
    made.candidate.first(seeded_feeds(made.inputs, 1, given["first_length"]))
    answered = time.monotonic()
    answer = {
        "cold_start_s": answered - imported,
        "cold_start_with_imports_s": answered - given["spawned"],
        "versions": _versions(),
        "facts": made.facts,
    }
    return made, Workload(made.inputs, read_sequences(Path(given["data"]))), answer


class _Service:
    """The orders after the first one, each a method."""

    def __init__(self, made: Made, workload: Workload) -> None:
        self._made, self._workload = made, workload
        self._candidate = made.candidate
        self._samples = 0

    def warm_up(self, samples: int, limit_s: float) -> Answer:
        """Find out how fast it is, on few requests."""
        from .steadiness import run_until_steady

        self.prepare(samples)
        return self._rate(run_until_steady(self._candidate.turn, limit_s))

    def prepare(self, samples: int) -> Answer:
        """Choose the requests of the turns."""
        prepared = self._candidate.prepare(self._workload, samples)
        self._samples = prepared.samples
        return asdict(prepared)

    def settle(self, limit_s: float) -> Answer:
        """Run the chosen requests until each shape has been met often enough."""
        from .steadiness import run_until_steady

        return self._rate(run_until_steady(self._candidate.turn, limit_s, least=SETTLING_TURNS))

    def turn(self, repeats: int) -> Answer:
        """Run them, timed, once or more."""
        self._candidate.wake()
        batch_ms: list[float] = []
        start = time.perf_counter()
        for _ in range(repeats):
            batch_ms += self._candidate.turn()
        seconds = time.perf_counter() - start
        self._made.rest()
        return {"seconds": seconds, "batch_ms": batch_ms}

    def latency(self, batch: int, length: int, limit_s: float) -> Answer:
        """Time single batches, of an engine or of eager PyTorch."""
        from .latency import measure_call_latency, measure_latency

        session, inputs = self._made.session, self._made.inputs
        if session is not None:
            return asdict(measure_latency(session, batch, length, limit_s=limit_s))
        call = self._candidate.first
        return asdict(measure_call_latency(call, inputs, batch, length, limit_s=limit_s))

    def stop(self) -> Answer:
        """What it needed; the end comes with the end of stdin."""
        return {"peak_mib": _peak_mib(), "device_mib": self._made.device_mib()}

    def _rate(self, found: Steadiness) -> Answer:
        self._made.rest()
        rate = self._samples / found.seconds
        return {"samples_per_s": rate, "cv": found.cv, "stable": found.stable}


def _versions() -> dict[str, str]:
    """The versions of what this process has imported."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    if "torch" in sys.modules and sys.modules["torch"].version.cuda:
        found["torch_cuda"] = str(sys.modules["torch"].version.cuda)
    return found


def _peak_mib() -> float:
    """The largest resident size of this program; getrusage's counts the parent's before exec."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
