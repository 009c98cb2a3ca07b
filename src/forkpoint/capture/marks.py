"""What is kept of values, calls and modules, so that whatever comes again costs a look-up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.capture.cells import Cut
from forkpoint.capture.digest.batch import DevicePlan
from forkpoint.capture.functions import Function
from forkpoint.capture.labels import Label, Shape
from forkpoint.capture.sites import NOWHERE, CallStack
from forkpoint.capture.trace import Form, Op, Row
from forkpoint.native.choice import choose


class Mark:
    """What the ops that a tensor goes into need to know of it; interned, so that it can key a cache.

    Attributes:
        device: as `Tensor.get_device` gives it.
        lost: why its coordinates are not known, where its tokens could not be followed.
        passing: its form where it only passes into a module or out of one.
    """

    def __init__(
        self, label: Label | None, size: torch.Size, dtype: torch.dtype, device: int, lost: str
    ) -> None:
        self.label, self.size, self.dtype, self.device, self.lost = label, size, dtype, device, lost
        self.passing: Form | None = None


class Treatment:
    """How all values of one mark are treated: as a view, or digested.

    Attributes:
        plain: whether each row of the value is a cell.
        open_cells: how many cells there are only since a dimension might follow the tokens.
        plans: for plain values, by stride.
        grid_plans: for values with open cells, by stride: how those are digested. Their plans are for the cells with
            the open dimensions taken in.
    """

    def __init__(self, form: Form, mark: Mark, cut: Cut) -> None:
        self.form, self.mark, self.cut = form, mark, cut
        self.digested = form.status == "digest"
        self.plain = cut.plain
        self.open_cells = cut.open_cells
        self.open = cut.cells.kind == "open"
        self.plans: dict[tuple[int, ...], DevicePlan] = {}
        self.grid_plans: dict[tuple[int, ...], DevicePlan] = {}


class Answer:
    """What is known of all calls of a function whose arguments have the same marks.

    Attributes:
        labels: of each output.
        reason: why they are not known, or what got lost on the way.
        own: for each output that was seen with memory of its own, its treatment; None where a value of another size has to be looked at.
        viewed: the same for outputs that are views.
        last: labels and shapes of the outputs, in one tuple.
    """

    def __init__(
        self, labels: list[Label | None], reason: str, last: tuple[tuple[Label | None, Shape], ...]
    ) -> None:
        self.labels, self.reason, self.last = labels, reason, last
        self.own: list[Treatment | None] = [None] * len(labels)
        self.viewed: list[Treatment | None] = [None] * len(labels)


class Visits:
    """What traces say of an op, an entry for each of its outputs, and how often it ran in a call.

    Attributes:
        call: which call that is, of all calls that were ever recorded.
        function: the torch function, if it is one, or the first of those of one name (`torch.mul`, `Tensor.mul`).
        answers, key, answer: what the last call's answer was taken from, what it depended on, and that answer; see
            `Tape.answer`.
        other: the visits of a function of another name that is called from the same place.
    """

    def __init__(self, ops: list[Op], function: Function | None = None) -> None:
        self.ops, self.call, self.nth = ops, -1, 0
        self.function = function
        self.other: Visits | None = None
        self.answers: dict[Any, Answer] | None = None
        self.key: tuple[Any, ...] = ()
        self.answer: Answer | None = None


class Frame:
    """A module, while it is on the stack and after.

    Attributes:
        names: of the arguments of its forward.
        visits: of the functions that it calls, by the place.
        sources: the same by the place in the source: a loop's condition is compiled twice, and is one op all the same.
        inputs, outputs: visits of what goes into it, by name, and of what comes out, by number.
        taken: rows of passages that begin with it, by the number of the passage and the call, with all modules that they are of.
    """

    def __init__(self, path: str, names: tuple[str, ...] = ()) -> None:
        self.path, self.names = path, names
        self.visits: dict[CallStack, Visits] = {}
        self.sources: dict[str, Visits] = {}
        self.inputs: dict[str, Visits] = {}
        self.outputs: dict[int, Visits] = {}
        self.taken: dict[Any, tuple[tuple[Frame, ...], list[Row]]] = {}

    def visits_of(self, function: Function, place: CallStack, n_outputs: int) -> Visits:
        """The visits of a function that it calls from a place, with an op for each output."""
        visits = self.visits.get(place)
        if visits is None and (visits := self.sources.get(place.site.chain)) is not None:
            self.visits[place] = visits
        last = None
        while visits is not None and (visits.function is None or visits.function.name != function.name):
            last, visits = visits, visits.other
        if visits is None:
            visits = Visits([], function)
            if last is None:
                self.visits[place] = self.sources[place.site.chain] = visits
            else:
                last.other = visits
        for index in range(len(visits.ops), n_outputs):
            visits.ops.append(Op(self.path, function.name, place.site, index))
        return visits

    def visits_in(self, name: str) -> Visits:
        """The visits of what goes into it under a name."""
        visits = self.inputs.get(name)
        if visits is None:
            visits = self.inputs[name] = Visits([Op(self.path, f"input:{name}", NOWHERE.site, 0)])
        return visits

    def visits_out(self, index: int) -> Visits:
        """The visits of one of its outputs."""
        visits = self.outputs.get(index)
        if visits is None:
            visits = self.outputs[index] = Visits([Op(self.path, "output", NOWHERE.site, index)])
        return visits


class Entering:
    """Stands for the call of a module of some class.

    Attributes:
        names: of the arguments of its forward.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names


class Leaving:
    """Stands for the return of a module."""


@cache
def entering(kind: type[nn.Module]) -> Entering:
    """What stands for the call of a module of a class."""
    try:
        return Entering(tuple(inspect.signature(kind.forward).parameters)[1:])
    except (TypeError, ValueError, AttributeError):  # scripted modules answer for themselves
        return Entering(())


LEAVING = Leaving()


Known = tuple[Callable[[], Tensor | None], Mark, int, int]
"""A tensor that passed by: a weak reference, its mark, the row that holds its value, and the row of the history that this
one is or repeats; or -1."""


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place; -1 where torch keeps no count (inference mode)."""
    try:
        return tensor._version
    except RuntimeError:
        return -1


def python_versions(tensors: list[Tensor]) -> list[int]:
    """The same for many tensors."""
    return list(map(version_of, tensors))


versions_of = choose(python_versions, "versions")
