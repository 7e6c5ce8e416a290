"""docs/planning.md shows what ``attn-export plan`` prints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "planning.md"


def generator() -> ModuleType:
    path = ROOT / "scripts" / "write_planning_doc.py"
    spec = importlib.util.spec_from_file_location("write_planning_doc", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_output_on_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text() == generator().text(), "run: python scripts/write_planning_doc.py"


def test_all_scenarios_have_an_output() -> None:
    scenarios = re.split(r"^## (?=\d)", PAGE.read_text(), flags=re.MULTILINE)[1:]
    assert len(scenarios) == 5
    for scenario in scenarios:
        assert re.search(r"\$ attn-export plan .+\n\[(PLAN|ESTIMATE)\] ", scenario)
