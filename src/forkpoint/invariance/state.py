"""What is known within a block of `invariant`: whose tensors are constant, and what becomes of ops without a form."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from forkpoint.errors import InvarianceError

Unsupported: TypeAlias = Literal["raise", "leave"]


class Invariance:
    """A block of `invariant` as long as it lasts, and what it has to say afterwards.

    Attributes:
        model: the model of the block.
        models: that, and its copies that were called meanwhile.
        seen: ways of calling the model that have been looked at.
        left: the ops that have no invariant form and were left as they are, each with the reason; empty unless
            `unsupported="leave"`.
    """

    def __init__(self, model: torch.nn.Module, unsupported: Unsupported) -> None:
        self.model = model
        self.left: dict[str, str] = {}
        self.seen: set[object] = set()
        self.models: list[torch.nn.Module] = [model]
        self._unsupported = unsupported
        self._storages: set[int] = set()

    def refuse(self, what: str, why: str) -> None:
        """Raise, or note what is left as it is.

        Raises:
            InvarianceError: the block was not told to leave it.
        """
        if self._unsupported == "raise":
            raise InvarianceError(
                f"{what} has no layout-invariant form: {why}",
                hint='unsupported="leave" runs it as it is, and says so',
            )
        self.left.setdefault(what, why)

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the model's own: a parameter, a buffer, or a view of one."""
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in self._storages:
            return True
        self._storages = {
            one.untyped_storage().data_ptr()
            for model in self.models
            for one in itertools.chain(model.parameters(), model.buffers())
        }
        return pointer in self._storages

    def resembles_constant(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor has the shape of one of the model's own, as one that was cast has."""
        return any(
            one.shape == tensor.shape
            for model in self.models
            for one in itertools.chain(model.parameters(), model.buffers())
        )


class _Blocks(threading.local):
    def __init__(self) -> None:
        self.open: list[Invariance] = []


_blocks = _Blocks()


@contextmanager
def opened(block: Invariance) -> Generator[None]:
    """The block is one of this thread's."""
    _blocks.open.append(block)
    try:
        yield
    finally:
        _blocks.open.remove(block)


def is_open(block: Invariance) -> bool:
    """Whether a block is one of this thread's."""
    return any(one is block for one in _blocks.open)


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to the model of an open block."""
    return any(block.is_constant(tensor) for block in reversed(_blocks.open))


def resembles_constant(tensor: torch.Tensor) -> bool:
    """Whether a tensor is, or may be made from, one of the model of an open block."""
    return is_constant(tensor) or any(block.resembles_constant(tensor) for block in _blocks.open)


def refuse(what: str, why: str) -> None:
    """Raise, or note what is left as it is, with the line that calls it, as the innermost block says; see `Invariance.refuse`.

    Raises:
        InvarianceError: the block was not told to leave it, or there is none.
    """
    if not _blocks.open:
        raise InvarianceError(f"{what} has no layout-invariant form: {why}")
    _blocks.open[-1].refuse(f"{what}{place()}", why)


_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


def place() -> str:
    """The innermost line outside torch and this package, as ` at file.py:12`."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _HERE)):
            return f" at {Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
