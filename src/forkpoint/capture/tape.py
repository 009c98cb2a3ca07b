"""The tape: what is done for each call of a torch function and of a module, thousands of times a run.

The answers to every question that comes again are kept: the place of a call gives its op (`Visits`), the marks of
what goes into it give what comes out (`Answer`), label, shape and stride of a value how it is digested (`Treatment`).
An op whose like was seen before costs some look-ups and a row on the trace; see `Tape.call_function`. Whatever comes
for the first time is worked out by the recorder.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from sys import _getframe
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, proxy, ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkpoint.capture.cells import Cut, digests_of
from forkpoint.capture.digest.batch import Batch, Planned, planned
from forkpoint.capture.functions import Function, is_view, resolve, resolved
from forkpoint.capture.labels import Label, Shape
from forkpoint.capture.rules import tensors_in
from forkpoint.capture.sites import NOWHERE, Place, place_of
from forkpoint.trace import Form, Op, Row

if TYPE_CHECKING:
    from forkpoint.capture.recorder import Recorder

MAX_OPEN_TOTAL = 1 << 24
"""Most cells of a whole trace whose token dimensions are only suspected; beyond it such values are compared
whole."""
PENDING_BYTES = {"cpu": 1 << 25, "other": 1 << 30}
"""Values kept alive for a digest in one go, by device."""

INPUT = -1
"""What stands for the number of a module's output where the value goes in."""

_NO_KEYWORDS: dict[str, Any] = {}
_KEYWORDS = object()
_SEQUENCES = frozenset({tuple, list, torch.Size})
_SIMPLE = frozenset(
    {bool, float, complex, str, type(...), torch.device, torch.layout, torch.memory_format, type}
)
"""Kinds of arguments that can key a cache, besides tensors, whole numbers and dtypes."""

_unwatched = torch._C.DisableTorchFunction
"""What the tape does with tensors is no op of the model, and no mode may see it."""
_transforms: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
"""What vmap or grad at work are: None where the tensors that pass by are the model's own."""
_other_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many modes are active while one, which torch takes off the stack meanwhile, handles a call."""
_calls = itertools.count()
"""Numbers for all calls that are ever recorded."""


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
        self.plans: dict[tuple[int, ...], Planned] = {}
        self.grid_plans: dict[tuple[int, ...], Planned] = {}


class Answer:
    """What is known of all calls of a function whose arguments have the same marks.

    Attributes:
        labels: of each output.
        reason: why they are not known, or what got lost on the way.
        fresh: for each output that was seen, its treatment; None where a value of another size has to be looked at.
        viewed: the same for outputs that are views.
        last: labels and shapes of the outputs, in one tuple.
    """

    def __init__(
        self, labels: list[Label | None], reason: str, last: tuple[tuple[Label | None, Shape], ...]
    ) -> None:
        self.labels, self.reason, self.last = labels, reason, last
        self.fresh: list[Treatment | None] = [None] * len(labels)
        self.viewed: list[Treatment | None] = [None] * len(labels)


class Visits:
    """What traces say of an op, an entry for each of its outputs, and how often it ran in a call.

    Attributes:
        call: which call that is, of all calls that were ever recorded.
        function: the torch function, if it is one.
        answers, key, answer: what the last call's answer was taken from, what it depended on, and that answer; see
            `Tape.answer`.
        other: the visits of another function that is called from the same place.
    """

    def __init__(self, ops: list[Op], function: Function | None = None, other: Visits | None = None) -> None:
        self.ops, self.call, self.nth = ops, -1, 0
        self.function, self.other = function, other
        self.answers: dict[Any, Answer] | None = None
        self.key: tuple[Any, ...] = ()
        self.answer: Answer | None = None


class Frame:
    """A module, while it is on the stack and after.

    Attributes:
        names: of the arguments of its forward.
        visits: of the functions that it calls, by the place.
        inputs, outputs: visits of what goes into it, by name, and of what comes out, by number.
    """

    def __init__(self, path: str, names: tuple[str, ...] = ()) -> None:
        self.path, self.names = path, names
        self.visits: dict[Place, Visits] = {}
        self.inputs: dict[str, Visits] = {}
        self.outputs: dict[int, Visits] = {}


Known = tuple[ReferenceType[Tensor], Mark, int]
"""A tensor that passed by: a reference, its mark, and the event that holds its value, or -1."""


class Tape:
    """What passes by is put on it in passing.

    Args:
        recorder: whose tape it is; held weakly, so that both go when the run is over.
        batch: takes the digests.
        digests: False to follow the labels only.
        passive: whether it only looks on: nobody wants copies of values, nor to change them.
    """

    def __init__(self, recorder: Recorder, batch: Batch, digests: bool, passive: bool) -> None:
        self.recorder: Recorder = proxy(recorder)
        self.rows: list[Row] = recorder.trace.rows
        self.skipped: dict[int, str] = recorder.trace.skipped
        self.batch = batch
        self.digests, self.passive = digests, passive
        self.call = -1
        self.visit_of: int = next(_calls)
        self.stack: list[Frame] = []
        self.arguments: list[tuple[Any, ...]] = [()]
        """Of the modules on the stack."""
        self.frames: dict[int, Frame] = {}
        """By the id of a module."""
        self.known: dict[int, Known] = {}
        """By the id of a tensor."""
        self.answers: dict[Any, Answer] = {}
        self.last_outputs: tuple[tuple[Label | None, Shape], ...] = ()
        self.open_cells = 0
        self.opened: list[tuple[int, Treatment, int, int]] = []
        """Row of a value with open cells, the slot of their digests, and that of those with the dimensions taken in."""
        self.odd: list[tuple[int, Tensor, Treatment]] = []
        """Row and value of those whose rows share cells, or that are digested in pairs."""
        self.computed: list[tuple[int, Treatment, list[Tensor]]] = []
        """The digests of such values, on their device."""
        self.pending: list[tuple[int, Tensor]] = []
        """Row and tensor of values whose digest is not computed yet."""
        self.versions: list[int] = []
        """Of all of them but, after the call that made it, the last: how often they had been written to."""
        self.pending_bytes = 0
        self.pending_limit: int = PENDING_BYTES["cpu"]
        self.fresh = False
        """Whether the last of them was recorded by what ran last."""

    def begin(self, call: int) -> None:
        """A forward call of the model begins."""
        self.call = call
        self.visit_of = next(_calls)

    # ------------------------------------------------------------------ functions

    def call_function(
        self, tap: TorchFunctionMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> Any:
        """Make a call of a torch function that a tap saw, and record it."""
        try:
            function = resolved.get(func) or resolve(func)
        except TypeError:  # one that can't be hashed
            function = resolve(func)
        if function.silent:
            return func(*args, **kwargs) if kwargs else func(*args)
        if function.inner is not None:
            with tap:
                return function.inner(*args, **(kwargs or {}))
        place = place_of(_getframe())
        if not self.passive or _other_modes():
            return self.recorder.watched(function, func, place, args, kwargs or {})
        if self.fresh:
            self.settle()
        if kwargs:
            if self.pending and writes(function, kwargs):
                self.flush()
            result = func(*args, **kwargs)
        else:
            kwargs = _NO_KEYWORDS
            if function.writes and self.pending:
                self.flush()
            result = func(*args)
        self.record(function, func, place, args, kwargs, result)
        return result

    def record(
        self,
        function: Function,
        func: Any,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> tuple[Op, int, tuple[Tensor, ...], list[Label | None]] | None:
        """Record a finished call.

        Returns:
            The op, how often it had run in this call of the model, and its outputs with their labels; None if it
            made no tensor, or if nobody wants to know.
        """
        if isinstance(result, Tensor):
            outputs: tuple[Any, ...] = (result,)
        elif function.name == "setitem":
            outputs = (args[0],)
        else:
            outputs = tuple(tensors_in((result,)))
            if not outputs:
                return None
        if _transforms() is not None:
            return None  # inside vmap or grad: these tensors are not the model's own
        visits = self.visits_of(function, place, len(outputs))
        answer = self.answer(visits, function, func, args, kwargs, outputs)
        self.last_outputs = answer.last
        nth = visits.nth
        visits.nth = nth + 1
        if function.writes or (kwargs and writes(function, kwargs)):
            labels = self.recorder.wrote(function, func, args, kwargs, outputs, visits, answer)
        else:
            labels = answer.labels
            # before an output that is an argument, as dropout's, has a new event
            sources = [] if self.passive else self.recorder.sources(args, kwargs)
            for index, output in enumerate(outputs):
                view = function.may_view
                if view is None:
                    view = is_view(output, args, kwargs)
                treatment = answer.viewed[index] if view else answer.fresh[index]
                if treatment is None or not _fits(treatment.mark, output):
                    treatment = self.recorder.treat(function, answer, index, output, view=view)
                if treatment.open_cells:
                    treatment = self.bounded(treatment)
                row = self.put(visits.ops[index], nth, treatment, output)
                self.known[id(output)] = (ref(output), treatment.mark, row)
                if not self.passive:
                    self.recorder.saw(row, output, labels[index], sources)
        return None if self.passive else (visits.ops[0], nth, outputs, labels)

    def visits_of(self, function: Function, place: Place, n_outputs: int) -> Visits:
        """The visits of an op of the module on top of the stack; those of this call begin at 0."""
        frame = self.stack[-1]
        first = frame.visits.get(place)
        visits = first
        while visits is not None and visits.function is not function:
            visits = visits.other
        if visits is None:
            visits = frame.visits[place] = Visits([], function, first)
        for index in range(len(visits.ops), n_outputs):
            visits.ops.append(Op(frame.path, function.name, place.site, index))
        if visits.call != self.visit_of:
            visits.call, visits.nth = self.visit_of, 0
        return visits

    def answer(
        self,
        visits: Visits,
        function: Function,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
    ) -> Answer:
        """What is known of such a call, from an earlier one if there was one."""
        found = visits.answer
        if (
            found is not None
            and visits.answers is self.answers
            and not kwargs
            and len(found.labels) == len(outputs)
            and self.same_marks(args, visits.key)
        ):
            return found
        key: tuple[Any, ...] | None = None
        marks: list[Any] = [function]
        found = None
        try:
            self.mark_all(args, marks)
            if kwargs:
                marks.append(_KEYWORDS)
                marks.extend(kwargs)
                self.mark_all(kwargs.values(), marks)
            key = tuple(marks)
            found = self.answers.get(key)
        except TypeError:  # an argument that can't be hashed
            key = None
        if found is None or len(found.labels) != len(outputs):
            return self.recorder.ask(function, func, args, kwargs, outputs, key)
        assert key is not None
        visits.answers, visits.key, visits.answer = self.answers, key, found
        return found

    def same_marks(self, args: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
        """Whether a call's arguments are tensors of the same marks, or the same numbers, as those of a key.

        No for some that are: they are looked up.
        """
        if len(key) != len(args) + 1:
            return False
        for index, value in enumerate(args):
            mark = key[index + 1]
            if type(mark) is Mark:
                known = self.known.get(id(value))
                if known is None or known[1] is not mark or known[0]() is not value:
                    return False
            elif type(value) is not int or type(mark) is not int or value != mark:
                return False
        return True

    def mark_all(self, values: Iterable[Any], marks: list[Any]) -> None:
        """Append what the answer for a call depends on: the marks of tensors, all other arguments themselves.

        Raises:
            TypeError: an argument of a kind that can't be relied on to be equal only if it is the same.
        """
        for value in values:
            known = self.known.get(id(value))
            if known is not None and known[0]() is value:
                marks.append(known[1])
                continue
            kind = type(value)
            if kind is int or kind is torch.dtype or value is None:
                marks.append(value)
            elif kind in _SEQUENCES:
                marks.append(kind)
                marks.append(len(value))
                self.mark_all(value, marks)
            elif kind is slice:
                marks.append(slice)
                self.mark_all((value.start, value.stop, value.step), marks)
            elif kind is dict:
                marks.append(dict)
                marks.extend(value)
                self.mark_all(value.values(), marks)
            elif isinstance(value, Tensor):
                marks.append(self.recorder.mark_of(value))
            elif kind in _SIMPLE:
                marks.append((kind, value))  # True is not 1 here
            else:
                raise TypeError(f"an argument of type {kind.__name__}")

    # ------------------------------------------------------------------ rows

    def bounded(self, treatment: Treatment) -> Treatment:
        """What to do with a value, where so many dimensions may be suspected and no more."""
        if self.open_cells + treatment.open_cells > MAX_OPEN_TOTAL:
            return self.recorder.closed(treatment)
        self.open_cells += treatment.open_cells
        return treatment

    def put(self, op: Op, nth: int, treatment: Treatment, value: Tensor) -> int:
        """Put a value on the trace, and have it digested with the next flush."""
        row = len(self.rows)
        slot = self.queue(row, value, treatment) if treatment.digested and self.digests else -1
        self.rows.append((op, self.call, nth, treatment.form, -1, slot))
        return row

    def queue(self, row: int, value: Tensor, treatment: Treatment) -> int:
        """Have a value digested with the next flush; returns the slot of its digests, -1 for those kept apart."""
        slot = -1
        if treatment.plain or treatment.open:
            stride = value.stride()
            known = treatment.plans.get(stride)
            if known is None:
                known = treatment.plans[stride] = planned(value, treatment.cut.row_dims)
            slot = self.batch.push(value, known)
            self.pending_bytes += known.n_bytes
            if treatment.open:
                self.opened.append((row, treatment, self.push_grid(value, stride, treatment), slot))
                slot = -1
        else:
            self.odd.append((row, value.detach(), treatment))
            self.pending_bytes += value.nbytes
        if self.fresh:
            self.settle()
        self.pending.append((row, value))
        self.fresh = True
        if self.pending_bytes > self.pending_limit:
            self.pending_limit = PENDING_BYTES.get(value.device.type, PENDING_BYTES["other"])
            if self.pending_bytes > self.pending_limit:
                self.flush()
        return slot

    def push_grid(self, value: Tensor, stride: tuple[int, ...], treatment: Treatment) -> int:
        """Have the open cells of a value digested with the next flush; returns the slot of their digests."""
        known = treatment.grid_plans.get(stride)
        if known is None:
            known = treatment.grid_plans[stride] = planned(value, treatment.cut.grid_dims)
        self.pending_bytes += known.n_bytes
        return self.batch.push(value, known)

    def settle(self) -> None:
        """What ran last is over: a value that it changed right after a function returned is that function's value."""
        self.versions.append(_version(self.pending[-1][1]))
        self.fresh = False

    def flush(self) -> None:
        """Compute the digests of everything that is pending, without waiting for the device."""
        if self.fresh:
            self.settle()
        for (row, tensor), version in zip(self.pending, self.versions, strict=True):
            if _version(tensor) != version:
                self.skipped[row] = "overwritten before it could be read"
        self.batch.flush()
        for row, tensor, treatment in self.odd:
            self.computed.append((row, treatment, digests_of(tensor, treatment.cut)))
        self.odd.clear()
        self.pending.clear()
        self.versions.clear()
        self.pending_bytes = 0
        self.recorder.collect()

    # ------------------------------------------------------------------ modules

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: bool) -> None:
        """A module is called.

        Args:
            hidden: whether its functions are not seen.
        """
        if hidden and self.fresh:
            with _unwatched():
                self.settle()
        frame = self.frames.get(id(module)) or self.recorder.new_frame(module)
        self.stack.append(frame)
        self.arguments.append((args, kwargs))
        if not frame.path or _transforms() is not None:
            return
        names = frame.names
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                self.pass_in(frame, names[position] if position < len(names) else str(position), value)
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                self.pass_in(frame, name, value)

    def pass_in(self, frame: Frame, name: str, value: Tensor) -> None:
        """Record what goes into a module."""
        known = self.known.get(id(value))
        if self.passive and known is not None and known[0]() is value and self.holds(known):
            self.alias(frame, name, INPUT, known)
        else:
            with _unwatched():
                self.recorder.came_in(frame, name, value)

    def leave(self, result: Any, failed: bool, hidden: bool) -> None:
        """A module returns."""
        if hidden and self.fresh:
            with _unwatched():
                self.settle()
        frame = self.stack.pop()
        if not failed and _transforms() is None:
            if isinstance(result, Tensor):
                self.pass_out(frame, 0, result)
            else:
                for index, value in enumerate(_outputs_of(result)):
                    self.pass_out(frame, index, value)
        self.arguments.pop()

    def pass_out(self, frame: Frame, index: int, value: Tensor) -> None:
        """Record what comes out of a module."""
        known = self.known.get(id(value))
        if (
            self.passive
            and known is not None
            and known[0]() is value
            and self.holds(known)
            and self.rows[known[2]][3].status != "view"
        ):
            self.alias(frame, "output", index, known)
        else:
            with _unwatched():
                self.recorder.came_out(frame, index, value)

    def holds(self, known: Known) -> bool:
        """Whether the event of a tensor holds all of its value, not what an indexed write wrote of it."""
        mark = known[1]
        event = known[2]
        return event >= 0 and self.rows[event][3].shape == mark.size

    def alias(self, frame: Frame, name: str, output: int, known: Known) -> Visits:
        """Record that a value which is known goes into a module, or comes out."""
        mark = known[1]
        form = mark.passing
        if form is None:
            form = mark.passing = self.recorder.passing(mark)
        visits = self.visit(frame, name, output)
        self.rows.append((visits.ops[0], self.call, visits.nth - 1, form, known[2], -1))
        return visits

    def visit(self, frame: Frame, name: str, output: int) -> Visits:
        """The visits of a module's input or output, this one counted."""
        visits = frame.inputs.get(name) if output == INPUT else frame.outputs.get(output)
        if visits is None:
            if output == INPUT:
                visits = frame.inputs[name] = Visits([Op(frame.path, f"input:{name}", NOWHERE.site, 0)])
            else:
                visits = frame.outputs[output] = Visits([Op(frame.path, name, NOWHERE.site, output)])
        if visits.call != self.visit_of:
            visits.call, visits.nth = self.visit_of, 0
        visits.nth += 1
        return visits


# ---------------------------------------------------------------------- helpers


def writes(function: Function, kwargs: dict[str, Any]) -> bool:
    """Whether a call changes one of its arguments."""
    return function.writes or kwargs.get("out") is not None or bool(kwargs.get("inplace"))


def _version(tensor: Tensor) -> int:
    """How often a tensor was written in place; -1 where torch keeps no count (inference mode)."""
    try:
        return tensor._version
    except RuntimeError:
        return -1


def _fits(mark: Mark, output: Tensor) -> bool:
    return output.shape == mark.size and output.dtype is mark.dtype and output.get_device() == mark.device


def _outputs_of(result: Any) -> list[Tensor]:
    if is_dataclass(result) and not isinstance(result, (type, dict)):
        return tensors_in([getattr(result, field.name) for field in fields(result)], 2)
    return tensors_in(result, 2)
