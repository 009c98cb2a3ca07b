"""Movements: views, transposes and concatenations, replayed on the ids themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.coordinates import NONE, Ids
from forkpoint.capture.labels import Label, Shape, reshape, spread
from forkpoint.capture.rules.call import (
    MAX_WRITTEN_OUT,
    Call,
    UnknownMovementError,
    check_size,
    tensors_in,
)
from forkpoint.capture.rules.registry import nothing, rule
from forkpoint.support.arrays import tensor_of


@rule("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "_unsafe_view", "ravel")
def _reshape(call: Call) -> Label | None:
    source = call.arg(0, "input", "self")
    label, out = call.label(source), tuple(call.outputs[0].shape)
    if label is None or tuple(source.shape) == out:
        return label
    if source.numel() != call.outputs[0].numel():
        raise UnknownMovementError(f"{call.name} to a dtype of another size")
    check_size([source.numel() if label.q.size > 1 else 1])
    return call.labels.apply(label, lambda ids: reshape(ids, tuple(source.shape), out))


@rule(
    "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "T", "mT", "H", "mH", "adjoint",
    "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to",
    "select", "narrow", "split", "chunk", "tensor_split", "unbind", "unsafe_split", "unsafe_chunk",
    "split_with_sizes", "diagonal", "unfold", "flip", "roll", "repeat", "tile", "rot90", "fliplr", "flipud",
    "atleast_1d", "atleast_2d", "atleast_3d", "hsplit", "vsplit", "dsplit", "view_as_real", "view_as_complex",
)  # fmt: skip
def _replay(call: Call) -> Label | None | list[Label | None]:
    """Run the same function on the ids; views cost nothing, since constant dimensions have stride 0."""
    source = call.arg(0, "input", "self")
    label = call.label(source)
    if label is None:
        return nothing(call)
    if call.name in ("view_as_real", "view_as_complex"):
        return call.labels.apply(label, lambda ids: _resize_last(ids, call.outputs[0].dim()))
    if sum(o.numel() for o in call.outputs) > MAX_WRITTEN_OUT and call.name in (
        "roll",
        "flip",
        "repeat",
        "tile",
    ):
        raise UnknownMovementError("too large for its coordinates to be followed")
    parts = [_replay_one(call, source, label.q)]
    if label.k is not None:
        parts.append(_replay_one(call, source, label.k))
    return [
        call.labels.make(parts[0][i], parts[1][i] if len(parts) > 1 else None, label.depth)
        for i in range(len(call.outputs))
    ]


def _resize_last(ids: Ids, ndim: int) -> Ids:
    return ids.reshape((*ids.shape, 1)) if ndim > ids.ndim else ids.reshape(ids.shape[:-1])


def _replay_one(call: Call, source: Tensor, ids: Ids) -> list[Ids]:
    full = tensor_of(np.array(ids, copy=True)).expand(source.shape)
    rest = tuple(map(call.plain, call.args[1:]))
    kwargs = {k: call.plain(v) for k, v in call.kwargs.items() if k not in ("input", "self")}
    function = call.func
    if call.name in ("T", "mT", "H", "mH"):
        return [(full.permute(*range(full.dim() - 1, -1, -1)) if call.name == "T" else full.mT).numpy()]
    if "aten" in type(function).__module__ or isinstance(function, torch._ops.OpOverload):
        function = getattr(torch.ops.aten, call.name.split(".")[-1])
    with torch.no_grad():
        return [t.numpy() for t in tensors_in((function(full, *rest, **kwargs),))]


@rule("as_strided")
def _as_strided(call: Call) -> Label | None:
    """The ids are put into a storage laid out like the source's, and read from it as the value is."""
    source, out = call.arg(0, "input", "self"), call.outputs[0]
    elements = source.untyped_storage().nbytes() // source.element_size()
    if elements > MAX_WRITTEN_OUT:
        raise UnknownMovementError("too large for its coordinates to be followed")

    def move(ids: Ids) -> Ids:
        held = torch.full((elements,), NONE, dtype=tensor_of(ids).dtype)
        full = tensor_of(np.array(spread(ids, tuple(source.shape)), copy=True))
        held.as_strided(source.shape, source.stride(), source.storage_offset()).copy_(full)
        return held.as_strided(out.shape, out.stride(), out.storage_offset()).numpy().copy()

    return call.labels.apply(call.label(source), move)


@rule("squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_")
def _reshape_in_place(call: Call) -> Label | None:
    """The tensor has its new shape already, so the ids are moved as they are, compressed."""
    label, ndim = call.label(call.args[0]), call.outputs[0].dim()
    if label is None or (call.name == "squeeze_" and label.q.ndim == ndim):
        return label
    function = getattr(torch, call.name.removesuffix("_"))

    def move(ids: Ids) -> Ids:
        return function(tensor_of(ids), *map(call.plain, call.args[1:]), **call.kwargs).numpy()

    return call.labels.apply(label, move)


@rule("cat", "concat", "concatenate")
def _cat(call: Call) -> Label | None:
    tensors = list(call.arg(0, "tensors"))
    dim = call.arg(1, "dim", "axis", default=0)
    parts = [t for t in tensors if not (t.dim() == 1 and t.numel() == 0 and call.outputs[0].dim() != 1)]
    return _join(call, [(call.label(t), tuple(t.shape)) for t in parts], dim % max(call.outputs[0].dim(), 1))


@rule("stack")
def _stack(call: Call) -> Label | None:
    dim = call.arg(1, "dim", default=0) % call.outputs[0].dim()
    parts: list[tuple[Label | None, Shape]] = []
    for t in call.arg(0, "tensors"):
        shape = tuple(t.shape)
        label = call.labels.apply(call.label(t), lambda ids: np.expand_dims(ids, dim))
        parts.append((label, (*shape[:dim], 1, *shape[dim:])))
    return _join(call, parts, dim)


def _join(call: Call, parts: list[tuple[Label | None, Shape]], dim: int) -> Label | None:
    if all(label is None for label, _ in parts):
        return None
    ndim = call.outputs[0].dim()
    arrays: list[Ids] = []
    rows = _rows_of(call, parts, dim)
    for which in ("q", "k"):
        pieces: list[Ids] = []
        for label, shape in parts:
            label = rows if label is None else label
            ids = None if label is None else getattr(label, which)
            if ids is None:
                ids = np.full((1,) * ndim, NONE, dtype=np.int32)
            pieces.append(spread(ids, shape, [dim]))
        others = np.broadcast_shapes(*[(*p.shape[:dim], 1, *p.shape[dim + 1 :]) for p in pieces])
        grown = [np.broadcast_to(p, (*others[:dim], p.shape[dim], *others[dim + 1 :])) for p in pieces]
        arrays.append(np.concatenate(grown, axis=dim))
    return call.labels.make(arrays[0], arrays[1])


def _rows_of(call: Call, parts: list[tuple[Label | None, Shape]], dim: int) -> Label | None:
    """The label of what is put beside an image's patches in its row (a class token): the image's; None for other parts."""
    label = next(label for label, _ in parts if label is not None)
    if label.k is not None or label.q.shape[dim] > 1 or not call.labels.table.are_rows(label.q):
        return None
    return label if all(other is None or other is label for other, _ in parts) else None


@rule("pad", "constant_pad_nd")
def _pad(call: Call) -> Label | None:
    source = call.arg(0, "input")
    label = call.label(source)
    if label is None:
        return None
    widths = list(call.arg(1, "pad"))
    mode = "constant" if call.name == "constant_pad_nd" else call.arg(2, "mode", default="constant")

    def move(ids: Ids) -> Ids:
        for i in range(len(widths) // 2):
            d, (left, right) = ids.ndim - 1 - i, (int(widths[2 * i]), int(widths[2 * i + 1]))
            if left or right:
                if ids.shape[d] == 1 and mode != "constant":
                    continue  # the same coordinate all along
                ids = _pad_dim(spread(ids, tuple(source.shape), [d]), d, left, right, str(mode))
        return ids

    return call.labels.apply(label, move)


def _pad_dim(ids: Ids, d: int, left: int, right: int, mode: str) -> Ids:
    size = ids.shape[d]
    index = np.arange(-left, size + right)
    inside = (index >= 0) & (index < size)
    if mode == "constant":
        ids = np.take(ids, np.clip(index, 0, size - 1), axis=d)
        shape = tuple(-1 if i == d else 1 for i in range(ids.ndim))
        return np.where(inside.reshape(shape), ids, NONE).astype(np.int32)
    if mode == "circular":
        return np.take(ids, index % size, axis=d)
    if mode == "reflect":
        index = np.abs(index)
        index = np.where(index >= size, 2 * (size - 1) - index, index)
    return np.take(ids, np.clip(index, 0, size - 1), axis=d)


@rule("repeat_interleave")
def _repeat_interleave(call: Call) -> Label | None:
    source, repeats = call.arg(0, "input", "self"), call.arg(1, "repeats")
    dim, shape = call.arg(2, "dim"), tuple(source.shape)

    def move(ids: Ids) -> Ids:
        if dim is not None and ids.shape[dim] == 1:
            return ids
        counts = call.values(repeats) if isinstance(repeats, Tensor) else repeats
        return np.repeat(spread(ids, shape, None if dim is None else [dim % len(shape)]), counts, axis=dim)

    return call.labels.apply(call.label(source), move)
