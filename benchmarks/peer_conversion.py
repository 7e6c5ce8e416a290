"""Files that a peer needs, made in a process of their own.

What makes them (torch's exporter, a quantizer) takes several times the memory of what runs them;
the peer's own process then holds only what a server would.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ParamSpec, TypeVar

from attn_export.errors import HostError, MissingPackage

P = ParamSpec("P")
T = TypeVar("T")


def converted(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a fresh process, and return or raise what it does.

    Raises:
        HostError: in place of a ``MissingPackage``, with its text.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start) as pool:
        return pool.submit(_called, make, args, kwargs).result()


def _called(make: Callable[..., T], args: Any, kwargs: Any) -> T:
    try:
        return make(*args, **kwargs)
    except MissingPackage as error:  # it is made of two texts, and pickle has the message alone
        raise HostError(str(error)) from None


def _start() -> None:
    warnings.simplefilter("ignore")  # the converters' own deprecations
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker that takes too long is killed; what it started must not go on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
