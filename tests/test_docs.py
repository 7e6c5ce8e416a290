"""The documents say what the program does."""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from attn_export.benchmarks.rounds import QUICK
from attn_export.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?: {4,}|\$ )attn-export (.+?)(?: +#.*)?$", re.MULTILINE)


def generator() -> ModuleType:
    path = ROOT / "scripts" / "write_commands_doc.py"
    spec = importlib.util.spec_from_file_location("write_commands_doc", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_in(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in COMMAND.findall(text)]


def test_the_page_of_commands_is_their_help() -> None:
    assert (ROOT / "docs" / "commands.md").read_text() == generator().text(), (
        "run: python scripts/write_commands_doc.py"
    )


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"attn-export {name}" in result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_page_parses(page: Path) -> None:
    for arguments in commands_in(page.read_text()):
        command = main.commands[arguments[0]]
        command.make_context(arguments[0], arguments[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def block_after(heading: str) -> list[list[str]]:
    """The commands of the README's section with this heading."""
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return commands_in(section)


def test_the_readmes_start_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it installs: OpenVINO is not among it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("attn_export.build._installed", lambda package: package == "onnxruntime")
    moment = replace(QUICK, rounds=1, turn_s=0.1, all_s=0.1, warm_up_s=0.1, latency_s=0.1)
    monkeypatch.setattr("attn_export.benchmarks.bench.QUICK", moment)
    commands = block_after("Start")
    assert [arguments[0] for arguments in commands] == [
        "build",
        "parity",
        "bench",
        "inspect",
        "doctor",
    ]
    for arguments in commands:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
    python = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for code in python:
        exec(compile(code, "README.md", "exec"), {})
