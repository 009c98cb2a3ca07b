"""The labels of what a model returns, where no tap followed its tokens to the end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from forkpoint.capture.coordinates import Ids
from forkpoint.capture.labels import Label, Labels
from forkpoint.capture.marks import TensorRecord
from forkpoint.runs.layout import DECODER, MAIN


class ReturnLabels:
    """Labels of what the model returned in a call.

    Args:
        labels: of the run.
        find: gives the record of a tensor; None if no tap saw it.
    """

    def __init__(self, labels: Labels, find: Callable[[Tensor], TensorRecord | None]) -> None:
        self.labels = labels
        self.table = labels.table
        self._find = find

    def of(self, value: Tensor, call: int) -> Label | None:
        """The label of something that the model returned in a call.

        Where a tap lost sight of some of the tokens, a result of the shape of the call's own input,
        [rows, columns, ...], holds the call's tokens in their places. What no tap saw being made (numbers that
        the model took out of tensors) with an entry for each row belongs to the rows, else to the whole call.
        """
        record = self._find(value)
        label = record[1].label if record is not None else None
        for stream in (DECODER, MAIN):
            slots = self.table.slots(call, stream)
            if slots is None or self._is_of_other_stream(label, stream):
                continue
            like_input = slots.ndim == 2 and value.dim() >= 2 and tuple(value.shape[:2]) == slots.shape
            if like_input and _by_column(label) and self._lost_some(label, call, stream, slots):
                return self.labels.make(slots.reshape(slots.shape + (1,) * (value.dim() - 2)))
            if record is None:
                whole = np.full((1,) * value.dim(), self.table.union(slots), dtype=np.int32)
                return self.by_size(value, call) or self.labels.make(whole)
            break
        return label

    def by_size(self, value: Tensor, call: int) -> Label | None:
        """The label of a value with an entry for each of a call's rows, or for each token of a lone row."""
        slots = self.table.slots(call, DECODER)
        slots = self.table.slots(call, MAIN) if slots is None else slots
        size = value.shape[0] if value.dim() else 0
        if slots is None or not size:
            return None
        if size == slots.shape[0]:
            rows = self.labels.make(slots)
            rows = self.labels.reduce(rows, range(1, slots.ndim), keepdim=False)
            ids = None if rows is None else rows.q
        else:
            ids = slots[0] if slots.shape == (1, size) else None
        if ids is None:
            return None
        return self.labels.make(ids.reshape(ids.shape + (1,) * (value.dim() - ids.ndim)))

    def by_columns(self, value: Tensor, call: int) -> Label | None:
        """The label of a value with an entry for each column of each of a call's rows; None where it has another size."""
        slots = self.table.slots(call, DECODER)
        slots = self.table.slots(call, MAIN) if slots is None else slots
        if slots is None or slots.ndim != 2 or value.dim() < 3 or tuple(value.shape[:2]) != slots.shape:
            return None
        return self.labels.make(slots.reshape(slots.shape + (1,) * (value.dim() - 2)))

    def _is_of_other_stream(self, label: Label | None, stream: str) -> bool:
        """Whether a label is of tokens that go into the other part of an encoder-decoder."""
        held = () if label is None else np.unique(label.q).tolist()
        streams = {token[0] for item in held if item >= 0 and (token := self.table.tokens[item]) is not None}
        return bool(streams) and stream not in streams

    def _lost_some(self, label: Label | None, call: int, stream: str, slots: Ids) -> bool:
        """Whether a label of tokens, not of sets of them, lacks some of a call's."""
        key = (label, call, stream)
        lost = self.labels.lost_some.get(key)
        if lost is None:
            held = set() if label is None else set(label.q.reshape(-1).tolist())
            tokens = {item for item in slots.reshape(-1).tolist() if self.table.tokens[item] is not None}
            plain = label is None or not any(self.table.members[i] for i in held if i >= 0)
            lost = self.labels.lost_some[key] = plain and not tokens <= held
        return lost


def _by_column(label: Label | None) -> bool:
    """Whether the second dimension follows the tokens, or there is no label: else it is features that happen to be as many."""
    return label is None or label.q.shape[1] > 1
