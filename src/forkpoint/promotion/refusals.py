"""What could not be computed in float64, and where the model asked for it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


@dataclass(frozen=True)
class Refusal:
    """One operation, at one place of the model's source, that was done in native precision instead."""

    op: str
    """The operation's name: ``fbgemm::f8f8bf16_rowwise``, ``_scaled_mm``."""
    reason: str
    """What it said when it was given float64, or what it did instead of computing in it."""
    dtype: torch.dtype | None
    """In which dtype it was done; None if it was not done otherwise."""
    source: str | None
    """The line of the model's source that called it: ``modeling_llama.py:123``."""
    module: str | None
    """The class of the module that called it."""

    def __str__(self) -> str:
        where = " ".join(part for part in (self.module, self.source and f"({self.source})") if part)
        done = f"; done in {str(self.dtype).removeprefix('torch.')}" if self.dtype else ""
        return f"{self.op}{' in ' + where if where else ''}: {self.reason}{done}"


def refusal(op: str, reason: BaseException | str, dtype: torch.dtype | None) -> Refusal:
    text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}".splitlines()[0]
    source, module = _caller()
    return Refusal(op, text, dtype, source, module)


def _caller() -> tuple[str | None, str | None]:
    """Line of the innermost frame outside torch and this package, and class of the innermost module."""
    source = None
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, _HERE)):
            source = source or f"{os.path.basename(path)}:{frame.f_lineno}"
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module):
            return source, type(owner).__name__
        frame = frame.f_back
    return source, None
