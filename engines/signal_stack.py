"""Room for signals in a process that computes with AMX.

The kernel saves the AMX tiles of an interrupted thread, 8 KiB of them, on the stack that Python
keeps for signals; on CPython 3.11 that is 20 KB and was seen to be too small. SIGINT or SIGTERM
then ends the process with SIGSEGV, and not with what its handler does.
"""

from __future__ import annotations

import ctypes

SIZE = 1 << 17
_kept: list[ctypes.Array[ctypes.c_char]] = []  # it must live as long as the thread


class _Stack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2) on Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack_size() -> int:
    """The bytes of this thread's stack for signals; 0 where it has none of its own."""
    found = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return int(found.size)


def enlarge_signal_stack() -> None:
    """Give this thread a stack for signals that holds AMX's tiles, where it has a smaller one."""
    if 0 < signal_stack_size() < SIZE:
        room = ctypes.create_string_buffer(SIZE)
        stack = _Stack(ctypes.addressof(room), 0, SIZE)
        if ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0:
            _kept.append(room)
