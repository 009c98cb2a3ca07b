"""The keys and values of the tracer's caches: what is kept of tensors, calls and modules so that repeats cost a look-up."""

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
    """The metadata of a tensor that tracing depends on: label, size, dtype, device.

    Interned per layout, so that a mark can key a cache.

    Attributes:
        device: as `Tensor.get_device` gives it.
        lost: why it has no label, where its tokens could not be followed.
        passing: the form of a row that is only an alias of it, as a module's input; None until it is needed.
    """

    def __init__(
        self, label: Label | None, size: torch.Size, dtype: torch.dtype, device: int, lost: str
    ) -> None:
        self.label, self.size, self.dtype, self.device, self.lost = label, size, dtype, device, lost
        self.passing: Form | None = None


class Treatment:
    """What is done with a value of some mark: recorded as a view, skipped, or digested, and how.

    Attributes:
        plain: whether each row of the value is a cell.
        open_cells: see `Cut.open_cells`.
        plans: by stride, for plain values and for the cells of others without their open dimensions.
        grid_plans: by stride, for all open cells.
    """

    def __init__(self, form: Form, mark: Mark, cut: Cut) -> None:
        self.form, self.mark, self.cut = form, mark, cut
        self.digested = form.status == "digest"
        self.plain = cut.plain
        self.open_cells = cut.open_cells
        self.open = cut.cells.kind == "open"
        self.plans: dict[tuple[int, ...], DevicePlan] = {}
        self.grid_plans: dict[tuple[int, ...], DevicePlan] = {}


class CallAnswer:
    """What a call gives, for all calls of a function with arguments of the same marks: the value of a cache.

    Attributes:
        labels: of each output.
        reason: why an output has none, or what an input had lost.
        own: by output, its treatment where it has memory of its own; None before the first such output.
        viewed: by output, its treatment where it is a view; None before the first.
        last: labels and shapes of the outputs, for `Resolver.last_outputs`.
    """

    def __init__(
        self, labels: list[Label | None], reason: str, last: tuple[tuple[Label | None, Shape], ...]
    ) -> None:
        self.labels, self.reason, self.last = labels, reason, last
        self.own: list[Treatment | None] = [None] * len(labels)
        self.viewed: list[Treatment | None] = [None] * len(labels)


class Visits:
    """An op of a module: how often it ran in the current call of the model, and the answer it had last.

    Attributes:
        ops: what the trace calls it, an `Op` for each output.
        call: the call of the model (`Boundaries.call_number`) that `nth` counts in.
        nth: how often the op has run in that call.
        function: the torch function; the first of several of one name (`torch.mul`, `Tensor.mul`); None for a boundary.
        answers, key, answer: the last answer, the cache that it is in, and its key there; see `Reader.answer`.
        other: the visits of a function of another name that is called from the same place.
    """

    def __init__(self, ops: list[Op], function: Function | None = None) -> None:
        self.ops, self.call, self.nth = ops, -1, 0
        self.function = function
        self.other: Visits | None = None
        self.answers: dict[Any, CallAnswer] | None = None
        self.key: tuple[Any, ...] = ()
        self.answer: CallAnswer | None = None


class Frame:
    """A module, as the trace sees it; kept for all runs of the model.

    Attributes:
        path: of the module in the model; empty for the model itself.
        names: of the parameters of its forward.
        visits: of the functions that it calls, by call stack.
        sources: the same by place in the source: Python compiles a loop's condition twice, which is one op all the same.
        inputs, outputs: visits of its inputs, by name, and of its outputs, by number.
        passage_rows: the rows of passages that begin in it, ready to be added to a trace: by the number of the passage and
            the index of the call, with the frames that the rows are of.
    """

    def __init__(self, path: str, names: tuple[str, ...] = ()) -> None:
        self.path, self.names = path, names
        self.visits: dict[CallStack, Visits] = {}
        self.sources: dict[str, Visits] = {}
        self.inputs: dict[str, Visits] = {}
        self.outputs: dict[int, Visits] = {}
        self.passage_rows: dict[Any, tuple[tuple[Frame, ...], list[Row]]] = {}

    def visits_of(self, function: Function, place: CallStack, n_outputs: int) -> Visits:
        """The visits of a function that it calls from a place, made if they aren't there; with an op for each output."""
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
        """The visits of its input of a name."""
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
    """On the tape: a module of some class is called.

    Attributes:
        names: of the parameters of its forward.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names


class Leaving:
    """On the tape: the innermost module returns."""


@cache
def entering(kind: type[nn.Module]) -> Entering:
    """The `Entering` of a class of modules."""
    try:
        return Entering(tuple(inspect.signature(kind.forward).parameters)[1:])
    except (TypeError, ValueError, AttributeError):  # scripted modules answer for themselves
        return Entering(())


LEAVING = Leaving()


TensorRecord = tuple[Callable[[], Tensor | None], Mark, int, int]
"""What the ledger knows of a tensor: (weak reference, mark, row, home).

`row` holds its value, or a part of it; -1 for what no row holds. `home` is the number of that row in the history, or of the
one that it repeats; -1 for none. It is a bare tuple, since one is made for every output of every call, in C where that is in use.
"""


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place; -1 where torch keeps no count (inference mode)."""
    try:
        return tensor._version
    except RuntimeError:
        return -1


def python_versions(tensors: list[Tensor]) -> list[int]:
    """`version_of` many tensors."""
    return list(map(version_of, tensors))


versions_of = choose(python_versions, "versions")
