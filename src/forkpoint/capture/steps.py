"""Steps of the history: for an entry of the tape, what its result depends on, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from forkpoint.capture.digest.batch import DevicePlan
from forkpoint.capture.labels import Label, Shape
from forkpoint.capture.marks import Mark, TensorRecord, Treatment
from forkpoint.capture.trace import Form

if TYPE_CHECKING:
    from forkpoint.capture.ledger import Ledger


@dataclass(slots=True, eq=False)
class TensorArgument:
    """A tensor among the arguments of an entry.

    Attributes:
        home: the number in the history of the row that holds its value; -1 for a tensor that no entry of the history made.
        state: (whether a row holds its value, whether all of it, whether that row is a view's). It decides whether a
            module's input or output is an alias.
        form: of that row; None without one.
    """

    mark: Mark
    stride: tuple[int, ...]
    home: int
    state: tuple[bool, bool, bool]
    form: Form | None


@dataclass(slots=True, eq=False)
class Constant:
    """An argument that is no tensor.

    Attributes:
        counts: whether the result depends on the value; for a module's argument it doesn't.
    """

    kind: type
    value: Any
    counts: bool


@dataclass(slots=True, eq=False)
class Group:
    """A list or tuple among the arguments; its elements are leaves of their own, after those of the arguments."""

    kind: type
    size: int


Leaf = TensorArgument | Constant | Group


@dataclass(slots=True, eq=False)
class Sketch:
    """What the result of an entry depends on: its arguments, by position and then by keyword.

    Attributes:
        names: of the arguments by keyword.
        leaves: one for each argument, then one for each element of lists and tuples among them.
    """

    names: tuple[str, ...]
    leaves: list[Leaf]
    values: list[Any]
    """The value of each leaf, while the entry is being worked out."""


@dataclass(slots=True, eq=False)
class StepRow:
    """A row that an entry put on the trace.

    Attributes:
        key: the number of a function's or module's output, or the name of a module's input.
        alias: for an alias of an argument's row, the index of that leaf; else -1.
        near: for an alias of an earlier row of the same entry, how many rows back that is; else 0.
        slots: how many slots of the batch it takes.
        treatment: of a value that was queued for its digest; else None.
        plan, grid: the plan of the value, and that of its open cells; None without one.
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
class HistoryStep:
    """An entry that was worked out: what its result depends on, and its result.

    Attributes:
        n_args: how many arguments by position it has.
        names, leaves: see `Sketch`.
        sizes, strides, dtypes, devices: of a function's outputs.
        first_row: the number in the history of its first row.
        rows: a row for each output of a function, or for each tensor that goes into a module or comes out, in order.
        updates: the new records: (output from 0, or leaf from -1 down; mark; index among `rows`).
        last: labels and shapes of a function's outputs, see `Resolver.last_outputs`.
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


def state_of(tape: Ledger, record: TensorRecord) -> tuple[bool, bool, bool]:
    """`TensorArgument.state` of a tensor, from its record."""
    event = record[2]
    if event < 0:
        return False, False, False
    form = tape.rows[event][2]
    return True, form.shape == record[1].size, form.status == "view"
