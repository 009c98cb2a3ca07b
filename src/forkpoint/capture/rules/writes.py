"""Writes: what becomes of a value of which a part is written by index."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from forkpoint.capture.coordinates import NONE, Ids
from forkpoint.capture.labels import Label, spread
from forkpoint.capture.rules.call import (
    Call,
    UnknownMovementError,
    check_written,
)
from forkpoint.capture.rules.indexing import take
from forkpoint.capture.rules.registry import rule


@rule("setitem", "index_put_", "index_put", "_index_put_impl_")
def _setitem(call: Call) -> Label | None:
    target, index, value = call.arg(0, "input"), call.arg(1, "indices"), call.arg(2, "values")
    before = call.label(target)
    new = call.label(value)
    shape = tuple(target.shape)
    if new is None:
        return before
    check_written(shape)
    if isinstance(index, list) and call.name != "setitem":  # index_put: an index for each dimension
        index = tuple(slice(None) if i is None else i for i in index)
    place = take(call, np.arange(math.prod(shape), dtype=np.int32).reshape(shape), shape, index)

    def write(old: Ids | None, ids: Ids | None) -> Ids | None:
        if old is None and ids is None:
            return None
        full = np.full(shape, NONE, dtype=np.int32) if old is None else spread(old, shape).copy()
        written = np.full((1,), NONE, dtype=np.int32) if ids is None else ids
        while written.ndim > place.ndim and written.shape[0] == 1:
            written = written[0]
        full.reshape(-1)[place.reshape(-1)] = np.broadcast_to(written, place.shape).reshape(-1)
        return full

    q = write(None if before is None else before.q, new.q)
    k = write(None if before is None else before.k, new.k)
    assert q is not None
    return call.labels.make(q, k)


@rule("copy_")
def _copy(call: Call) -> Label | None:
    label = call.labels.merge([call.label(call.arg(1, "src", "other"))], call.args[0].dim())
    return label if label is not None else call.label(call.args[0])


@rule("index_add_", "index_add", "index_copy_", "index_copy")
def _index_add(call: Call) -> Label | None:
    target, dim, index = call.arg(0, "input"), call.arg(1, "dim"), call.arg(2, "index")
    source = call.arg(3, "source", "tensor", "src")
    new, before = call.label(source), call.label(target)
    if new is None:
        return before
    d = dim % target.dim()
    if new.q.shape[d] == 1 and source.shape[d] > 1:
        return call.labels.merge([before, new], target.dim())
    shape = tuple(target.shape)
    old = np.full((1,) * target.dim(), NONE, dtype=np.int32) if before is None else before.q
    wide = np.broadcast_shapes(
        spread(old, shape, [d]).shape, (*new.q.shape[:d], shape[d], *new.q.shape[d + 1 :])
    )
    full = np.broadcast_to(spread(old, shape, [d]), wide).copy()
    values = call.values(index).reshape(-1)
    rows = np.broadcast_to(new.q, (*wide[:d], len(values), *wide[d + 1 :]))
    _scatter_rows(
        call, np.moveaxis(full, d, 0), values, np.moveaxis(rows, d, 0), overwrite="copy" in call.name
    )
    return call.labels.make(full)


def _scatter_rows(call: Call, full: Ids, index: np.ndarray[Any, Any], rows: Ids, overwrite: bool) -> None:
    """Write rows of ids at an index; where different tokens meet, they become a set."""
    if overwrite:
        full[index] = rows
        return
    order = np.argsort(index, kind="stable")
    index, rows = index[order], rows[order]
    starts = np.flatnonzero(np.r_[True, index[1:] != index[:-1]]) if len(index) else []
    for start, stop in zip(starts, [*starts[1:], len(index)], strict=True):
        group = np.unique(rows[start:stop].reshape(stop - start, -1), axis=0)
        here = full[index[start]].reshape(-1)
        if len(group) == 1:
            joined = np.where((here == NONE) | (here == group[0]), group[0], -2)
        else:
            joined = np.full(here.shape, -2)
        for i in np.flatnonzero(joined == -2):
            joined[i] = call.labels.table.union(np.r_[group[:, i], here[i : i + 1]])
        full[index[start]] = joined.reshape(full[index[start]].shape)


@rule("scatter_", "scatter", "scatter_add_", "scatter_add", "scatter_reduce_", "scatter_reduce")
def _scatter(call: Call) -> Label | None:
    target, dim, index = call.arg(0, "input"), call.arg(1, "dim"), call.arg(2, "index")
    source = call.arg(3, "src", "value", "source")
    before, moving = call.label(target), call.label(index)
    new = call.label(source) if isinstance(source, Tensor) else moving
    d = dim % max(target.dim(), 1)
    label = new if new is not None else moving
    if label is None:
        return before
    if label.q.shape[d] == 1:
        shapes_match = all(target.shape[i] == index.shape[i] for i in range(target.dim()) if i != d)
        if shapes_match and (before is None or before.q.shape[d] == 1):
            return call.labels.merge([before, label], target.dim())
    values = call.values(index)
    check_written(tuple(target.shape))
    full = (
        np.full(tuple(target.shape), NONE, dtype=np.int32)
        if before is None
        else spread(before.q, tuple(target.shape)).copy()
    )
    ids = spread(label.q, tuple(values.shape))
    members: dict[tuple[int, ...], set[int]] = {}
    for at in np.ndindex(*values.shape):
        place = (*at[:d], int(values[at]), *at[d + 1 :])
        members.setdefault(place, set()).add(int(ids[at]))
    add = "add" in call.name or "reduce" in call.name
    for place, written in members.items():
        if add and full[place] != NONE:
            written.add(int(full[place]))
        full[place] = (
            written.pop() if len(written) == 1 else call.labels.table.union(np.asarray(list(written)))
        )
    return call.labels.make(full)


@rule("masked_scatter", "masked_scatter_")
def _masked_scatter(call: Call) -> Label | None:
    source = call.label(call.arg(2, "source"))
    if source is not None and (source.k is not None or not call.labels.table.are_images(source.q)):
        raise UnknownMovementError(f"no rule says how {call.name} moves tokens")
    return call.label(call.args[0])  # an image's features in the places of its tokens


@rule(
    "slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter", "pad_sequence", "take",
    "put", "put_",
)  # fmt: skip
def _unfollowed(call: Call) -> Label | None:
    """Functions that move tokens in ways that are not worth following."""
    if any(call.label(t) is not None for t in call.tensors()):
        raise UnknownMovementError(f"no rule says how {call.name} moves tokens")
    return None
