"""The labels of what goes into a forward call: where the layout says the tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.labels import Label, Labels
from forkpoint.runs.layout import DECODER, IMAGE, MAIN, has_columns_last, stream_of, token_tensor


class Intake(NamedTuple):
    """The labels of a forward call's inputs, and the sizes that its token dimensions can have.

    Attributes:
        lengths: see `token_lengths`.
        labels: of the inputs that are tensors, by name.
    """

    lengths: frozenset[int]
    labels: dict[str, Label | None]


def intake(labels: Labels, call: int, inputs: Mapping[str, Any]) -> Intake:
    """Label a forward call's inputs, or take the labels from an earlier call whose inputs had these names and shapes.

    Args:
        labels: of the run.
        call: index of the call.
        inputs: by name. Where one tensor goes in under two names, or something else than tensors and plain values goes in,
            the result is worked out anew each time.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    others = [value for value in inputs.values() if not isinstance(value, Tensor)]
    key = None
    plain = all(value is None or type(value) in (bool, int, float, str) for value in others)
    nested = any(value.is_nested for value in tensors.values())
    if plain and not nested and len(set(map(id, tensors.values()))) == len(tensors):
        floats = [value.is_floating_point() or value.is_complex() for value in tensors.values()]
        shapes = [value.shape for value in tensors.values()]
        key = call, tuple(inputs), *zip(tensors, shapes, floats, strict=True)
    cached: Intake | None = labels.intakes.get(key)
    if cached is None:
        cached = Intake(
            token_lengths(labels.table, call, inputs),
            {name: input_label(labels, call, inputs, name, value) for name, value in tensors.items()},
        )
        if key is not None:
            labels.intakes[key] = cached
    return cached


def token_lengths(table: CoordinateTable, call: int, inputs: Mapping[str, Any]) -> frozenset[int]:
    """The sizes that a dimension over a call's tokens, or over all so far, can have."""
    lengths: set[int] = set()
    for stream in (MAIN, DECODER):
        slots, so_far = table.slots(call, stream), table.slots_so_far(call, stream)
        for grid in (slots, so_far):
            if grid is not None and grid.ndim:
                lengths.add(int(grid.shape[0 if table.time_major and grid.ndim == 2 else -1]))
        if slots is None:  # a decoder's encoder, seen in an earlier call
            for earlier in range(call):
                grid = table.slots(earlier, stream)
                if grid is not None and grid.ndim > 1:
                    lengths.add(int(grid.shape[-1]))
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        lengths.add(int(mask.shape[-1]))
    return frozenset(lengths - {0})


def input_label(
    labels: Labels, call: int, inputs: Mapping[str, Any], name: str, value: Tensor
) -> Label | None:
    """The label of an input that is a tensor."""
    table = labels.table
    stream = DECODER if name.startswith("decoder_") else MAIN
    if name in ("labels", "decoder_labels") and table.slots(call, DECODER) is not None:
        stream = DECODER
    if name.startswith("pixel_") and table.slots(call, IMAGE) is not None:
        stream = IMAGE
    slots = table.slots(call, stream)
    if slots is None or value.is_nested:
        return None
    shape = tuple(value.shape)
    tokens = token_tensor(inputs, stream)
    own = tokens is not None and (tokens[1] is value or name.startswith("pixel_"))
    if own and has_columns_last(value, slots.shape):
        return labels.make(slots[:, None, :])
    for grid in (slots, table.slots_so_far(call, stream)):
        if (
            grid is not None
            and shape[: grid.ndim] == grid.shape
            and (grid.ndim > 1 or len(shape) == 1 or tokens is None or own)
        ):
            return labels.make(grid.reshape(grid.shape + (1,) * (len(shape) - grid.ndim)))
        if grid is not None and grid.ndim == 2 and shape == grid.shape[::-1]:
            return labels.make(np.ascontiguousarray(grid.T))
    if slots.ndim == 2 and name == "labels" and shape == slots.shape[:1]:
        return labels.reduce(labels.make(slots), [1], keepdim=False)
    so_far = table.slots_so_far(call, stream)
    if (
        so_far is not None
        and slots.ndim == 2
        and shape == (slots.shape[0], 1, slots.shape[1], so_far.shape[1])
    ):
        return labels.make(slots[:, None, :, None], so_far[:, None, None, :])
    return None


def nested_labels(labels: Labels, call: int, name: str, value: Any) -> list[tuple[Tensor, Label | None]]:
    """Labels of tensors inside an input: an encoder's output, or the cache of earlier tokens."""
    labelled: list[tuple[Tensor, Label | None]] = []
    slots = labels.table.slots(call, stream_of(name))
    for tensor in _tensors_within(value):
        label: Label | None = None
        if name == "encoder_outputs" and slots is not None and tuple(tensor.shape[:2]) == slots.shape:
            label = labels.make(slots.reshape(slots.shape + (1,) * (tensor.dim() - 2)))
        labelled.append((tensor, label))
    return labelled


def _tensors_within(value: Any, depth: int = 4) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if not depth:
        return []
    if isinstance(value, (list, tuple)):
        items: Any = value
    elif isinstance(value, Mapping):
        items = value.values()
    elif hasattr(value, "__dict__"):
        items = vars(value).values()
    else:
        return []
    return [t for item in items for t in _tensors_within(item, depth - 1)]
