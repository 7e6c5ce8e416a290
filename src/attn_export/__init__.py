"""From a PyTorch attention model to an engine that a server can trust.

``attn_export.load(directory)`` opens a bundle without torch; everything else is
reached through the ``attn-export`` command. Nothing heavy is imported until used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attn_export.engines.engine import Engine, load

__version__ = "0.1.0"
__all__ = ["Engine", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Engine", "load"):
        from attn_export.engines import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
