"""Which elements of two tensors stand for the same thing: written compactly, and as indexing that can be read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.pairs import Pairs

Ints = NDArray[np.int64]
MAX_LIST = 64
"""Longest list of indices that is readable."""


@dataclass(frozen=True, eq=False)
class Sharing:
    """The shared elements of a tensor of run A and one of run B, as runs of neighbours.

    Attributes:
        runs: [n, 3] of int64: flat index in A, flat index in B, how many elements follow there in both.
        reason: why there are none.
    """

    runs: Tensor
    reason: str = ""

    def __len__(self) -> int:
        return int(self.runs[:, 2].sum())

    @classmethod
    def of(cls, pairs: Pairs) -> Sharing:
        """From pairs of flat indices.

        >>> pairs = Pairs(np.array([0, 1, 2, 5]), np.array([4, 5, 6, 7]), np.zeros(4, dtype=np.int64))
        >>> Sharing.of(pairs).runs.tolist()
        [[0, 4, 3], [5, 7, 1]]
        """
        a, b = pairs.a.astype(np.int64), pairs.b.astype(np.int64)
        order = np.argsort(a, kind="stable")
        a, b = a[order], b[order]
        breaks = np.flatnonzero((np.diff(a) != 1) | (np.diff(b) != 1)) + 1
        starts = np.r_[0, breaks] if len(a) else np.zeros(0, dtype=np.int64)
        lengths = np.diff(np.r_[starts, len(a)])
        runs = np.stack([a[starts], b[starts], lengths], axis=1) if len(a) else np.zeros((0, 3), dtype=np.int64)
        return cls(torch.from_numpy(np.ascontiguousarray(runs)), pairs.reason)

    def indices(self) -> tuple[Tensor, Tensor]:
        """Flat indices into A and into B, in the order of A's elements."""
        a, b, lengths = self.runs.unbind(1)
        ends = lengths.cumsum(0)
        within = torch.arange(len(self)) - torch.repeat_interleave(ends - lengths, lengths)
        return torch.repeat_interleave(a, lengths) + within, torch.repeat_interleave(b, lengths) + within

    def take(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The shared elements of two tensors, in one order."""
        at_a, at_b = self.indices()
        return a.reshape(-1)[at_a.to(a.device)], b.reshape(-1)[at_b.to(b.device)]

    def check(self, a: int, b: int, what: str) -> None:
        """Every index must lie within tensors of `a` and `b` elements.

        Raises:
            SceneError: one doesn't.
        """
        if self.runs.dtype != torch.int64 or self.runs.dim() != 2 or self.runs.shape[1] != 3:
            raise SceneError(f"the alignment of {what} of shape {list(self.runs.shape)}", "[n, 3] of int64")
        if not len(self.runs):
            return
        starts, lengths = self.runs[:, :2], self.runs[:, 2:]
        if int(self.runs.min()) < 0 or int(self.runs.max()) > 1 << 48:
            raise SceneError(f"an alignment of {what} with numbers out of range", "flat indices")
        ends = starts + lengths
        if int(lengths.min()) < 1 or int(ends[:, 0].max()) > a or int(ends[:, 1].max()) > b:
            raise SceneError(
                f"an alignment of {what} up to elements {ends.max(0).values.tolist()}", f"at most {a} in A and {b} in B"
            )
        if len(self) > a:
            raise SceneError(f"an alignment of {what} over {len(self)} elements", f"at most the {a} that A has")


# ---------------------------------------------------------------------- as indexing

Index = tuple[slice | list[int], ...]
"""One entry a dimension; dimensions at the end that are whole are left out."""


def as_indexing(
    sharing: Sharing, shape_a: tuple[int, ...], shape_b: tuple[int, ...]
) -> tuple[Index, Index] | None:
    """The same alignment as an index of each tensor, if there are two that one can read.

    >>> pairs = Pairs(np.arange(6), np.array([0, 1, 2, 4, 5, 6]), np.zeros(6, dtype=np.int64))
    >>> [index_text(index) for index in as_indexing(Sharing.of(pairs), (2, 3), (2, 4))]
    ['', '[:, :3]']
    """
    if not len(sharing):
        return None
    at_a, at_b = (index.numpy() for index in sharing.indices())
    box_a, box_b = _box(at_a, shape_a), _box(at_b, shape_b)
    # A's elements ascend, so B's must run through its box in the same order.
    if box_a is None or box_b is None or not np.array_equal(at_b, _flat(box_b, shape_b)):
        return None
    index_a, index_b = _index(box_a, shape_a), _index(box_b, shape_b)
    return None if index_a is None or index_b is None else (index_a, index_b)


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


def _box(flat: Ints, shape: tuple[int, ...]) -> list[Ints] | None:
    """For each dimension the indices that occur, if every combination of them does."""
    places = [np.unique(axis) for axis in np.unravel_index(flat, shape)] if shape else []
    return places if math.prod(map(len, places)) == len(flat) else None


def _flat(box: list[Ints], shape: tuple[int, ...]) -> Ints:
    if not shape:
        return np.zeros(1, dtype=np.int64)
    return np.ravel_multi_index(np.ix_(*box), shape).reshape(-1)


def _index(box: list[Ints], shape: tuple[int, ...]) -> Index | None:
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
