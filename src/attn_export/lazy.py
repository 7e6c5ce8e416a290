"""Optional packages, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from attn_export.errors import MissingPackage


def require(module: str, *, extra: str) -> Any:
    """Import an optional module, or say which extra installs it.

    Raises:
        MissingPackage: if it is absent. An error from *inside* an installed package (a
            missing CUDA library, say) keeps its own traceback.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingPackage(module.partition(".")[0], extra) from error
