"""Runs compiled code on the threads that torch has anyway.

After each of its operations the threads of torch's OpenMP team stay awake for some milliseconds, spinning on
their cores. Threads of our own would share a core with them just when a digest is due, and take 50 µs to wake;
the team itself takes up new work in 2 µs. So the work is handed to the team, through the entry that GCC's OpenMP
has for compiled parallel regions (``GOMP_parallel``; Intel's and LLVM's offer the same one on Linux). Where torch
has no such team, and in forked children, in which it doesn't survive, the work is done by the caller alone.

numba's own threads are no way out: its OpenMP layer is a second team beside torch's, its work queue aborts the
process if two threads enter it, and it compiles longer for either.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Parallel = Callable[[int, int, int, int], None]
_ALONE = 1 << 17
"""Words that one thread digests in 50 µs. A second one would save half of that, and where other processes keep
it off its core, cost milliseconds until it is back."""
_SMALL, _LARGE = 1 << 15, 1 << 18
"""The fewest and the most words in a piece of work."""


def _find_team() -> _Parallel | None:
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel: Any = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


class _Team:
    def __init__(self) -> None:
        self.parallel = _find_team()

    def forget(self) -> None:
        self.parallel = None


_team = _Team()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_team.forget)


def piece(words: int) -> int:
    """The words in one piece of work, of which threads take one after the other."""
    return min(max(words // (4 * torch.get_num_threads()), _SMALL), _LARGE)


def run(function: int, data: int, words: int) -> None:
    """Calls the C function at an address with the address of its data: in every thread, or only here.

    The function takes pieces off its data until none is left; that of calls at the same time is its business.
    """
    threads = torch.get_num_threads()
    if words <= _ALONE or threads == 1 or _team.parallel is None:
        _Work(function)(data)
    else:
        _team.parallel(function, data, threads, 0)
