"""The worker's side of a pipe: JSON lines come on stdin, answers go where stdout was."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from attn_export.errors import AttnExportError

Answer = dict[str, Any]


class Answers:
    """Takes stdout for itself: what a library or a user's model prints goes to stderr."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C stops
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, content: Answer) -> None:
        """Answer one order."""
        self._stream.write(json.dumps(content) + "\n")
        self._stream.flush()


def failure(error: AttnExportError) -> Answer:
    """The answer that makes the parent raise an error of the same class."""
    return {"error": type(error).__name__, "text": str(error)}
