"""Which elements of two tensors stand for the same thing: written compactly, and as indexing that can be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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

Index = tuple[Any, ...]


def as_indexing(sharing: Sharing, shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> tuple[str, str] | None:
    """The same alignment as two index expressions, if there are any that one can read.

    >>> whole = Pairs(np.arange(6), np.array([0, 1, 2, 4, 5, 6]), np.zeros(6, dtype=np.int64))
    >>> as_indexing(Sharing.of(whole), (2, 3), (2, 4))
    ('', '[:, :3]')
    """
    if not len(sharing):
        return None
    at_a, at_b = (index.numpy() for index in sharing.indices())
    box_a, box_b = _box(at_a, shape_a), _box(at_b, shape_b)
    if box_a is None or box_b is None:
        return None
    # Both orders must be the same: A's elements ascend, so B's must run through its box in that order too.
    if not np.array_equal(at_b, _flat(box_b, shape_b)) or not np.array_equal(at_a, _flat(box_a, shape_a)):
        return None
    texts = _text(box_a, shape_a), _text(box_b, shape_b)
    return None if texts[0] is None or texts[1] is None else (texts[0], texts[1])


def _box(flat: Ints, shape: tuple[int, ...]) -> list[Ints] | None:
    """For each dimension the indices that occur, if every combination of them does."""
    if not shape:
        return []
    places = [np.unique(axis) for axis in np.unravel_index(flat, shape)]
    return places if math.prod(map(len, places)) == len(flat) else None


def _flat(box: list[Ints], shape: tuple[int, ...]) -> Ints:
    if not shape:
        return np.zeros(1, dtype=np.int64)
    return np.ravel_multi_index(np.ix_(*box), shape).reshape(-1)


def _text(box: list[Ints], shape: tuple[int, ...]) -> str | None:
    parts: list[str] = []
    lists = 0
    for places, size in zip(box, shape, strict=True):
        text = _slice(places, size)
        if text is None:
            if len(places) > MAX_LIST or lists:
                return None
            lists += 1
            text = str(places.tolist())
        parts.append(text)
    while parts and parts[-1] == ":":
        parts.pop()
    return f"[{', '.join(parts)}]" if parts else ""


def _slice(places: Ints, size: int) -> str | None:
    if len(places) == size:
        return ":"
    if len(places) == 1:
        return f"{places[0]}:{places[0] + 1}"
    steps = np.unique(np.diff(places))
    if len(steps) > 1:
        return None
    step, start, stop = int(steps[0]), int(places[0]), int(places[-1]) + 1
    text = f"{start or ''}:{'' if stop == size else stop}"
    return text if step == 1 else f"{text}:{step}"
