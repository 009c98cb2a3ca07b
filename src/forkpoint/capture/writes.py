"""Writes into a part of a tensor: what they wrote, whose tokens that is, and who else sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.coordinates import NONE, Ids
from forkpoint.capture.labels import Label, Labels, Shape, fits, spread
from forkpoint.capture.rules import Call, UnknownMovementError, take

INDEXED_WRITES = frozenset({"setitem", "index_put_", "index_add_", "index_copy_"})
"""Functions that write some elements of their first argument and leave the others as they are.

A loop over experts writes each token's row when its expert comes by: what it leaves alone has not passed.
"""


@dataclass(frozen=True)
class PartialWrite:
    """The part of a tensor that an indexed write wrote.

    Attributes:
        value: the elements that were written.
        label: of these elements.
        whole: the tensor after the write.
        index: `whole[index]` is `value`.
    """

    value: Tensor
    label: Label | None
    whole: Tensor
    index: Any

    def alone(self, labels: Labels, whole: Label | None) -> Label | None:
        """The label `whole` of the tensor, with `NONE` for all elements that were not written."""
        shape = tuple(self.whole.shape)
        mark = torch.zeros(shape, dtype=torch.bool, device=self.whole.device)
        mark[self.index] = True
        written = mark.cpu().numpy()
        return labels.apply(whole, lambda ids: np.where(written, spread(ids, shape), NONE).astype(np.int32))


def written_by(call: Call, whole: Tensor, label: Label | None) -> PartialWrite | None:
    """What an indexed write wrote; None where that can't be told from the rest.

    Args:
        call: the finished call.
        whole: the value of its first argument, after the write.
        label: that of the whole.
    """
    try:
        index = _index(call)
        part = whole[index]
        moved = call.labels.apply(label, lambda ids: take(call, ids, tuple(whole.shape), index))
    except (RuntimeError, IndexError, KeyError, TypeError, ValueError, UnknownMovementError):
        return None
    return PartialWrite(part, moved, whole, index) if fits(moved, part) else None


def _index(call: Call) -> Any:
    """The index of what was written, as `target[index]` takes it."""
    if call.name == "setitem":
        return call.args[1]
    if call.name == "index_put_":
        return tuple(slice(None) if part is None else part for part in call.arg(1, "indices"))
    dim, rows = call.arg(1, "dim"), call.arg(2, "index")
    return (*[slice(None)] * (dim % call.args[0].dim()), rows.reshape(-1).unique())


# ---------------------------------------------------------------------- shared memory


@dataclass(frozen=True)
class Window:
    """Where the elements of a view lie among those of its contiguous base."""

    base: Shape
    shape: Shape
    strides: Shape
    offset: int

    @staticmethod
    def of(view: Tensor, base: Tensor) -> Window:
        offset = int(view.storage_offset()) - int(base.storage_offset())
        return Window(tuple(base.shape), tuple(view.shape), view.stride(), offset)

    def read(self, labels: Labels, base: Label | None) -> Label | None:
        """The label of the view, from that of its base."""
        return labels.apply(base, lambda ids: self._on(np.ascontiguousarray(spread(ids, self.base))))

    def write(self, labels: Labels, base: Label | None, view: Label) -> Label | None:
        """The label of the base, after a write to the view."""
        old_q, old_k = (None, None) if base is None else (base.q, base.k)
        q = self._written(old_q, view.q)
        return labels.make(q, None if old_k is None and view.k is None else self._written(old_k, view.k))

    def _written(self, old: Ids | None, new: Ids | None) -> Ids:
        full = np.full(self.base, NONE, dtype=np.int32) if old is None else spread(old, self.base).copy()
        self._on(full)[...] = NONE if new is None else new
        return full

    def _on(self, ids: Ids) -> Ids:
        strides = tuple(ids.itemsize * stride for stride in self.strides)
        return np.lib.stride_tricks.as_strided(ids.reshape(-1)[self.offset :], self.shape, strides)
