"""Lines about a build that TensorRT's callbacks give."""

from __future__ import annotations

import pytest

from attn_export.engines.build_progress import INTERVAL_S, Progress


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def progress(said: list[str], clock: Clock) -> Progress:
    return Progress("building fp16", said.append, clock)


def test_the_innermost_phase_is_told_with_its_steps_and_what_is_left(
    progress: Progress, said: list[str], clock: Clock
) -> None:
    progress.phase_start("Building Engine", 3)
    progress.phase_start("Timing graph nodes", 120)
    clock.now += 20  # 40 steps in 20 s: the other 80 take 40 s
    assert progress.step_complete("Timing graph nodes", 39)
    assert said == [
        "building fp16: Building Engine, 3 steps",
        "building fp16: Timing graph nodes, 120 steps",
        "building fp16: Timing graph nodes, 40 of 120, about 40 s left",
    ]


def test_long_waits_are_told_in_minutes(progress: Progress, said: list[str], clock: Clock) -> None:
    progress.phase_start("Timing", 10)
    clock.now += 60
    progress.step_complete("Timing", 0)  # 9 steps of 60 s
    assert said[-1] == "building fp16: Timing, 1 of 10, about 9 min left"


def test_after_a_phase_its_parent_is_told(
    progress: Progress, said: list[str], clock: Clock
) -> None:
    progress.phase_start("outer", 4)
    progress.phase_start("inner", 2)
    progress.phase_finish("inner")
    clock.now += 30
    progress.step_complete("outer", 2)
    assert said[-1] == "building fp16: outer, 3 of 4, about 10 s left"


def test_steps_are_told_once_in_an_interval_and_a_phase_of_a_known_name_too(
    progress: Progress, said: list[str], clock: Clock
) -> None:
    for _ in range(50):
        progress.phase_start("Compiling", 20)
        for step in range(20):
            progress.step_complete("Compiling", step)
        progress.phase_finish("Compiling")
    assert said == ["building fp16: Compiling, 20 steps"]
    clock.now += INTERVAL_S
    progress.phase_start("Compiling", 20)
    assert len(said) == 2


def test_a_phase_of_one_step_is_told_by_its_name(progress: Progress, said: list[str]) -> None:
    progress.phase_start("Parsing", 1)
    assert said == ["building fp16: Parsing"]


def test_log_lines_are_cut_and_told_once_in_an_interval(
    progress: Progress, said: list[str], clock: Clock
) -> None:
    progress.line("x" * 500)
    progress.line("too soon")
    clock.now += INTERVAL_S
    progress.line("later")
    assert said == ["building fp16: " + "x" * 100, "building fp16: later"]


def test_a_step_after_stop_asks_tensorrt_to_end(progress: Progress) -> None:
    progress.phase_start("Timing", 10)
    assert progress.step_complete("Timing", 0)
    progress.stop()
    assert progress.stopped
    assert not progress.step_complete("Timing", 1)


def test_a_callback_never_raises_into_tensorrt(clock: Clock) -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError(text)

    progress = Progress("building fp16", broken, clock)
    progress.phase_start("Timing", 2)
    progress.line("a line")
    assert progress.step_complete("Timing", 0)


def test_a_step_of_an_unknown_phase_does_no_harm(progress: Progress, said: list[str]) -> None:
    assert progress.step_complete("never started", 0)
    progress.phase_finish("never started")
    assert said == []
