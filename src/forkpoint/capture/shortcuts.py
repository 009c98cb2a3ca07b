"""Shortcuts: some of torch's functions call the tap directly, not through torch's dispatch to function modes.

`native/shortcut.c` says how. A function without a shortcut reaches the tap by torch's dispatch and is recorded in the same
way, so shortcuts change how long a trace takes and nothing else.

They change entry points in torch's own objects, so they are fenced: they are made only for versions of Python and torch
on the lists below, with which the tests have run, and `FORKPOINT_SHORTCUTS=0` leaves them out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forkpoint.capture.functions import NAMED, OPERATORS
from forkpoint.capture.mode import Tap
from forkpoint.native import compiled
from forkpoint.support.restoring import undone

CHECKED_PYTHONS = frozenset({(3, 11), (3, 12), (3, 13)})
CHECKED_TORCHES = frozenset({"2.11", "2.13", "2.14"})
"""Versions with which the tests of shortcuts have run."""


def unchecked() -> str:
    """The part of this process (Python, its build, torch) with which shortcuts were not checked; empty if all were."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)() or "free-threading" in sys.version:
        return "Python without a global lock"
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in CHECKED_PYTHONS:
        return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
    torchs = ".".join(torch.__version__.split(".")[:2])
    return "" if torchs in CHECKED_TORCHES else f"torch {torchs}"


def permitted() -> bool:
    """Whether shortcuts may be made at all."""
    return os.environ.get("FORKPOINT_SHORTCUTS") != "0" and not unchecked()


def note_of_shortcuts() -> str:
    """The note for a report that shortcuts are left out; empty where they are in use, or were switched off by the user."""
    if compiled is None or os.environ.get("FORKPOINT_SHORTCUTS") == "0" or not (what := unchecked()):
        return ""
    return (
        f"torch's own way to the tracer was taken, which takes longer: shortcuts were not checked with {what}"
    )


@contextmanager
def shortcuts_to(tap: Tap) -> Generator[None]:
    """Within the block, functions with shortcuts call this tap directly, where shortcuts are permitted."""
    if compiled is None or not permitted() or not _made():
        yield
        return
    with undone(partial(compiled.leave_shortcuts, tap)):
        compiled.take_shortcuts(tap)
        yield


@cache
def _made() -> bool:
    """Make the shortcuts, once in a process; returns whether there are any."""
    stack = [getattr(torch._C, name, None) for name in _STACK]
    try:
        return compiled.shorten(targets(), *stack) > 0  # pyright: ignore[reportArgumentType]
    except Exception:  # noqa: BLE001 - another torch, whatever it has instead: all calls go its own way then
        return False


_STACK = ("_is_torch_function_mode_enabled", "_pop_torch_function_stack", "_push_on_torch_function_stack")
"""Functions of torch that say whether function modes are enabled, pop one off the stack, and push one."""

_MORE = (
    "tensor", "flatten", "masked_fill", "repeat", "repeat_interleave", "sqrt", "square", "clamp", "max", "min", "gather",
    "index_select", "argmax", "argsort", "topk", "one_hot", "addmm", "baddbmm", "conv1d", "conv2d", "outer", "log", "abs",
    "roll", "flip", "all", "any", "int", "long", "bool",
)  # fmt: skip
"""Other functions that models often call."""


def targets() -> tuple[Any, ...]:
    """What gets a shortcut: the classes whose subscripts do, then methods, properties and functions.

    Nothing that writes in place, which can't wait to be recorded.
    """
    operators = [f"__{name}__" for name, public in OPERATORS.items() if not public.endswith("_")]
    names = [name for name in (*sorted(NAMED), *_MORE) if not name.endswith("_") or name.endswith("__")]
    functions = [name for name in names if not name.startswith("_")]
    candidates = [getattr(Tensor, name, None) for name in (*operators, *names)]
    candidates += [getattr(owner, name, None) for owner in (torch, F) for name in functions]
    return (Tensor, nn.Parameter, *(target for target in candidates if target is not None))
