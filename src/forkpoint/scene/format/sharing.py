"""Which elements of two tensors stand for the same thing: written compactly, and as indexing that can be read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.match.pairs import Pairs
from forkpoint.support.arrays import tensor_of

Ints = NDArray[np.int64]
Shape = tuple[int, ...]
MAX_REPEAT = 4096
MAX_LIST = 64
"""Longest list of indices that is readable."""


Repeat = tuple[int, int]
"""(dimension, times) of a `repeat_interleave`."""


@dataclass(frozen=True, eq=False)
class Sharing:
    """The shared elements of a tensor of run A and one of run B, as runs of neighbours.

    Attributes:
        runs: [n, 3] of int64: flat index in A, flat index in B, how many elements follow there in both.
        reason: why there are none.
        repeat_a, repeat_b: what is done to a tensor before it is indexed, where one run has fewer heads of keys
            than the other, each standing for several.
    """

    runs: Tensor
    reason: str = ""
    repeat_a: Repeat | None = None
    repeat_b: Repeat | None = None

    def __len__(self) -> int:
        return int(self.runs[:, 2].sum())

    @classmethod
    def of(cls, pairs: Pairs, repeat_a: Repeat | None = None, repeat_b: Repeat | None = None) -> Sharing:
        """From pairs of flat indices.

        >>> pairs = Pairs(np.array([0, 1, 2, 5]), np.array([4, 5, 6, 7]), np.zeros(4, dtype=np.int64))
        >>> Sharing.of(pairs).runs.tolist()
        [[0, 4, 3], [5, 7, 1]]
        """
        a, b = pairs.a.astype(np.int64), pairs.b.astype(np.int64)
        order = np.argsort(a, kind="stable")
        a, b = a[order], b[order]
        repeated = a[1:] == a[:-1]
        if repeated.any():  # what A has once for all rows of B: all of it for one row, then for the next
            numbers = np.arange(len(a))
            row = numbers - np.maximum.accumulate(np.where(np.r_[False, repeated], 0, numbers))
            order = np.argsort(row, kind="stable")
            a, b = a[order], b[order]
        breaks = np.flatnonzero((np.diff(a) != 1) | (np.diff(b) != 1)) + 1
        starts = np.r_[0, breaks] if len(a) else np.zeros(0, dtype=np.int64)
        lengths = np.diff(np.r_[starts, len(a)])
        runs = (
            np.stack([a[starts], b[starts], lengths], axis=1) if len(a) else np.zeros((0, 3), dtype=np.int64)
        )
        return cls(tensor_of(np.ascontiguousarray(runs)), pairs.reason, repeat_a, repeat_b)

    def indices(self) -> tuple[Tensor, Tensor]:
        """Flat indices into A and into B of the shared elements, in the order of A's.

        Where one element of A stands for several of B (one row for all of B's), A's indices are gone through once for each.
        """
        a, b, lengths = self.runs.unbind(1)
        ends = lengths.cumsum(0)
        within = torch.arange(len(self)) - torch.repeat_interleave(ends - lengths, lengths)
        return torch.repeat_interleave(a, lengths) + within, torch.repeat_interleave(b, lengths) + within

    def take(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The shared elements of two tensors, in one order."""
        at_a, at_b = self.indices()
        a, b = repeated(a, self.repeat_a), repeated(b, self.repeat_b)
        return a.reshape(-1)[at_a.to(a.device)], b.reshape(-1)[at_b.to(b.device)]

    def shapes(self, a: Shape, b: Shape) -> tuple[Shape, Shape]:
        """The shapes that are indexed, after repeating."""
        return _repeated_shape(a, self.repeat_a), _repeated_shape(b, self.repeat_b)

    def check(self, a: Shape, b: Shape, what: str) -> None:
        """Every index must lie within tensors of the shapes `a` and `b`.

        Raises:
            SceneError: one doesn't.
        """
        if self.runs.dtype != torch.int64 or self.runs.dim() != 2 or self.runs.shape[1] != 3:
            raise SceneError(f"the alignment of {what} of shape {list(self.runs.shape)}", "[n, 3] of int64")
        for shape, repeat in ((a, self.repeat_a), (b, self.repeat_b)):
            if repeat is not None and not (repeat[0] < len(shape) and 1 < repeat[1] <= MAX_REPEAT):
                raise SceneError(
                    f"{what} repeated {repeat[1]} times in dimension {repeat[0]}", "heads of keys"
                )
        if not len(self.runs):
            return
        size_a, size_b = (math.prod(shape) for shape in self.shapes(a, b))
        starts, lengths = self.runs[:, :2], self.runs[:, 2:]
        if int(self.runs.min()) < 0 or int(self.runs.max()) > 1 << 48:
            raise SceneError(f"an alignment of {what} with numbers out of range", "flat indices")
        ends = (starts + lengths).max(0).values.tolist()
        if int(lengths.min()) < 1 or ends[0] > size_a or ends[1] > size_b:
            raise SceneError(
                f"an alignment of {what} up to elements {ends}", f"at most {size_a} in A and {size_b} in B"
            )
        if len(self) > max(size_a, size_b):  # one run may have once what the other has for each row
            raise SceneError(
                f"an alignment of {what} over {len(self)} elements",
                f"at most the {size_a} that A has or the {size_b} of B",
            )


def repeated(value: Tensor, repeat: Repeat | None) -> Tensor:
    return value if repeat is None else value.repeat_interleave(repeat[1], repeat[0])


def _repeated_shape(shape: Shape, repeat: Repeat | None) -> Shape:
    if repeat is None:
        return shape
    return tuple(n * repeat[1] if d == repeat[0] else n for d, n in enumerate(shape))


# ---------------------------------------------------------------------- as indexing

Index = tuple[slice | list[int], ...]
"""One entry a dimension; dimensions at the end that are whole are left out."""


def as_indexing(sharing: Sharing, a: Shape, b: Shape) -> tuple[Index, Index] | None:
    """The same alignment as an index of each tensor (after repeating), if there are two that one can read.

    >>> pairs = Pairs(np.arange(6), np.array([0, 1, 2, 4, 5, 6]), np.zeros(6, dtype=np.int64))
    >>> [index_text(index) for index in as_indexing(Sharing.of(pairs), (2, 3), (2, 4))]
    ['', '[:, :3]']
    """
    if not len(sharing):
        return None
    shape_a, shape_b = sharing.shapes(a, b)
    at_a, at_b = (index.numpy() for index in sharing.indices())
    box_a, box_b = _box(at_a, shape_a), _box(at_b, shape_b)
    # A's elements ascend, so B's must run through its box in the same order.
    if box_a is None or box_b is None or not np.array_equal(at_b, _flat(box_b, shape_b)):
        return None
    index_a, index_b = _index(box_a, shape_a), _index(box_b, shape_b)
    return None if index_a is None or index_b is None else (index_a, index_b)


def repeat_text(repeat: Repeat | None) -> str:
    """A repetition as source.

    >>> repeat_text((1, 3))
    '.repeat_interleave(3, 1)'
    """
    return "" if repeat is None else f".repeat_interleave({repeat[1]}, {repeat[0]})"


def index_text(index: Index) -> str:
    """An index as source; empty where it is the whole tensor.

    >>> index_text((slice(None), slice(2, 9), [0, 4, 5]))
    '[:, 2:9, [0, 4, 5]]'
    """
    return f"[{', '.join(map(_text, index))}]" if index else ""


def _text(part: slice | list[int]) -> str:
    if isinstance(part, list):
        return str(part)
    text = f"{part.start or ''}:{'' if part.stop is None else part.stop}"
    return text if part.step in (None, 1) else f"{text}:{part.step}"


def _box(flat: Ints, shape: Shape) -> list[Ints] | None:
    """For each dimension the indices that occur, if every combination of them does."""
    places = [np.unique(axis) for axis in np.unravel_index(flat, shape)] if shape else []
    return places if math.prod(map(len, places)) == len(flat) else None


def _flat(box: list[Ints], shape: Shape) -> Ints:
    if not shape:
        return np.zeros(1, dtype=np.int64)
    return np.ravel_multi_index(np.ix_(*box), shape).reshape(-1)


def _index(box: list[Ints], shape: Shape) -> Index | None:
    parts: list[slice | list[int]] = []
    for places, size in zip(box, shape, strict=True):
        steps = np.unique(np.diff(places))
        if len(places) == size:
            parts.append(slice(None))
        elif len(steps) <= 1:
            start, stop, step = int(places[0]), int(places[-1]) + 1, int(steps[0]) if len(steps) else 1
            parts.append(slice(start, None if stop == size else stop, None if step == 1 else step))
        elif len(places) <= MAX_LIST and not any(isinstance(part, list) for part in parts):
            parts.append([int(n) for n in places])
        else:
            return None
    while parts and parts[-1] == slice(None):
        parts.pop()
    return tuple(parts)
