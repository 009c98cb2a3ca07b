"""Steps: what an entry of the tape depended on when it was worked out, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from forkpoint.capture.digest.batch import DevicePlan
from forkpoint.capture.labels import Label, Shape
from forkpoint.capture.marks import Known, Mark, Treatment
from forkpoint.capture.trace import Form

if TYPE_CHECKING:
    from forkpoint.capture.ledger import Ledger


@dataclass(slots=True, eq=False)
class Used:
    """A tensor among the arguments of an entry.

    Attributes:
        home: the row of the history that holds its value; -1 for what no entry of it made.
        state: whether a row holds its value, whether all of it, and whether that is a view's: what a module's input or
            output becomes depends on it.
        form: of that row; None without one.
    """

    mark: Mark
    stride: tuple[int, ...]
    home: int
    state: tuple[bool, bool, bool]
    form: Form | None


@dataclass(slots=True, eq=False)
class Constant:
    """An argument that is no tensor; its value counts, but for a module's."""

    kind: type
    value: Any
    counts: bool


@dataclass(slots=True, eq=False)
class Group:
    """A list or tuple; what is in it follows after all the others."""

    kind: type
    size: int


Leaf = Used | Constant | Group


@dataclass(slots=True, eq=False)
class Sketch:
    """What an entry depends on: its arguments, those by keyword after those by position."""

    names: tuple[str, ...]
    leaves: list[Leaf]
    values: list[Any]
    """Of all leaves; not kept."""


@dataclass(slots=True, eq=False)
class StepRow:
    """A row that an entry put on the trace.

    Attributes:
        key: the number of a function's or module's output, or the name of a module's input.
        alias: the leaf whose row holds the value, or -1.
        near: how many rows back that is, if it is a row of the same entry; else 0.
        slots: how many the batch has for it.
        treatment: how the value is treated; None where it was not queued for its digest.
        plan, grid: how it is digested, and how its open cells are; None without them.
    """

    key: int | str
    form: Form
    alias: int
    near: int
    slots: int
    treatment: Treatment | None
    plan: DevicePlan | None
    grid: DevicePlan | None


@dataclass(slots=True, eq=False)
class Step:
    """An entry that was worked out, and what came of it.

    Attributes:
        sizes, strides, dtypes, devices: of a function's outputs.
        rows: a row for each output of a function, or for each tensor that goes into a module or comes out, in order.
        updates: what is known afterwards: of which output (from 0) or leaf (from -1 down), its mark, and the row.
        last: labels and shapes of a function's outputs.
    """

    n_args: int
    names: tuple[str, ...]
    leaves: list[Leaf]
    sizes: list[torch.Size]
    strides: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    devices: list[int]
    first_row: int
    rows: list[StepRow]
    updates: list[tuple[int, Mark, int]]
    last: tuple[tuple[Label | None, Shape], ...]


def state_of(tape: Ledger, known: Known) -> tuple[bool, bool, bool]:
    """See `Used`."""
    event = known[2]
    if event < 0:
        return False, False, False
    form = tape.rows[event][2]
    return True, form.shape == known[1].size, form.status == "view"
