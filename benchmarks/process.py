"""The parent's side of a worker: start it, ask it, stop it, and say why it died."""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import subprocess
import tempfile
import time
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

from .interpreter import Interpreter, this_interpreter

_ERRORS: dict[str, type[AttnExportError]] = {
    "UsageError": UsageError,
    "InputError": InputError,
    "HostError": HostError,
    "MissingPackage": HostError,
    "BuildFailed": BuildFailed,
    "BundleError": BundleError,
}
CANDIDATE = "attn_export.benchmarks.worker"
TAIL_LINES = 15
PATIENCE_S = 5.0
# To load, to compile, to warm up: far longer than any of them should take.
LIMIT_S = 600.0


class Worker:
    """A process that runs one candidate; use it in ``with``.

    Args:
        module: of this package, what the process runs.

    Attributes:
        died: it ended, or was ended, without an answer.
    """

    def __init__(
        self, name: str, interpreter: Interpreter | None = None, *, module: str = CANDIDATE
    ) -> None:
        self.name = name
        self.died = False
        # A file and not a pipe: a worker that prints much would block on a full pipe.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        interpreter = interpreter or this_interpreter()
        self._spawned = time.monotonic()
        self._process = subprocess.Popen(
            interpreter.command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=interpreter.environment(),
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
        return self.ask({"do": "start", **content, "spawned": self._spawned})

    def ask(self, order: dict[str, Any], limit_s: float | None = None) -> dict[str, Any]:
        """Send one order and wait for its answer.

        Args:
            limit_s: how long to wait, or None for 10 minutes; then the worker is killed.

        Raises:
            AttnExportError: what the worker raised, of the same class.
            HostError: if it was killed, or gave no answer in time.
            BuildFailed: if it ended with a traceback.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()
            self._wait(order["do"], LIMIT_S if limit_s is None else limit_s)
            line = self._answers.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _ERRORS.get(answer["error"], BuildFailed)(f"{self.name}: {answer['text']}")
        return answer

    def _wait(self, what: str, limit_s: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            if selector.select(limit_s):
                return
        self.died = True
        self._process.kill()
        self._process.wait()
        raise HostError(
            f"{self.name}: no answer to {what!r} within {limit_s:.0f} s, so its process was "
            f"ended{self._tail()}"
        )

    def _death(self) -> AttnExportError:
        self.died = True
        code = self._process.wait()
        if code < 0:
            reason = signal.Signals(-code).name
            hint = " (is there enough memory?)" if -code == signal.SIGKILL else ""
            return HostError(f"{self.name}: its process was ended by {reason}{hint}{self._tail()}")
        return BuildFailed(f"{self.name}: its process ended with exit code {code}{self._tail()}")

    def _tail(self) -> str:
        """The end of what it printed."""
        self._errors.seek(0)
        lines = self._errors.read().splitlines()[-TAIL_LINES:]
        return "".join(f"\n{line}" for line in lines)
