"""Work in a thread that Ctrl-C and a time limit reach."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from attn_export.engines.build_thread import Stopped, run_stoppable
from attn_export.errors import BuildFailed, HostError

WAIT_S = 10.0


@pytest.fixture
def interrupts(hears_ctrl_c: None) -> Iterator[Callable[[float], None]]:
    """Send the main thread a Ctrl-C after some seconds; the system gives it there as well."""
    timers: list[threading.Timer] = []
    main = threading.main_thread().ident
    assert main is not None

    def send(after_s: float) -> None:
        timers.append(threading.Timer(after_s, signal.pthread_kill, [main, signal.SIGINT]))
        timers[-1].start()

    yield send
    for timer in timers:
        timer.join()


class Build:
    """Work that ends when it is told to, as a build with a progress monitor does."""

    def __init__(self) -> None:
        self.asked, self.ended = threading.Event(), threading.Event()
        self.thread = ""

    def __call__(self) -> str:
        self.thread = threading.current_thread().name
        stopped = self.asked.wait(WAIT_S)
        self.ended.set()
        if stopped:
            raise Stopped
        return "plan"


def run(
    work: Callable[[], str],
    *,
    stop: Callable[[], None] | None = None,
    timeout_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    return run_stoppable(work, what="building fp16", stop=stop, timeout_s=timeout_s, say=say)


def test_the_result_comes_from_another_thread() -> None:
    assert run(lambda: threading.current_thread().name) == "attn-export build"


def test_an_error_of_the_work_is_raised_here() -> None:
    def work() -> str:
        raise HostError("no memory")

    with pytest.raises(HostError, match=r"^no memory$"):
        run(work)


def test_a_time_limit_stops_the_work_and_says_how_to_go_on() -> None:
    build = Build()
    with pytest.raises(
        BuildFailed, match=r"building fp16 took longer than 0\.05 s and was stopped"
    ):
        run(build, stop=build.asked.set, timeout_s=0.05)
    assert build.ended.is_set()


def test_work_that_ends_while_it_is_asked_to_stop_still_counts() -> None:
    asked = threading.Event()

    def work() -> str:
        asked.wait(WAIT_S)
        return "plan"

    assert run(work, stop=asked.set, timeout_s=0.05) == "plan"


def test_a_time_limit_gives_up_at_once_on_work_that_cannot_be_stopped() -> None:
    build = Build()
    begun = time.monotonic()
    with pytest.raises(BuildFailed, match="goes on in the background until this process ends"):
        run(build, timeout_s=0.05)
    assert time.monotonic() - begun < WAIT_S / 2
    assert not build.ended.is_set()
    build.asked.set()


def test_ctrl_c_stops_the_work_and_waits_for_its_end(
    interrupts: Callable[[float], None],
) -> None:
    build, said = Build(), list[str]()
    interrupts(0.05)
    with pytest.raises(KeyboardInterrupt):
        run(build, stop=build.asked.set, say=said.append)
    assert build.ended.is_set()
    assert said == ["stopping the build; press Ctrl-C again to give up at once"]


def test_the_first_ctrl_c_waits_for_work_that_cannot_be_stopped(
    interrupts: Callable[[float], None],
) -> None:
    said: list[str] = []
    ended = threading.Event()

    def work() -> str:
        time.sleep(0.4)
        ended.set()
        return "plan"

    interrupts(0.05)
    with pytest.raises(KeyboardInterrupt):
        run(work, say=said.append)
    assert ended.is_set()
    assert len(said) == 1
    assert "cannot be stopped: waiting for its end to keep its timing cache" in said[0]


def test_the_second_ctrl_c_gives_up_at_once(interrupts: Callable[[float], None]) -> None:
    build = Build()
    interrupts(0.05)
    interrupts(0.3)
    with pytest.raises(KeyboardInterrupt):
        run(build)
    assert not build.ended.is_set()
    build.asked.set()
