"""`torch.utils.swap_tensors` while a run is watched: no function mode sees it, and it refuses what has weak references.

Modules are cast that way where `torch.__future__` says so, and tensors of a class of their own always are.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from forkpoint.capture.calls import StandIn, copy_of, detour
from forkpoint.capture.recorder import Recorder
from forkpoint.support.restoring import undone

_stand_in = StandIn()
"""Its one entry swaps tensors while `torch.utils.swap_tensors` has the code of `_detour`."""


def _detour(t1: Tensor, t2: Tensor) -> Any:
    stand_in: Any = "_stand_in"
    return stand_in[0](t1, t2)


_DETOUR = detour(_detour, _stand_in)


@contextmanager
def swaps_told_to(recorder: Recorder) -> Generator[None]:
    """Tell a recorder of the tensors that this thread swaps within the block."""
    function: Any = torch.utils.swap_tensors
    code, before = function.__code__, _stand_in[:]
    original = before[0] if code is _DETOUR else copy_of(function)
    thread = threading.get_ident()

    def swap(t1: Tensor, t2: Tensor) -> Any:
        if threading.get_ident() != thread:
            return original(t1, t2)
        return recorder.swapped(t1, t2, partial(original, t1, t2))

    def put_back() -> None:
        function.__code__, _stand_in[:] = code, before

    with undone(put_back):
        _stand_in[:], function.__code__ = [swap], _DETOUR
        yield
