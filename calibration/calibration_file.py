"""The JSON files of calibration: what they hold, which version, and which graph they are of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from attn_export.errors import BundleError, UsageError

SCHEMA = 1

Result = TypeVar("Result")


def require_graph(found: str, wanted: str, where: str = "the calibration") -> None:
    """Refuse a calibration of another graph.

    Raises:
        BundleError: if the two digests differ.
    """
    if found != wanted:
        raise BundleError(
            f"{where} is of another graph: its sha256 is {found[:12]}…, this graph's is "
            f"{wanted[:12]}…; calibrate this graph"
        )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UsageError: if the file cannot be read.
        BundleError: if it holds something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); calibrate again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} holds no JSON object; calibrate again")
    return found


def parsed(kind: str, data: Mapping[str, Any], parse: Callable[[dict[str, Any]], Result]) -> Result:
    """What ``parse`` makes of an object's own fields.

    Raises:
        BundleError: if it is of another kind or schema version, or ``parse`` fails.
    """
    fields = dict(data)
    holds, version = fields.pop("holds", None), fields.pop("schema_version", None)
    if holds != kind:
        raise BundleError(f"this is no file of calibration {kind}: 'holds' is {holds!r}")
    if version != SCHEMA:
        raise BundleError(
            f"the calibration {kind} have schema version {version!r}, this attn-export reads "
            f"{SCHEMA}; update it or calibrate again"
        )
    try:
        return parse(fields)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(
            f"the calibration {kind} are broken ({error}); calibrate again"
        ) from error
