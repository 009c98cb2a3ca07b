"""A few threads for compiled code that lets go of the GIL.

They are ours, not numba's: its OpenMP layer doesn't survive a fork, its own work queue aborts the process if
two threads enter it, and it compiles longer for either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_PIECE_WORDS = 1 << 19
"""Below two pieces of this size a second thread costs more than it saves."""
_MOST_THREADS = 16


class _Workers:
    """The threads besides the caller's, started at the first use and anew in a forked child."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None

    def forget(self) -> None:
        self.pool = None

    def started(self) -> ThreadPoolExecutor:
        if self.pool is None:
            self.pool = ThreadPoolExecutor(_MOST_THREADS - 1, thread_name_prefix="forkpoint-digest")
        return self.pool


_workers = _Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.forget)


def pieces(words: int) -> int:
    """Into how many pieces to cut the work on so many words: one per thread of torch, none too small."""
    return max(1, min(torch.get_num_threads(), words // _PIECE_WORDS, _MOST_THREADS))


def run(function: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> None:
    """Calls a function with each of the arguments at the same time, and returns when all are done."""
    waiting = [_workers.started().submit(function, *call) for call in calls[1:]]
    try:
        for call in calls[:1]:
            function(*call)
    finally:  # whatever happens, nobody reads the caller's memory after this
        for future in waiting:
            future.result()
