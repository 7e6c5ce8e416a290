"""A report as JSON in the bundle; apart from the tables, which need rich."""

from __future__ import annotations

import json
import logging
from typing import Any, Protocol

from attn_export.bundle import REPORTS, Bundle, write_atomic
from attn_export.errors import HostError

log = logging.getLogger("attn_export")


class Report(Protocol):
    """Anything with a JSON form."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""


def write_report(bundle: Bundle, name: str, report: Report) -> None:
    """Write ``reports/<name>.json`` into the bundle; one that cannot be written gets a warning."""
    text = json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"
    try:
        write_atomic(bundle.directory / REPORTS / f"{name}.json", text)
    except HostError as error:
        log.warning("%s.json was not kept: %s", name, error)
