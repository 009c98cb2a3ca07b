"""Windows that slide over columns: convolutions and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from forkpoint.capture.coordinates import NONE, Ids
from forkpoint.capture.labels import Label
from forkpoint.capture.rules.call import (
    Call,
)
from forkpoint.capture.rules.registry import rule


@rule("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Label | None:
    spatial = int(call.name[4])
    weight = call.arg(1, "weight")
    return _windows(
        call, spatial, list(weight.shape[2:]), call.arg(3, "stride", default=1), call.arg(4, "padding", default=0),
        call.arg(5, "dilation", default=1), channels=True,
    )  # fmt: skip


@rule("max_pool1d", "avg_pool1d", "max_pool2d", "avg_pool2d")
def _pool(call: Call) -> Label | None:
    kernel = call.arg(1, "kernel_size")
    return _windows(
        call, int(call.name[-2]), kernel, call.arg(2, "stride", default=None) or kernel,
        call.arg(3, "padding", default=0), 1, channels=False,
    )  # fmt: skip


def _windows(
    call: Call, spatial: int, kernel: Any, stride: Any, padding: Any, dilation: Any, *, channels: bool
) -> Label | None:
    """A sliding window makes one output of several tokens: which of them it belongs to.

    With stride 1 it is the place in the window that keeps the most tokens: the middle with as much padding
    on both sides, and else the last, as a causal layer has it. With a larger stride it is the first
    of the window, and a window that reaches into padding belongs to no token (its frame is not counted by
    the models' own length functions).

    A column kept of an earlier call is there for the windows of later ones. Its own window, where it begins before
    what was kept, is cut short: what comes of it is no value of its token.
    """
    source = call.arg(0, "input")
    label = call.label(source)
    if label is None:
        return None

    def per_dim(value: Any) -> list[Any]:
        return list(value) if isinstance(value, (tuple, list)) else [value] * spatial

    kernels, strides, dilations = per_dim(kernel), per_dim(stride), per_dim(dilation)
    first = source.dim() - spatial
    if channels:
        label = call.labels.reduce(label, [first - 1], keepdim=True)
        assert label is not None

    def move(ids: Ids) -> Ids:
        for i in range(spatial):
            d = first + i
            alone = int(source.shape[d]) == 1 and bool(call.labels.table.is_slot(ids).all())
            if ids.shape[d] == 1 and not alone:
                continue
            out, step, reach = int(call.outputs[0].shape[d]), int(strides[i]), int(kernels[i])
            spread_by = int(dilations[i])
            before = _padding_before(padding, i, reach, spread_by)
            windows = np.arange(out)[:, None] * step - before + np.arange(reach)[None, :] * spread_by
            inside = (windows >= 0) & (windows < ids.shape[d])
            moved = np.moveaxis(ids, d, 0)
            held = np.where(
                inside.reshape(*inside.shape, *[1] * (ids.ndim - 1)),
                moved[np.clip(windows, 0, ids.shape[d] - 1)],
                NONE,
            )
            ids = np.moveaxis(_of_window(call, held, step), 0, d).astype(np.int32)
        return ids

    return call.labels.apply(label, move)


def _padding_before(padding: Any, i: int, kernel: int, dilation: int) -> int:
    if padding == "same":
        return (kernel - 1) * dilation // 2
    if padding == "valid":
        return 0
    return int(padding[i] if isinstance(padding, (tuple, list)) else padding)


def _of_window(call: Call, held: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, Any]:
    """The coordinate of each window, from the ids that it holds, [outputs, kernel, ...]."""
    kernel, table = held.shape[1], call.labels.table
    if step == 1:
        counts = [len(np.unique(held[:, place][held[:, place] != NONE])) for place in range(kernel)]
        best = max(range(kernel), key=lambda place: (counts[place], place))
        cut = (held[:, :best] == NONE).any(axis=1) & table.kept_of_earlier(held[:, best])
        return np.where(cut, table.mixed, held[:, best])
    padded = np.asarray([*map(table.is_padding, range(len(table.kinds))), False])[held].any(axis=1)
    chosen = held[:, 0]
    for place in range(1, kernel):
        chosen = np.where(chosen == NONE, held[:, place], chosen)
    return np.where(padded, table.mixed, chosen)
