"""Pairs of elements of two values that stand for the same thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_ONE = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class Pairs:
    """Which elements of A and B are the same element: cell by cell, since a token has thousands of them.

    A cell's elements begin somewhere in the value and lie at the same offsets from there in every cell.
    The pairs run from cell to cell, and within a cell in the order of its elements.

    Attributes:
        first_a, first_b: [cells], flat index of each cell's first element; empty where nothing could be
            paired, with `reason`.
        coordinates: [cells], shared number of each cell's coordinate (`Shared.place`).
        by_sample: the coordinates are samples of run A instead, since each row holds one vector a sample.
        inner_a, inner_b: [elements of a cell], offsets from its first, ascending.

    >>> pairs = Pairs(np.array([0, 6]), np.array([3, 9]), np.array([1, 2]), inner_a=np.arange(3), inner_b=np.arange(3))
    >>> len(pairs), pairs.a.tolist(), pairs.at(4)
    (6, [0, 1, 2, 6, 7, 8], (7, 10))
    """

    first_a: Ints
    first_b: Ints
    coordinates: Ints
    reason: str = ""
    by_sample: bool = False
    inner_a: Ints = field(default_factory=lambda: _ONE)
    inner_b: Ints = field(default_factory=lambda: _ONE)

    def __len__(self) -> int:
        return len(self.first_a) * len(self.inner_a)

    @property
    def a(self) -> Ints:
        """[pairs], flat indices into A."""
        return (self.first_a[:, None] + self.inner_a).reshape(-1)

    @property
    def b(self) -> Ints:
        """[pairs], flat indices into B."""
        return (self.first_b[:, None] + self.inner_b).reshape(-1)

    def at(self, pair: int) -> tuple[int, int]:
        """Flat indices of one pair of elements."""
        cell, element = divmod(pair, len(self.inner_a))
        return int(self.first_a[cell] + self.inner_a[element]), int(
            self.first_b[cell] + self.inner_b[element]
        )

    def coordinate_of(self, pair: int) -> int:
        """Shared number of one pair's coordinate."""
        return int(self.coordinates[pair // len(self.inner_a)])

    @cached_property
    def order(self) -> Ints:
        """[cells], the cells in the order of their coordinates."""
        return np.argsort(self.coordinates, kind="stable")

    @cached_property
    def starts(self) -> Ints:
        """[distinct coordinates], where each begins in `order`."""
        ascending = self.coordinates[self.order]
        return np.flatnonzero(np.diff(ascending, prepend=ascending[:1] - 1))

    @property
    def distinct(self) -> Ints:
        """The coordinates that there are, ascending."""
        return self.coordinates[self.order[self.starts]]

    @cached_property
    def rows_a(self) -> slice | Ints:
        """[cells, elements of a cell], where the elements lie in A, flat; a slice where they lie side by side."""
        return _rows(self.first_a, self.inner_a)

    @cached_property
    def rows_b(self) -> slice | Ints:
        """The same in B."""
        return _rows(self.first_b, self.inner_b)

    @classmethod
    def none(cls, reason: str) -> Pairs:
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty, empty, reason)

    @classmethod
    def whole(cls, count: int) -> Pairs:
        """All elements of two values of one size, which belong to no coordinate."""
        every = np.arange(count, dtype=np.int64)
        first = _ONE if count else every
        return cls(first, first, first, inner_a=every, inner_b=every)


def lie_densely(first: Ints, inner: Ints) -> bool:
    """Whether cells lie side by side, as their elements do."""
    width = len(inner)
    dense = width > 0 and int(inner[-1]) == width - 1
    return dense and len(first) > 0 and bool((first[1:] - first[:-1] == width).all())


def _rows(first: Ints, inner: Ints) -> slice | Ints:
    if lie_densely(first, inner):
        return slice(int(first[0]), int(first[0]) + len(first) * len(inner))
    return first[:, None] + inner
