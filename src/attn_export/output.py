"""What a command prints on stdout: its result as JSON, or for a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click


def print_json(data: Any) -> None:
    """A result for programs."""
    click.echo(json.dumps(data, indent=2))


def print_lines(lines: Iterable[str]) -> None:
    """Plain text, never wrapped."""
    for line in lines:
        click.echo(line)


def print_report(report: Any, render: Callable[[Any], Any], *, as_json: bool) -> None:
    """A report as JSON, or as tables; ``render`` makes what rich prints."""
    if as_json:
        print_json(report.to_json())
        return
    from rich.console import Console

    Console(highlight=False).print(render(report))
