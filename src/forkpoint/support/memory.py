"""A limit on what is kept in memory; what goes beyond it lies in a temporary file until it is asked for.

Everything that a comparison keeps of what it records goes on a *shelf*. All shelves of a comparison draw on one
`Memory`: first come, first kept in memory. Half of the limit is for what stays there, the other half is left for
what is being worked on (what is read back for one op, and what is made from it).

The file has no name (on Windows it is deleted on closing), so nothing can be left of it, whatever happens.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.errors import ShelfError
from forkpoint.support.arrays import tensor_of

Array = NDArray[Any]


class Memory:
    """What may stay in memory, all shelves together.

    Args:
        limit: in bytes; None for no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.in_memory = 0
        """Bytes on shelves that are in memory."""
        self.most_in_memory = 0
        self.written = 0
        """Bytes that went to files."""

    @property
    def limited(self) -> bool:
        return self.limit is not None

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes; they are taken."""
        if self.limit is not None and self.in_memory + size > self.limit // 2:
            return False
        self.in_memory += size
        self.most_in_memory = max(self.most_in_memory, self.in_memory)
        return True

    def shelf(self) -> Shelf:
        """A new shelf."""
        return Shelf(self)


@dataclass(eq=False)
class _Contents:
    """What a shelf has to give back, also if nobody closes it."""

    memory: Memory
    in_memory: int = 0
    file: IO[bytes] | None = None
    end: int = 0

    def close(self) -> None:
        self.memory.in_memory -= self.in_memory
        self.in_memory = 0
        if self.file is not None:
            self.file.close()


class Shelf:
    """Keeps tensors and arrays while somebody needs them; closed, or no longer referred to, it lets go of them.

    >>> shelf = Memory(limit=64).shelf()
    >>> small, large = shelf.keep(torch.arange(4)), shelf.keep(torch.arange(100))
    >>> isinstance(small, Tensor), isinstance(large, Shelved)
    (True, True)
    >>> bool((load(large) == torch.arange(100)).all())
    True
    """

    def __init__(self, memory: Memory) -> None:
        self._contents = _Contents(memory)
        self._finalizer = weakref.finalize(self, self._contents.close)

    def close(self) -> None:
        """Give back the memory and the file: what lies in it can't be read any more."""
        self._finalizer()

    def keep(self, value: Tensor) -> Tensor | Shelved:
        """Keep a tensor that nobody else writes to; `load` gives it back, bits and strides.

        What is not host memory, or not simply elements in a row (quantized, sparse), stays as it is.

        Raises:
            ShelfError: the temporary folder has no room for it.
        """
        plain = type(value) is Tensor and value.layout == torch.strided and not value.is_quantized
        if value.device.type != "cpu" or not plain or self._take(value.nbytes):
            return value
        if value.is_conj() or value.is_neg() or not _dense(value):
            value = value.resolve_conj().resolve_neg().contiguous()
        return self._put(value)

    def keep_array(self, array: Array) -> Array | Shelved:
        """The same for an array; `load_array` gives it back, in C order."""
        if self._take(array.nbytes):
            return array
        return self._put(tensor_of(np.array(array, order="C")))

    def _take(self, size: int) -> bool:
        fits = self._contents.memory.take(size)
        self._contents.in_memory += size if fits else 0
        return fits

    def _put(self, value: Tensor) -> Shelved:
        flat = value.as_strided((value.numel(),), (1,))
        start = self._write(flat.view(torch.uint8).numpy())
        return Shelved(self, start, value.dtype, tuple(value.shape), value.stride())

    def _write(self, data: NDArray[np.uint8]) -> int:
        contents = self._contents
        start = contents.end
        try:
            if contents.file is None:
                contents.file = tempfile.TemporaryFile(prefix="forkpoint-", buffering=0)  # noqa: SIM115
            contents.file.seek(start)
            view = data.data
            while view:
                view = view[contents.file.write(view) :]
        except OSError as error:
            raise ShelfError(
                f"{data.nbytes:,} bytes can't be written to {tempfile.gettempdir()}: {error.strerror or error}",
                "a temporary folder with room for what max_memory keeps out of memory",
                "set TMPDIR to another one, or allow more memory",
            ) from None
        contents.end += data.nbytes
        contents.memory.written += data.nbytes
        return start

    def read_into(self, data: NDArray[np.uint8], start: int) -> None:
        """Fill an array with the bytes of the file from `start` on.

        Raises:
            ShelfError: they can't be read.
        """
        file = self._contents.file
        assert file is not None
        view, reason = data.data, "it ends early"
        try:
            file.seek(start, os.SEEK_SET)
            while view and (count := file.readinto(view)):  # pyright: ignore[reportAttributeAccessIssue] - unbuffered files are raw
                view = view[count:]
        except OSError as error:
            reason = error.strerror or str(error)
        if view:
            raise ShelfError(
                f"the temporary file in {tempfile.gettempdir()} can't be read: {reason}",
                "a temporary folder that keeps its files",
                "set TMPDIR to another one, or allow more memory",
            )


@dataclass(frozen=True, eq=False, slots=True)
class Shelved:
    """A tensor that lies in the file of a shelf."""

    shelf: Shelf
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """The tensor, read back."""
        return self.elements(0, int(np.prod(self.shape, dtype=np.int64))).as_strided(self.shape, self.stride)

    def elements(self, start: int, count: int) -> Tensor:
        """Some of its elements, one after the other in memory."""
        data = np.empty(count * self.dtype.itemsize, dtype=np.uint8)
        self.shelf.read_into(data, self.start + start * self.dtype.itemsize)
        return tensor_of(data).view(self.dtype)


def load(stored: Tensor | Shelved) -> Tensor:
    """What was kept."""
    return stored if isinstance(stored, Tensor) else stored.load()


def load_array(stored: Array | Shelved) -> Array:
    """The array that was kept."""
    return stored.load().numpy() if isinstance(stored, Shelved) else stored


def _dense(value: Tensor) -> bool:
    """Whether a tensor's elements fill a stretch of memory, each once."""
    stretch = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1:
            if stride != stretch:
                return False
            stretch *= size
    return True
