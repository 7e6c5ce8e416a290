"""How the GPU check runs its tasks: real child processes, with programs of one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from attn_export.benchmarks import gpu_check_runner
from attn_export.benchmarks.gpu_check_outcome import Outcome
from attn_export.benchmarks.gpu_check_runner import run_tasks
from attn_export.benchmarks.gpu_check_tasks import Plan, Task

ANSWER = "from attn_export.benchmarks.gpu_check_child import answer; "
PASSES = ANSWER + "answer(lambda s: {'values': {'overhead_us': 20}, 'numbers': s})"


def task(name: str, code: str = PASSES, needs: tuple[str, ...] = ()) -> Task:
    return Task(
        step="runtime",
        name=name,
        side="engine",
        program=("-c", code),
        settings={"name": name},
        gates=("overhead_us",),
        needs=needs,
    )


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(torch_python=sys.executable, engine_python=sys.executable, work=tmp_path)


def run(plan: Plan, *tasks: Task) -> list[Outcome]:
    return run_tasks(plan, tasks, lambda text: None)


def started(plan: Plan, *tasks: Task) -> list[str]:
    lines: list[str] = []
    run_tasks(plan, tasks, lines.append)
    return [line.partition(":")[0] for line in lines if line.endswith(": running")]


def test_an_answer_becomes_an_outcome(plan: Plan) -> None:
    (outcome,) = run(plan, task("a"))
    assert (outcome.state, outcome.values) == ("pass", {"overhead_us": 20})
    assert outcome.numbers == {"name": "a"}
    assert outcome.seconds > 0


def test_a_task_that_fails_stops_only_those_that_need_it(plan: Plan) -> None:
    broken = task("broken", "raise ValueError('the GPU fell off the bus')")
    outcomes = run(plan, broken, task("after", needs=("broken",)), task("other"))
    assert [outcome.state for outcome in outcomes] == ["fail", "skipped", "pass"]
    assert "ended with exit code 1" in str(outcomes[0].error)
    assert "ValueError: the GPU fell off the bus" in str(outcomes[0].error)
    assert outcomes[1].skipped == "it needs 'broken', which is not done (fail)"


def test_a_gate_that_fails_does_not_stop_the_others(plan: Plan) -> None:
    slow = task("slow", PASSES.replace("20", "80"))
    outcomes = run(plan, slow, task("after", needs=("slow",)))
    assert [outcome.state for outcome in outcomes] == ["fail", "pass"]


@pytest.mark.parametrize(
    ("code", "state", "text"),
    [
        ("import os; os.kill(os.getpid(), 11)", "fail", "was ended by signal 11"),
        ("print('no JSON')", "fail", "ended with exit code 0"),
        (
            ANSWER + "from attn_export.errors import HostError\n"
            "def work(s): raise HostError('out of memory')\nanswer(work)",
            "fail",
            "HostError: out of memory",
        ),
        (
            ANSWER + "from attn_export.errors import MissingPackage\n"
            "def work(s): raise MissingPackage('tensorrt_lean', 'lean')\nanswer(work)",
            "skipped",
            "tensorrt_lean is not installed",
        ),
    ],
    ids=["a crash", "no answer", "an error of ours", "a missing package"],
)
def test_how_a_child_ended_is_said(plan: Plan, code: str, state: str, text: str) -> None:
    (outcome,) = run(plan, task("a", code))
    assert outcome.state == state
    assert text in str(outcome.error or outcome.skipped)


def test_what_libraries_print_does_not_spoil_the_answer(plan: Plan) -> None:
    noisy = ANSWER + "import os\ndef work(s):\n print('noise'); os.write(1, b'more'); return {}\n"
    (outcome,) = run(plan, task("a", noisy + "answer(work)"))
    assert outcome.is_finished
    assert "noise" in (plan.work / "logs" / "a.log").read_text()


def test_a_task_without_an_end_is_ended(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_runner, "LIMIT_S", 0.4)
    monkeypatch.setattr(gpu_check_runner, "HEARTBEAT_S", 0.2)
    lines: list[str] = []
    hangs = "import sys, time; print('tuning', file=sys.stderr, flush=True); time.sleep(60)"
    (outcome,) = run_tasks(plan, [task("a", hangs)], lines.append)
    assert "it took longer than 0 s and was ended" in str(outcome.error)
    assert "a: tuning" in lines


# Going on


def test_finished_tasks_are_not_run_again_and_failed_ones_are(plan: Plan) -> None:
    tasks = (task("a"), task("broken", "1 / 0"), task("b", needs=("a",)))
    assert started(plan, *tasks) == ["a", "broken", "b"]
    assert started(plan, *tasks) == ["broken"]


def test_another_command_runs_again_and_so_does_what_was_built_on_it(plan: Plan) -> None:
    first, second = task("a"), task("b", needs=("a",))
    run(plan, first, second)
    changed = replace(first, settings={"name": "a", "layers": 24})
    assert started(plan, changed, second) == ["a", "b"]
    assert started(plan, changed, second) == []


def test_a_later_call_for_one_step_knows_what_ran_before(plan: Plan) -> None:
    run(plan, task("a"))
    (outcome,) = run(plan, task("b", needs=("a",)))
    assert outcome.state == "pass"
    (outcome,) = run(plan, task("c", needs=("never",)))
    assert outcome.skipped == "it needs 'never', which has not run"


def test_a_half_written_result_is_run_again(plan: Plan) -> None:
    run(plan, task("a"))
    kept = plan.work / "results" / "a.json"
    kept.write_text(kept.read_text()[:100])
    assert started(plan, task("a")) == ["a"]


def test_what_is_looked_at_on_every_call_spoils_nothing_while_it_is_the_same(plan: Plan) -> None:
    def host(version: str) -> Task:
        code = ANSWER + f"answer(lambda s: {{'numbers': {{'identity': ['{version}']}}}})"
        return replace(task("host", code), gates=(), is_repeated=True)

    after = task("a", needs=("host",))
    assert started(plan, host("10.16"), after) == ["host", "a"]
    assert started(plan, host("10.16"), after) == ["host"]
    assert started(plan, host("11.4"), after) == ["host", "a"]
