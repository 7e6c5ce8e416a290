"""Write docs/commands.md from the commands' own help: python scripts/write_commands_doc.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from attn_export.cli import main

TARGET = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
SETTINGS: dict[str, Any] = {"terminal_width": 96, "max_content_width": 96}


def text() -> str:
    """The page: what ``--help`` prints for each command."""
    parts = ["# Commands\n\nWritten by `scripts/write_commands_doc.py` from `--help`.\n"]
    root = click.Context(main, info_name="attn-export", **SETTINGS, **main.context_settings)
    parts.append(_section(root))
    for name, command in main.commands.items():
        parts.append(_section(click.Context(command, parent=root, info_name=name, **SETTINGS)))
    return "\n".join(parts)


def _section(context: click.Context) -> str:
    help_text = context.command.get_help(context)
    return f"## {context.command_path}\n\n```\n{help_text}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
