"""What a person sees while a long step runs: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

HEARTBEAT_S = 30.0


class Steps:
    """Says each step on stderr with the seconds since the start, and that it still runs.

    Use it as ``with Steps() as say: say("exporting")``.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._step = ""
        self._ended = threading.Event()
        self._status: Status | None = None
        self._beat = threading.Thread(target=self._heartbeat, daemon=True)

    def __enter__(self) -> Steps:
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("starting")
            self._status.start()
        else:
            self._beat.start()
        return self

    def __call__(self, step: str) -> None:
        """Begin a step."""
        self._step = step
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(step))
            said = Text.assemble((self._elapsed(), "dim"), f" {step}")
            self._status.console.print(said)
        else:
            print(f"{self._elapsed()} {step}", file=sys.stderr, flush=True)  # noqa: T201

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._status is not None:
            self._status.stop()

    def _elapsed(self) -> str:
        return f"[{time.monotonic() - self._start:5.1f} s]"

    def _heartbeat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            print(f"{self._elapsed()} still {self._step}", file=sys.stderr, flush=True)  # noqa: T201
