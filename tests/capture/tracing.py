"""Runs a function under the taps and reads what it made of the coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forkpoint import Layout, Run
from forkpoint.capture.labels import spread
from forkpoint.capture.recorder import Recorder
from forkpoint.capture.taps import Observation
from forkpoint.capture.trace import Event, Op


class Traced:
    """A function that ran once: what it returned, and what was recorded."""

    def __init__(
        self, function: Callable[..., Any], inputs: dict[str, Any], layout: Layout | None = None,
        model: nn.Module | None = None,
    ) -> None:  # fmt: skip
        layout = layout or Layout.read([inputs])
        run = Run(model, inputs, layout=layout, call=lambda _, given: function(**given))
        self.recorder = Recorder(layout, model)
        self.output = run.execute(Observation(self.recorder))[0]
        self.trace = self.recorder.finish()
        self.table = self.recorder.table

    @property
    def events(self) -> list[tuple[Op, Event]]:
        return [(self.trace.ops[event.op], event) for event in self.trace.events]

    def event(self, name: str, index: int = 0) -> Event:
        """One of the events of an op, by `module/function`."""
        return [event for op, event in self.events if op.name == name][index]

    def lost(self, value: Tensor) -> str:
        """Why the coordinates of a value are not known; empty if they are."""
        assert self.recorder.resolver.find(value) is not None, "no tap saw this value"
        return self.recorder.lost(value)

    def ids(self, value: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """The coordinate of every element of a value, -1 for none, and that of its key."""
        label = self.recorder.label_of(value)
        shape = tuple(value.shape)
        if label is None:
            return np.full(shape, -1), None
        return spread(label.q, shape), None if label.k is None else spread(label.k, shape)


def grid(layout: Layout) -> Tensor:
    """The id of every column of a layout's first call, as numbers to compute with."""
    return torch.from_numpy(Recorder(layout, None).table.slots(0, "main").astype(np.float64))  # pyright: ignore[reportOptionalMemberAccess]


def marked(layout: Layout, *features: int) -> Tensor:
    """An input every element of which is the id of its own token: [rows, columns, *features]."""
    ids = grid(layout)
    return ids.reshape(*ids.shape, *[1] * len(features)).expand(*ids.shape, *features).contiguous()


def left_padded(rows: int, columns: int) -> Layout:
    """Rows of which the first has a column of padding on its left, if there is room."""
    mask = torch.ones(rows, columns)
    if columns > 1:
        mask[0, 0] = 0
    return Layout.from_mask(mask)


def nothing(*shape: int) -> Tensor:
    """A tensor that no token has a part in, marked so."""
    return torch.full(shape, -1.0, dtype=torch.float64)
