"""A build in a thread of its own, so that Ctrl-C and a time limit reach it.

Ctrl-C is raised in the main thread alone. There TensorRT's callbacks would meet it in the middle of
C++ code; here the main thread only waits.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

from attn_export.errors import BuildFailed

Result = TypeVar("Result")
NAME = "attn-export build"


class Stopped(Exception):
    """The work ended early because it was asked to."""


class _Work(Generic[Result]):
    def __init__(self, work: Callable[[], Result]) -> None:
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.result: Result
        self._work = work
        # A daemon, because a build that cannot be stopped must not keep the process alive.
        self.thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            # The frames hold what was built with; it would hold the GPU as long as the error lives.
            traceback.clear_frames(error.__traceback__)
            self.error = error
        finally:
            self.ended.set()


def run_stoppable(
    work: Callable[[], Result],
    *,
    what: str,
    stop: Callable[[], None] | None,
    timeout_s: float | None,
    say: Callable[[str], None],
) -> Result:
    """Run ``work`` in a thread and wait; its own errors are raised here.

    Args:
        what: begins messages, ``"building fp16 with TensorRT 10.16.1"``.
        stop: makes the work raise :class:`Stopped` soon; None where it cannot be stopped.
        timeout_s: the longest wait, in seconds.

    Raises:
        BuildFailed: if it took longer. Work that cannot be stopped then goes on until the process
            ends.
        KeyboardInterrupt: after the work has ended; at once on a second Ctrl-C.
    """
    running = _Work(work)
    try:
        running.thread.start()
        if not running.ended.wait(timeout_s):
            if stop is None:
                raise BuildFailed(
                    f"{what} took longer than {timeout_s:g} s; it cannot be stopped and goes on in "
                    "the background until this process ends: allow more time"
                )
            stop()
            running.ended.wait()
    except KeyboardInterrupt:
        if stop is None:
            say(
                f"{what} cannot be stopped: waiting for its end to keep its timing cache; press "
                "Ctrl-C again to give up at once"
            )
        else:
            say("stopping the build; press Ctrl-C again to give up at once")
            stop()
        running.ended.wait()
        raise
    if isinstance(running.error, Stopped):
        raise BuildFailed(
            f"{what} took longer than {timeout_s:g} s and was stopped: allow more time, or lower "
            "the optimization level; a timing cache keeps what was measured so far"
        )
    if running.error is not None:
        raise running.error
    return running.result


def is_left_running() -> bool:
    """Whether a build that could not be stopped still runs."""
    return any(thread.name == NAME for thread in threading.enumerate())
