"""The workflows of docs/ci.md are valid, and their commands are ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from attn_export.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ci.md"
WORKFLOWS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = re.findall(r"^\s*(?:- )?attn-export (.+)$", "\n".join(WORKFLOWS), re.MULTILINE)


def parsed(text: str) -> dict[Any, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    found: dict[Any, Any] = yaml.safe_load(text)
    return found


def test_there_is_a_workflow_for_each_of_the_two() -> None:
    assert len(WORKFLOWS) == 2
    assert [line.split()[0] for line in COMMANDS] == ["build", "check", "check", "build", "check"]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_a_workflow_parses(line: str) -> None:
    arguments = shlex.split(line)
    main.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def test_the_github_workflow_is_one() -> None:
    found = parsed(WORKFLOWS[0])
    assert found[True] == {"pull_request": None, "push": {"branches": ["main"]}}  # YAML 1.1: on
    (job,) = found["jobs"].values()
    assert job["runs-on"]
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_the_gitlab_job_is_one_and_lets_noise_pass() -> None:
    (job,) = parsed(WORKFLOWS[1]).values()
    assert all(isinstance(line, str) for line in job["script"])
    assert job["allow_failure"] == {"exit_codes": [5]}
    assert job["artifacts"]["reports"]["junit"] == "check.xml"
