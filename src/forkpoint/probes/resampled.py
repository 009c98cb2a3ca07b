"""Other values at chosen coordinates, put in place as a run passes by."""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.labels import Label, spread
from forkpoint.capture.recorder import Recorder
from forkpoint.probes.watchers import Key, Place
from forkpoint.support.arrays import tensor_of

DRAWN, ROTATED, FAINT, LOUD, NOTHING = "drawn", "rotated", "faint", "loud", "nothing"
"""What chosen coordinates get: multiples of values drawn from the same tensor, the same each one place on, a thousandth of
theirs, a thousand times as much, or zeros."""
_FAINT, _DRAWN, _LOUD = 1e-3, 2.3, 1e3
"""What chosen values are multiplied by: so that a largest value, too, is another one."""


@dataclass
class Resampled:
    """Gives chosen coordinates other values.

    Attributes:
        places: the calls whose results are changed.
        chosen: for each id, whether its values are.
        how: `DRAWN`, `ROTATED`, `FAINT`, `LOUD` or `NOTHING`.
        groups: for each id a number; only those of one number change places with each other.
        replaced: how many rows were changed.
    """

    places: set[Place]
    chosen: NDArray[np.bool_]
    how: str = DRAWN
    groups: NDArray[np.int64] | None = None
    replaced: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    entrances_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._keys = {place[0] for place in self.places}

    @property
    def key(self) -> Hashable:
        """What it does, for whoever would do the same."""
        groups = self.groups if self.how == ROTATED else None
        return (
            frozenset(self.places),
            self.chosen.tobytes(),
            self.how,
            None if groups is None else groups.tobytes(),
        )

    def afresh(self) -> Resampled:
        """The same, before it changed anything."""
        return Resampled(self.places, self.chosen, self.how, self.groups)

    def edits(self, key: Key) -> bool:
        return key in self._keys

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        return self.put((key, nth, output, recorder.call), value, label, recorder.table)

    def put(self, place: Place, value: Tensor, label: Label | None, table: CoordinateTable) -> Tensor | None:
        """What to go on with in place of a value; None where it stays."""
        if place not in self.places or label is None or label.k is not None:
            return None
        other = _of(self.chosen, table, label)
        if not other.any():
            return None
        new = torch.where(_spread(other, value), self._instead(value), value)
        if self.how == ROTATED:
            new = _rotated(new, label, other, self.groups)
        self.replaced += 0 if new is None else int(other.sum())
        return new

    def _instead(self, value: Tensor) -> Tensor:
        if self.how == NOTHING:
            return torch.zeros_like(value)
        if self.how in (FAINT, LOUD):
            if not (value.is_floating_point() or value.is_complex()):
                return torch.zeros_like(value)
            return value * (_FAINT if self.how == FAINT else _LOUD)
        drawn = torch.randint(value.numel(), tuple(value.shape), generator=self.generator).to(value.device)
        return value.reshape(-1)[drawn] * (_DRAWN if value.is_floating_point() else 1)

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        return None


@dataclass
class Rescaled:
    """Adds to values, and multiplies them.

    Attributes:
        places: the calls whose results are changed, as a whole.
        factor: what they are multiplied by.
        shift: what is added to them before.
        nudged: for each id, whether its values get something more; None where none do.
        nudge: which is this.
        replaced: how many values were changed.
    """

    places: set[Place]
    factor: float
    shift: float = 0.0
    nudged: NDArray[np.bool_] | None = None
    nudge: float = 0.0
    replaced: int = 0
    entrances_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._keys = {place[0] for place in self.places}

    @property
    def key(self) -> Hashable:
        """What it does, for whoever would do the same."""
        nudged = None if self.nudged is None else (self.nudged.tobytes(), self.nudge)
        return frozenset(self.places), self.factor, self.shift, nudged

    def afresh(self) -> Rescaled:
        """The same, before it changed anything."""
        return replace(self, replaced=0)

    def edits(self, key: Key) -> bool:
        return key in self._keys

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        return self.put((key, nth, output, recorder.call), value, label, recorder.table)

    def put(self, place: Place, value: Tensor, label: Label | None, table: CoordinateTable) -> Tensor | None:
        """What to go on with in place of a value; None where it stays."""
        if place not in self.places or not value.is_floating_point():
            return None
        self.replaced += 1
        added = torch.full_like(value, self.shift)
        if self.nudged is not None and label is not None:
            added += _spread(_of(self.nudged, table, label), value) * self.nudge
        return (value + added) * self.factor

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        return None


def _of(chosen: NDArray[np.bool_], table: CoordinateTable, label: Label) -> NDArray[np.bool_]:
    """Which columns among the ids of a label are chosen."""
    padded = np.append(chosen, np.zeros(max(len(table.kinds) + 2 - len(chosen), 0), bool))
    return padded[label.q] & table.is_slot(label.q)


def _spread(ids: NDArray[np.bool_], value: Tensor) -> Tensor:
    return tensor_of(spread(ids, tuple(value.shape)).copy()).to(value.device)


def _rotated(
    value: Tensor, label: Label, other: NDArray[np.bool_], groups: NDArray[np.int64] | None
) -> Tensor | None:
    """The value with the chosen coordinates each one place on, the last first; None where none changes its place."""
    cells = label.q.reshape(-1)
    chosen = np.flatnonzero(other.reshape(-1))
    ids, which = np.unique(cells[chosen], return_inverse=True)
    group = np.zeros(len(chosen)) if groups is None else groups[cells[chosen]]
    if (
        len(ids) > 1
    ):  # an id that comes again, for each head say, changes places with the same one of the others
        group = np.stack([group, _occurrence(which)], axis=1)
    order = np.arange(len(cells))
    for one in np.unique(group, axis=0):
        places = chosen[(group == one).reshape(len(chosen), -1).all(1)]
        ascending = places[np.argsort(cells[places], kind="stable")]
        order[ascending] = np.roll(ascending, 1)
    if (order == np.arange(len(cells))).all():
        return None
    dims = [d for d, size in enumerate(label.q.shape) if size > 1]
    rest = [d for d in range(value.dim()) if d not in dims]
    moved = value.permute(*dims, *rest)
    rows = moved.reshape(len(cells), -1)[tensor_of(order).to(value.device)]
    inverse = np.argsort([*dims, *rest]).tolist()
    return rows.reshape(moved.shape).permute(*inverse).contiguous()


def _occurrence(which: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each element, how many equal ones came before it."""
    counts = np.zeros(len(which), dtype=np.int64)
    for one in np.unique(which):
        mine = which == one
        counts[mine] = np.arange(mine.sum())
    return counts
