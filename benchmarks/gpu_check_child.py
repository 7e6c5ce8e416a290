"""A child process of the GPU check: settings as JSON in argv, one JSON object on stdout.

The answer holds ``values`` (measured, by gate), ``numbers`` (what the report shows) and
``unmeasured`` (reasons, by gate); or ``skipped`` with a reason; or ``error`` with a text.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from attn_export.errors import AttnExportError, MissingPackage

Answer = dict[str, Any]


def answer(work: Callable[[dict[str, Any]], Answer]) -> None:
    """Run ``work`` on the settings and print what it answers.

    A missing package is a reason to skip, another error of ours an error's text; a defect ends
    the process with its traceback.
    """
    # TensorRT, CUDA and Polygraphy may print to stdout: that goes to the log.
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        found = work(json.loads(sys.argv[1]))
    except MissingPackage as error:
        found = {"skipped": str(error)}
    except AttnExportError as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.flush()
    with os.fdopen(stdout, "w", encoding="utf-8") as stream:
        json.dump(found, stream)


def say(text: str) -> None:
    """One line for the log."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
