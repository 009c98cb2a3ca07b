"""Recurrent networks, and rows of different lengths packed for them."""

from __future__ import annotations

import numpy as np

from forkpoint.capture.coordinates import NONE
from forkpoint.capture.labels import Label, spread
from forkpoint.capture.rules.call import (
    Call,
)
from forkpoint.capture.rules.defaults import default
from forkpoint.capture.rules.registry import nothing, rule


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(call: Call) -> list[Label | None]:
    source = call.arg(0, "input")
    label = call.label(source)
    if label is None or source.dim() not in (2, 3):
        return nothing(call)
    steps = call.labels.reduce(label, [source.dim() - 1], keepdim=True)
    state: Label | None = None
    if source.dim() == 3 and len(call.outputs) > 1:
        batch_first = tuple(call.outputs[1].shape)[1] == source.shape[0] and call.args[-1] is True
        time = 1 if batch_first else 0
        summed = call.labels.reduce(steps, [time], keepdim=False)
        state = call.labels.apply(summed, lambda ids: ids[None])
    return [steps, *[state] * (len(call.outputs) - 1)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(call: Call) -> Label | None:
    """One step of a recurrent network belongs to the column that goes in, not to those in its state."""
    label = call.label(call.arg(0, "input"))
    if label is None:
        return default(call)[0]
    return call.labels.reduce(label, [call.arg(0, "input").dim() - 1], keepdim=True)


@rule("_pack_padded_sequence")
def _pack(call: Call) -> list[Label | None]:
    """Rows of different lengths become one list of steps: all rows' first tokens, then all second ones."""
    source, lengths, batch_first = call.args[0], call.args[1], call.arg(2, "batch_first", default=False)
    label = call.label(source)
    if label is None:
        return [None, None]
    ids = spread(label.q, tuple(source.shape), [0, 1])
    ids = ids if batch_first else np.swapaxes(ids, 0, 1)
    sizes = call.values(lengths)
    steps = [ids[row, t] for t in range(int(sizes.max())) for row in range(len(sizes)) if sizes[row] > t]
    return [call.labels.make(np.stack(steps)), None]


@rule("_pad_packed_sequence")
def _unpack(call: Call) -> list[Label | None]:
    data, batch_sizes, batch_first = call.args[0], call.args[1], call.arg(2, "batch_first", default=False)
    label = call.label(data)
    if label is None:
        return [None, None]
    ids = spread(label.q, tuple(data.shape), [0])
    sizes = call.values(batch_sizes)
    out = call.outputs[0]
    rows, steps = (out.shape[0], out.shape[1]) if batch_first else (out.shape[1], out.shape[0])
    padded = np.full((rows, steps, *ids.shape[1:]), NONE, dtype=np.int32)
    at = 0
    for t, size in enumerate(sizes.tolist()):
        padded[:size, t] = ids[at : at + size]
        at += size
    return [call.labels.make(padded if batch_first else np.swapaxes(padded, 0, 1)), None]
