"""Indexing: subscripts, gathers and lookups."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.coordinates import Ids
from forkpoint.capture.labels import Label, Shape, spread
from forkpoint.capture.rules.call import (
    Call,
    UnknownMovementError,
    check_written,
    is_number,
)
from forkpoint.capture.rules.defaults import default
from forkpoint.capture.rules.registry import nothing, rule


@rule("getitem")
def _getitem(call: Call) -> Label | None:
    source, index = call.args[0], call.args[1]
    label = call.label(source)
    if label is None:
        return _label_of_index(call, index)
    moved = call.labels.apply(label, lambda ids: take(call, ids, tuple(source.shape), index))
    if moved is not None and moved.q.ndim != call.outputs[0].dim():
        raise UnknownMovementError("an index that forkpoint can't follow")
    return moved


def _label_of_index(call: Call, index: Any) -> Label | None:
    """A lookup in a table without tokens: the result belongs to the tokens of the index."""
    parts = index if isinstance(index, tuple) else (index,)
    tensors = [p for p in parts if isinstance(p, Tensor) and p.dtype != torch.bool]
    if not any(call.label(t) is not None for t in tensors):
        return None
    merged = call.labels.merge([call.label(t) for t in tensors], max(t.dim() for t in tensors))
    if merged is None:
        return None
    extra = call.outputs[0].dim() - merged.q.ndim
    if not isinstance(parts[0], Tensor) and extra:
        raise UnknownMovementError("a lookup by tokens behind other dimensions")
    return call.labels.apply(merged, lambda ids: ids.reshape(ids.shape + (1,) * extra))


def take(call: Call, ids: Ids, shape: Shape, index: Any) -> Ids:
    """The ids of `tensor[index]`: first what torch takes as views, then the index tensors at once."""
    parts = list(index) if isinstance(index, tuple) else [index]
    parts = [torch.tensor(p) if isinstance(p, list) else p for p in parts]
    parts = [call.plain(p) if is_number(p) else p for p in parts]
    consumed = sum(p.dim() if isinstance(p, Tensor) and p.dtype == torch.bool else p is not None for p in parts
                   if p is not Ellipsis and not isinstance(p, bool))  # fmt: skip
    if Ellipsis in [p for p in parts if not isinstance(p, Tensor)]:
        at = next(i for i, p in enumerate(parts) if p is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - consumed)
    parts += [slice(None)] * (len(shape) - sum(
        p.dim() if isinstance(p, Tensor) and p.dtype == torch.bool else p is not None for p in parts))  # fmt: skip
    basic: list[Any] = []
    advanced: list[Any] = []  # one entry for each dimension after the basic step
    sizes: list[int] = []
    d = 0
    for part in parts:
        if isinstance(part, bool):
            raise UnknownMovementError("an index by a Python bool")
        if part is None:
            basic.append(None)
            advanced.append(None)
            sizes.append(1)
            continue
        if isinstance(part, Tensor):
            width = part.dim() if part.dtype == torch.bool else 1
            basic += [slice(None)] * width
            advanced += [part, *[...] * (width - 1)]
            sizes += shape[d : d + width]
            d += width
            continue
        if isinstance(part, slice):
            if any(isinstance(bound, Tensor) for bound in (part.start, part.stop, part.step)):
                call.reads_values = True
            length = len(range(*part.indices(shape[d])))
            if ids.shape[d] == 1 and shape[d] != 1:
                basic.append(slice(None))
                sizes.append(length)
            else:
                basic.append(part)
                sizes.append(length)
            advanced.append(None)
        else:
            basic.append(0 if ids.shape[d] == 1 else int(part))
        d += 1
    ids = ids[tuple(basic)]
    if not any(isinstance(a, Tensor) for a in advanced):
        return ids
    return _take_advanced(call, ids, tuple(sizes), advanced)


def _take_advanced(call: Call, ids: Ids, sizes: Shape, advanced: list[Any]) -> Ids:
    touched = [d for d, part in enumerate(advanced) if part is not None]
    constant = all(ids.shape[d] == 1 for d in touched)
    if not constant:
        ids = spread(ids, sizes, touched)
    index: list[Any] = []
    for d, part in enumerate(advanced):
        if part is None:
            index.append(slice(None))
        elif part is Ellipsis:
            continue  # a later dimension of a bool mask, already there
        elif part.dtype == torch.bool:
            if constant:
                index += [np.zeros(1, dtype=np.int64)] * part.dim()
            else:
                index += list(np.nonzero(call.values(part)))
        elif constant:
            index.append(np.zeros((1,) * part.dim(), dtype=np.int64))
        else:
            values = call.values(part).astype(np.int64)
            index.append(np.where(values < 0, values + sizes[d], values))
    return ids[tuple(index)]


@rule("index_select")
def _index_select(call: Call) -> Label | None:
    source, dim, index = call.arg(0, "input"), call.arg(1, "dim"), call.arg(2, "index")
    label = call.label(source)
    d = dim % max(source.dim(), 1)
    if label is None or all(ids is None or ids.shape[d] == 1 for ids in (label.q, label.k)):
        of_index = call.label(index)
        if of_index is None or label is not None:
            return label
        shape = [1] * source.dim()
        shape[d] = of_index.q.size
        return call.labels.make(of_index.q.reshape(shape))
    values = call.values(index).reshape(-1)
    return call.labels.apply(
        label, lambda ids: np.take(spread(ids, tuple(source.shape), [d]), values, axis=d)
    )


@rule("gather", "take_along_dim")
def _gather(call: Call) -> Label | None:
    if call.name == "gather":
        source, dim, index = call.arg(0, "input"), call.arg(1, "dim"), call.arg(2, "index")
    else:
        source, index, dim = call.arg(0, "input"), call.arg(1, "indices"), call.arg(2, "dim")
    label, out = call.label(source), tuple(call.outputs[0].shape)
    if label is None:
        return call.label(index)
    d = dim % source.dim()

    def move(ids: Ids) -> Ids:
        if ids.shape[d] == 1:
            return ids
        values = call.values(index)
        check_written(out)
        base = spread(ids, tuple(source.shape))[
            tuple(slice(0, n) if i != d else slice(None) for i, n in enumerate(values.shape))
        ]
        return np.take_along_axis(base, values, axis=d)

    return call.labels.apply(label, move)


@rule("masked_select")
def _masked_select(call: Call) -> Label | None:
    source, mask = call.arg(0, "input"), call.arg(1, "mask")
    label = call.label(source)
    if label is None:
        return None
    shape = tuple(torch.broadcast_shapes(source.shape, mask.shape))
    check_written(shape)
    chosen = np.broadcast_to(call.values(mask), shape)
    return call.labels.apply(label, lambda ids: np.broadcast_to(ids, shape)[chosen])


@rule("where")
def _where(call: Call) -> Label | None | list[Label | None]:
    if len(call.args) + len(call.kwargs) > 1:
        return default(call)
    return _coordinates_of_nonzero(call)


@rule("nonzero", "argwhere")
def _coordinates_of_nonzero(call: Call) -> Label | None | list[Label | None]:
    source = call.arg(0, "condition", "input")
    label = call.label(source)
    if label is None:
        return nothing(call)
    check_written(tuple(source.shape))
    chosen = spread(label.q, tuple(source.shape))[call.values(source) != 0]
    tail = (1,) * (call.outputs[0].dim() - 1)
    return call.labels.make(chosen.reshape(-1, *tail))
