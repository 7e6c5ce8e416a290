"""The parent's side of a worker: start it, ask it, stop it, and say why it died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from attn_export.errors import (
    AttnExportError,
    BuildFailed,
    BundleError,
    HostError,
    InputError,
    UsageError,
)

_ERRORS: dict[str, type[AttnExportError]] = {
    "UsageError": UsageError,
    "InputError": InputError,
    "HostError": HostError,
    "MissingPackage": HostError,
    "BuildFailed": BuildFailed,
    "BundleError": BundleError,
}
TAIL_LINES = 15
PATIENCE_S = 5.0


class Worker:
    """A process that runs one candidate; use it in ``with``."""

    def __init__(self, name: str) -> None:
        self.name = name
        # A file and not a pipe: a worker that prints much would block on a full pipe.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # It must find what this process finds, a user's own modules included.
        path = os.pathsep.join([str(Path(entry or ".").absolute()) for entry in sys.path])
        self._spawned = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attn_export.benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdin
        assert self._process.stdout
        self._orders, self._answers = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let it end by itself when all is well; otherwise end it."""
        process = self._process
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()
        if error is not None:
            process.kill()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._answers.close()
        self._errors.close()

    def start(self, content: dict[str, Any]) -> dict[str, Any]:
        """Send the settings; the answer comes when the first request has been served."""
        return self.ask({**content, "spawned": self._spawned})

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send one order and wait for its answer.

        Raises:
            AttnExportError: what the worker raised, of the same class.
            HostError: if it was killed.
            BuildFailed: if it ended with a traceback.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()
            line = self._answers.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _ERRORS.get(answer["error"], BuildFailed)(f"{self.name}: {answer['text']}")
        return answer

    def _death(self) -> AttnExportError:
        code = self._process.wait()
        self._errors.seek(0)
        tail = "\n".join(self._errors.read().splitlines()[-TAIL_LINES:])
        if code < 0:
            reason = signal.Signals(-code).name
            hint = " (is there enough memory?)" if -code == signal.SIGKILL else ""
            return HostError(f"{self.name}: its process was ended by {reason}{hint}\n{tail}")
        return BuildFailed(f"{self.name}: its process ended with exit code {code}\n{tail}")
