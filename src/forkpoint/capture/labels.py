"""Labels: which coordinate every element of a tensor belongs to, without an array of its size.

A label holds an array of coordinate ids, *compressed*: it has as many dimensions as the tensor, and
size 1 wherever the coordinate does not depend on that dimension. Hidden states [B, T, H] have ids
[B, T, 1]. Attention weights [B, heads, Tq, Tk] have two: the query's [B, 1, Tq, 1] and the key's
[B, 1, 1, Tk].

So the dimension that follows the tokens is known, whatever sizes happen to coincide: it is where
the ids vary, and the ids got there through the very operations that moved the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.coordinates import NONE, CoordinateTable, Ids
from forkpoint.runs.layout import Layout

Shape = tuple[int, ...]
T = TypeVar("T", bound=np.generic)


class Label:
    """The coordinate of each element of a value. Equal labels of a run are the same object, so a label can key a cache.

    Attributes:
        q: compressed ids of the coordinate that each element belongs to.
        k: compressed ids of the key that each element looks at, for attention weights; else None.
        uid: a number for this label in its run, from 1.
        depth: for a value of one column that a loop over columns works on, by how many computations it lies behind what
            was taken from that column; else 0.
    """

    __slots__ = ("depth", "k", "q", "uid")

    def __init__(self, q: Ids, k: Ids | None, uid: int, depth: int = 0) -> None:
        self.q, self.k, self.uid, self.depth = q, k, uid, depth


MAX_DEPTH = 255
"""The largest `Label.depth`: beyond it computations are no longer counted."""


MAX_LAYOUTS = 8
"""How many layouts' labels are kept for the next runs of the same layout."""
MAX_KEPT = 1 << 16
"""Labels, answers or marks of a layout above which they are dropped, not kept for the next run."""


class Labels:
    """Makes and merges the labels of all runs of one layout.

    Attributes:
        answers, marks, treatments, histories, intakes, lost_some: caches of what recorders work out from labels; kept here
            so that the next run of the layout finds them.
    """

    def __init__(self, table: CoordinateTable) -> None:
        self.table = table
        self._interned: dict[object, Label] = {}
        self.answers: dict[frozenset[int], dict[Any, Any]] = {}
        self.marks: dict[Any, Any] = {}
        self.treatments: dict[Any, Any] = {}
        self.histories: dict[Any, Any] = {}
        self.intakes: dict[Any, Any] = {}
        self.lost_some: dict[tuple[Label | None, int, str], bool] = {}

    @classmethod
    def of(cls, layout: Layout) -> Labels:
        """The labels of a layout, those of an earlier run if there was one."""
        key = layout.content
        labels = _recent.pop(key, None)
        if labels is None or labels.size > MAX_KEPT:
            labels = cls(CoordinateTable(layout))
        _recent[key] = labels
        while len(_recent) > MAX_LAYOUTS:
            del _recent[next(iter(_recent))]
        return labels

    @property
    def size(self) -> int:
        """The number of entries of the largest cache."""
        answers = max(map(len, self.answers.values()), default=0)
        caches = (self._interned, self.answers, self.marks, self.treatments, self.intakes)
        return max(answers, *map(len, caches))

    def make(self, q: Ids, k: Ids | None = None, depth: int = 0) -> Label | None:
        """The label with these ids, compressed; None where no token has a part in the value.

        Args:
            q, k: as the attributes of a label, compressed or not.
            depth: taken for a value of one column of each row alone, where a call has several columns; else 0.
        """
        q = compress(q)
        k = None if k is None else compress(k)
        if k is not None and bool((k == NONE).all()):
            k = None
        if bool((q == NONE).all()):
            if k is None:
                return None
            q, k = k, None
        if depth and (k is not None or not self.table.one_of_many(q)):
            depth = 0
        key = (q.shape, q.tobytes(), None if k is None else (k.shape, k.tobytes()), depth)
        label = self._interned.get(key)
        if label is None:
            label = self._interned[key] = Label(q, k, len(self._interned) + 1, depth)
        return label

    def apply(self, label: Label | None, move: Callable[[Ids], Ids]) -> Label | None:
        """The label after a movement of elements, applied to both of its arrays."""
        if label is None:
            return None
        return self.make(move(label.q), None if label.k is None else move(label.k), label.depth)

    def deeper(self, label: Label | None) -> Label | None:
        """The label of what is computed from values of a label: the same ids, and a depth that is larger by one."""
        if label is None or not self.table.one_of_many(label.q):
            return label
        return self.make(label.q, label.k, min(label.depth + 1, MAX_DEPTH))

    # ------------------------------------------------------------------ elementwise

    def merge(self, labels: Sequence[Label | None], ndim: int) -> Label | None:
        """The label of an elementwise combination of broadcast operands."""
        merged: Label | None = None
        for label in labels:
            if label is None:
                continue
            label = self.apply(label, lambda ids: ids.reshape((1,) * (ndim - ids.ndim) + ids.shape))
            assert label is not None
            merged = label if merged is None else self._merge_two(merged, label)
        return self.deeper(merged)

    def _merge_two(self, x: Label, y: Label) -> Label:
        if x is y:
            return x
        if np.array_equal(x.q, y.q):
            x, y = (x, y) if x.depth >= y.depth else (y, x)
            return x if x.k is not None or y.k is None else y
        if x.k is not None or y.k is not None:
            return x if x.k is not None else y
        return self._merge_single(x, y)

    def _merge_single(self, x: Label, y: Label) -> Label:
        if self._outer(x.q, y.q):
            pair = self.make(x.q, y.q)
            assert pair is not None
            return pair
        qx, qy = np.broadcast_arrays(x.q, y.q)
        rank_x, rank_y = self.table.kind_of(qx), self.table.kind_of(qy)
        q = np.where(rank_x >= rank_y, qx, qy)
        q = np.where(self._holes(x.q, y.q) | self._holes(y.q, x.q), NONE, q)
        clash = (rank_x == rank_y) & (qx != qy)
        if clash.any():
            q = np.where(clash, self._settle(x, y, qx, qy), q)
        depth = max((label.depth for label in (x, y) if np.array_equal(label.q, q)), default=0)
        merged = self.make(q.astype(np.int32), depth=depth)
        assert merged is not None
        return merged

    def _settle(self, x: Label, y: Label, qx: Ids, qy: Ids) -> Ids:
        """Whose coordinate the elements have where two columns of the input meet.

        That of the operand that varies along more dimensions (one token against all), or whose columns are
        where the input has them (against a shifted one). In a loop over columns, forward or backward, it is the one
        that a pass has just taken up: what was computed less far behind its column, against the state of earlier
        passes. Else it is the later column.
        """
        vx = {d for d, size in enumerate(x.q.shape) if size > 1}
        vy = {d for d, size in enumerate(y.q.shape) if size > 1}
        if vx != vy and (vx < vy or vy < vx):
            return qy if vx < vy else qx
        in_place = self.table.in_place(x.q), self.table.in_place(y.q)
        if in_place[0] != in_place[1]:
            return qx if in_place[0] else qy
        if x.depth != y.depth and all(self.table.one_of_many(label.q) for label in (x, y)):
            return qx if x.depth < y.depth else qy
        return self.table.later(qx, qy)

    def _outer(self, x: Ids, y: Ids) -> bool:
        """Whether combining the two makes a table of (query, key), as q @ k.T does."""
        if not (self.table.is_slot(x).any() and self.table.is_slot(y).any()):
            return False
        vx = {d for d in range(x.ndim) if _several_along(x, d)}
        vy = {d for d in range(y.ndim) if _several_along(y, d)}
        return bool(vx - vy) and bool(vy - vx)

    def _holes(self, x: Ids, y: Ids) -> NDArray[np.bool_]:
        """Where x holds no token along a dimension that its columns follow and y has not: chunks padded to a size.

        A dimension along which no two columns of the input lie (a buffer into a part of which something was written)
        follows none: what holds no token there is a constant, and the combination is y's.
        """
        own = [d for d, (n, m) in enumerate(zip(x.shape, y.shape, strict=True)) if n > 1 and m == 1]
        if own and any(_several_along(np.where(self.table.is_slot(x), x, NONE), d) for d in own):
            return x == NONE
        return np.zeros((1,) * x.ndim, dtype=bool)

    # ------------------------------------------------------------------ reductions

    def reduce(self, label: Label | None, dims: Sequence[int], keepdim: bool) -> Label | None:
        """The label after the dimensions `dims` are summed (or averaged, or maximised) away."""
        if label is None:
            return None
        q, k = label.q, label.k
        mixes_q = any(q.shape[d] > 1 for d in dims)
        if k is not None and any(k.shape[d] > 1 for d in dims):
            k = None
        elif k is not None and mixes_q:
            q, k, mixes_q = k, None, False
        if mixes_q:
            q = self._unions(q, dims)
        if not keepdim:
            q = np.squeeze(q, tuple(dims))
            k = None if k is None else np.squeeze(k, tuple(dims))
        return self.make(q, k, min(label.depth + 1, MAX_DEPTH))

    def _unions(self, q: Ids, dims: Sequence[int]) -> Ids:
        rest = [d for d in range(q.ndim) if d not in dims]
        rows = np.transpose(q, (*rest, *dims)).reshape(math.prod(q.shape[d] for d in rest), -1)
        distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
        unions = np.asarray([self.table.union(row) for row in distinct], dtype=np.int32)
        shape = tuple(1 if d in dims else size for d, size in enumerate(q.shape))
        return unions[inverse.reshape(-1)].reshape(shape)


_recent: dict[Hashable, Labels] = {}
"""By layout, the least recently used first."""


def _several_along(ids: Ids, d: int) -> bool:
    """Whether there are two different ids along a dimension, `NONE` not counted."""
    highest = ids.max(axis=d, keepdims=True)
    return bool(((ids != highest) & (ids != NONE)).any())


def fits(label: Label | None, value: Tensor) -> bool:
    """Whether a label's arrays broadcast to a value: a rule that says otherwise is wrong about the function."""
    if label is None:
        return True
    shape = value.shape
    return all(
        ids is None
        or (ids.ndim == len(shape) and all(n in (1, m) for n, m in zip(ids.shape, shape, strict=True)))
        for ids in (label.q, label.k)
    )


# ---------------------------------------------------------------------- moving ids


def compress(ids: Ids) -> Ids:
    """Shrink every dimension along which the ids don't change to size 1.

    >>> compress(np.array([[1, 1], [2, 2]], dtype=np.int32)).tolist()
    [[1], [2]]
    """
    for d in range(ids.ndim):
        size = ids.shape[d]
        if size > 1:
            first = ids[(slice(None),) * d + (slice(0, 1),)]
            if ids.strides[d] == 0 or bool((ids == first).all()):
                ids = first
        elif size == 0:
            ids = np.full((*ids.shape[:d], 1, *ids.shape[d + 1 :]), NONE, dtype=np.int32)
    return np.ascontiguousarray(ids, dtype=np.int32).reshape(ids.shape)


def spread(ids: NDArray[T], shape: Shape, dims: Sequence[int] | None = None) -> NDArray[T]:
    """Undo the compression in some dimensions (default: all), as a view."""
    wanted = range(len(shape)) if dims is None else dims
    return np.broadcast_to(ids, tuple(shape[d] if d in wanted else ids.shape[d] for d in range(len(shape))))


def reshape(ids: Ids, old: Shape, new: Shape) -> Ids:
    """The ids of a tensor of shape `old` after a reshape to `new`.

    Dimensions are split into the smallest groups whose sizes multiply to the same number; only
    within a group do elements move, so only a group that mixes the coordinate with other
    dimensions has to be written out.

    >>> ids = np.arange(6, dtype=np.int32).reshape(2, 3, 1)   # [B, T, H] with H = 8
    >>> reshape(ids, (2, 3, 8), (2, 3, 4, 2)).shape, reshape(ids, (2, 3, 8), (6, 8)).shape
    ((2, 3, 1, 1), (6, 1))
    """
    if 0 in old:
        return np.full((1,) * len(new), NONE, dtype=np.int32)
    shape_now: list[int] = []
    shape_then: list[int] = []
    broadcast: list[int] = []
    for dims_old, dims_new in _groups(old, new):
        varies = any(ids.shape[d] > 1 for d in dims_old)
        for d in dims_old:
            broadcast.append(old[d] if varies else 1)
        shape_now += [broadcast[d] for d in dims_old]
        shape_then += [new[d] if varies else 1 for d in dims_new]
    return np.broadcast_to(ids, shape_now).reshape(shape_then)


def split_blocks(arrays: Sequence[Ids], shape: Shape) -> tuple[list[Ids], Shape]:
    """Split each dimension in which ids come in blocks, so that they vary along one of the two parts alone.

    Rows and heads in one dimension, as `bmm` takes them, are two dimensions again.

    >>> ids = np.asarray([3, 3, 5, 5], dtype=np.int32)
    >>> [ids], shape = split_blocks([ids], (4,))
    >>> ids.tolist(), shape
    ([[3], [5]], (2, 2))
    """
    d = 0
    while d < len(shape):
        size = shape[d]
        varying = [np.moveaxis(ids, d, 0).reshape(size, -1) for ids in arrays if ids.shape[d] > 1]
        changes = [np.flatnonzero((ids[1:] != ids[:-1]).any(axis=1)) + 1 for ids in varying]
        block = math.gcd(size, *np.concatenate(changes).tolist()) if changes else 1
        if 1 < block < size:
            arrays = [
                ids.reshape(*ids.shape[:d], -1, block if ids.shape[d] > 1 else 1, *ids.shape[d + 1 :])
                for ids in arrays
            ]
            shape = (*shape[:d], size // block, block, *shape[d + 1 :])
            arrays = [np.take(ids, [0], axis=d + 1) for ids in arrays]
            d += 1
        d += 1
    return list(arrays), shape


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        size_left = size_right = 1
        while True:
            if size_left == size_right and (left or right):
                break
            if size_left <= size_right and i < len(old):
                left.append(i)
                size_left *= old[i]
                i += 1
            elif j < len(new):
                right.append(j)
                size_right *= new[j]
                j += 1
            else:
                left.append(i)
                size_left *= old[i]
                i += 1
        groups.append((left, right))
    return groups
