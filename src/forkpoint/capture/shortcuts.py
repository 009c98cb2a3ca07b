"""Which of torch's functions a tap is told of without torch's own way to it.

What that is for and how it is done is said in `native/shortcut.c`. It changes nothing but the time that a call takes:
whatever has no shortcut comes torch's way, so that it does not matter which functions have one, as long as those do that
models call most.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forkpoint.capture.functions import BY_NAME, OPERATORS
from forkpoint.capture.mode import Tap
from forkpoint.native import compiled


@contextmanager
def shortcuts_to(tap: Tap) -> Generator[None]:
    """Tell a tap of calls without torch's own way to it, where that can be."""
    if compiled is None or not _made() or not compiled.take_shortcuts(tap):
        yield
        return
    try:
        yield
    finally:
        compiled.leave_shortcuts()


@cache
def _made() -> bool:
    """Whether there are shortcuts; made once in a process."""
    stack = [getattr(torch._C, name, None) for name in _STACK]
    try:
        return compiled.shorten(targets(), *stack) > 0  # pyright: ignore[reportArgumentType]
    except TypeError:  # another torch, which has other functions for that
        return False


_STACK = ("_is_torch_function_mode_enabled", "_pop_torch_function_stack", "_push_on_torch_function_stack")
"""Functions of torch that say whether function modes are asked, take the one on top off the stack, and put one on."""


_MORE = (
    "tensor", "flatten", "masked_fill", "repeat", "repeat_interleave", "sqrt", "square", "clamp", "max", "min", "gather",
    "index_select", "argmax", "argsort", "topk", "one_hot", "einsum", "addmm", "baddbmm", "conv1d", "conv2d", "pad",
    "outer", "log", "abs", "roll", "flip", "all", "any", "int", "long", "bool",
)  # fmt: skip
"""What else models call."""


def targets() -> tuple[Any, ...]:
    """The methods, properties and functions that have shortcuts, if they can; and the classes whose subscripts do."""
    names = (*sorted(BY_NAME), *_MORE)
    methods = (*(f"__{name}__" for name in OPERATORS), *names)
    found = [getattr(Tensor, name, None) for name in methods]
    found += [getattr(owner, name, None) for owner in (torch, F) for name in names]
    return (*(target for target in found if target is not None), Tensor, nn.Parameter)
