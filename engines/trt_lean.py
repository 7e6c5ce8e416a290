"""TensorRT's lean runtime: it runs version-compatible plans and cannot build any."""

from __future__ import annotations

from typing import Any

from attn_export.errors import HostError
from attn_export.lazy import require


def require_lean() -> Any:
    """The module ``tensorrt_lean``, whose runtime half is that of ``tensorrt``.

    Raises:
        MissingPackage: if it is not installed.
        HostError: if one of its own libraries is missing.
    """
    try:
        return require("tensorrt_lean", extra="lean")
    except ImportError as error:
        raise HostError(
            f"TensorRT's lean runtime is installed and cannot be imported: {error}; "
            "reinstall it with: pip install --force-reinstall 'attn-export[lean]'"
        ) from error
