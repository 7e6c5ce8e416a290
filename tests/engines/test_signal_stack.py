"""A thread that computes with AMX can still be sent a signal."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable

import pytest

FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]
ASK = """
import signal
from attn_export.engines.signal_stack import SIZE, enlarge_signal_stack, signal_stack_size
before = signal_stack_size()
{act}
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
signal.raise_signal(signal.SIGUSR1)
print(before < SIZE, signal_stack_size() >= SIZE or not before, heard)
"""


@pytest.mark.parametrize(
    "act",
    [
        "enlarge_signal_stack()",
        "enlarge_signal_stack(); enlarge_signal_stack()",
        pytest.param(
            "from attn_export.engines.openvino_library import library; library()",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
            ),
        ),
    ],
)
def test_the_stack_for_signals_holds_the_tiles_and_signals_arrive(
    fresh_python: FreshPython, act: str
) -> None:
    done = fresh_python("-c", ASK.format(act=act))
    assert done.stdout.split() == ["True", "True", "[1]"], done.stderr
