"""The tape: what is done for each call of a torch function and of a module, thousands of times a run.

While the model runs, a call leaves no more than an entry on the tape (`Tap`, `Tape.enter`, `Tape.leave`). The tape is
read, and what stands on it becomes rows of the trace, when the values on it need much memory, before something
writes to a tensor, and when the run ends. A stretch of entries whose like was read before is taken over as a whole
(`passages`); of all others each goes its own way, where the answers to every question that comes again are kept: the
place of a call gives its op (`Visits`), the marks of what goes into it give what comes out (`Answer`), label, shape
and stride of a value how it is digested (`Treatment`). Whatever comes for the first time is worked out by the
recorder.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from time import monotonic
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from forkpoint.capture.digest.batch import Batch
from forkpoint.capture.functions import Function, is_view
from forkpoint.capture.history import History
from forkpoint.capture.labels import Label
from forkpoint.capture.ledger import INPUT, NOTHING, Ledger
from forkpoint.capture.marks import (
    LEAVING,
    Answer,
    Entering,
    Frame,
    Known,
    Mark,
    Visits,
    entering,
    version_of,
)
from forkpoint.capture.mode import Tap, bytes_of, outputs_in, transforms, writes
from forkpoint.capture.pattern import Columns
from forkpoint.capture.resolver import Resolver
from forkpoint.capture.rules import tensors_in
from forkpoint.capture.sites import NOWHERE, Place
from forkpoint.capture.trace import Op
from forkpoint.runs.returned import fields_of

PENDING_BYTES = {"cpu": 1 << 25, "other": 13 << 28}
"""Values kept alive for a digest in one go, by device; what is always a view is not counted. The more, the fewer launches:
at 4,000 tokens of a model of 7B parameters that is less than 1 GB over what a run without tracing takes."""
MOST_OF_FREE = 0.25
"""How much of the memory that a GPU has left they may take."""
ENTRY_BYTES = 1 << 11
"""What an entry on the tape needs, besides its values."""

_NO_KEYWORDS: dict[str, Any] = {}
_KEYWORDS = object()
_SEQUENCES = frozenset({tuple, list, torch.Size})
_SIMPLE = frozenset(
    {bool, float, complex, str, type(...), torch.device, torch.layout, torch.memory_format, type}
)
"""Kinds of arguments that can key a cache, besides tensors, whole numbers and dtypes."""

_unwatched = torch._C.DisableTorchFunction
"""What the tape does with tensors is no op of the model, and no mode may see it."""
_other_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many modes are active."""
_calls = itertools.count()
"""Numbers for all calls that are ever recorded."""


class Tape(Ledger):
    """What passes by is put on it in passing, and read later.

    Args:
        recorder: whose tape it is; held weakly, so that both go when the run is over.
        batch: takes the digests.
        digests: False to follow the labels only.
        passive: whether it only looks on: nobody wants copies of values, nor to change them, but for those of `eager`
            functions and of modules that are looked into.
        eager: by their flags, functions that are recorded at once.

    Attributes:
        deferred: whether entries may wait to be read.
        last: the last output of the last function.
        n_bytes: of the values that are kept alive, see `mode.PythonReel`.
        room: how many there may be.
    """

    def __init__(
        self, recorder: Resolver, batch: Batch, digests: bool, passive: bool, eager: int = 0
    ) -> None:
        super().__init__(recorder, batch, digests)
        self.passive = passive
        self.deferred, self.eager = passive, eager
        self.last = NOTHING
        self.entry_bytes = ENTRY_BYTES
        self.room: int = PENDING_BYTES["cpu"]
        self.visit_of: int = next(_calls)
        self.answers: dict[Any, Answer] = {}
        self.history: History | None = None

    def begin(self, call: int) -> None:
        """A forward call of the model begins."""
        self.call = call
        self.visit_of = next(_calls)

    def watch(self, functions: bool) -> None:
        """From here on the call is watched.

        Args:
            functions: whether single functions are seen.
        """
        self.deferred = self.passive and functions and not _other_modes()
        if not self.deferred:
            self.history = None

    # ------------------------------------------------------------------ entries

    def call_at_once(
        self,
        tap: Tap,
        function: Function,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make a call that can't wait to be read: it writes, or somebody wants to keep or to change what passes by."""
        if function.inner is not None:
            with tap:
                return function.inner(*args, **kwargs)
        if self.deferred and transforms() is not None:
            return function.func(
                *args, **kwargs
            )  # nothing of it is recorded, and no digest can be taken here
        with _unwatched():
            self.read()
            if self.pending_bytes > self.room:
                self.make_room()
        if self.history is not None:
            self.history.broken = True
        return self.resolver.watched(function, place, args, kwargs)

    def catch_up(self) -> None:
        """Read and digest all that there is, before a tensor becomes another."""
        if transforms() is not None:
            return  # where no digest can be taken
        with _unwatched():
            self.read()
            self.flush()

    def outputs_of(self, result: Any) -> tuple[Tensor, ...]:
        """The tensors in what a function returned, if it is not simply one."""
        if isinstance(result, Tensor):
            outputs: tuple[Tensor, ...] = (result,)
        else:
            outputs = tuple(tensors_in((result,)))
        if outputs and self.deferred:
            self.last = outputs[-1]
        return outputs

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at_once: bool) -> None:
        """A module is called.

        Args:
            module: the module.
            args, kwargs: what goes in.
            at_once: whether that can't wait to be read, as functions follow that are not seen.
        """
        if transforms() is not None:
            args, kwargs = (), _NO_KEYWORDS
        if self.n_bytes > self.room:
            self.make_room()
        at_once = at_once or not self.deferred
        if at_once:
            with _unwatched():
                self.read()
        self.add_entry(entering(type(module)), NOWHERE, args, kwargs or None, module)
        if at_once:
            with _unwatched():
                self.read()

    def leave(self, result: Any, failed: bool, at_once: bool) -> None:
        """A module returns."""
        outputs = () if failed or transforms() is not None else self.results_of(result)
        at_once = (at_once or not self.deferred) and not failed
        if at_once:
            with _unwatched():
                self.read()
        self.add_entry(LEAVING, NOWHERE, outputs, None, None)
        if at_once:
            with _unwatched():
                self.read()

    @staticmethod
    def results_of(result: Any) -> tuple[Tensor, ...]:
        """The tensors in what a module returned."""
        if type(result) is Tensor:
            return (result,)
        if is_dataclass(result) and not isinstance(result, (type, dict)):
            held = fields_of(result) or {}
            return tuple(tensors_in([held.get(field.name) for field in fields(result)], 2))
        return tuple(tensors_in(result, 2))

    # ------------------------------------------------------------------ reading

    def make_room(self) -> None:
        """Let go of values where too many are kept alive."""
        if transforms() is not None:
            return  # where no digest can be taken
        if self.room == PENDING_BYTES["cpu"]:
            self.room = _room_on(self.pending[-1].device if self.pending else self.last.device)
        if self.n_bytes > self.room:
            with _unwatched():
                self.read(whole=False)
                self.flush()

    def read(self, whole: bool = True) -> None:
        """Put what is on the tape on the trace.

        Args:
            whole: False to leave some of it for the next time, if more is to come that belongs to it.
        """
        if self.fresh:
            self.settle()
        if not self.whats:
            self.resolver.deliver()
            return
        versions = [*self.befores[1:], version_of(self.last)]
        columns = Columns(self.whats, self.places, self.args, self.kwargs, self.made, versions)
        history, position = self.history, 0
        while position < len(self.whats):
            taken = 0 if history is None else history.follow(self, columns, position, whole)
            if taken < 0:
                break
            if not taken:
                self.step(columns, position)
            position += taken or 1
        self.forget(position, columns.functions)
        waiting = sum(
            self.entry_bytes + (0 if what.may_view is True else bytes_of(made))
            for what, made in zip(self.whats, self.made, strict=True)
            if isinstance(what, Function)
        )
        self.n_bytes = self.pending_bytes + waiting
        self.last_read = (NOTHING, None)
        if self.deferred:  # whatever was read was over
            self.fresh = False
        self.resolver.deliver()

    def forget(self, entries: int | None = None, functions: int | None = None) -> None:
        """Let go of the first entries, or of all."""
        for column in (self.whats, self.places, self.args, self.kwargs, self.made):
            del column[:entries]
        del self.befores[:functions]

    def step(self, columns: Columns, position: int) -> None:
        """Put one entry on the trace, and what came of it into the history."""
        entry = columns.entry(position)
        history = self.history
        before = None if history is None else history.sketch(self, entry)
        first = len(self.rows)
        self.queued.clear()
        self.lasting = True
        what, place, args, kwargs, made = entry
        if isinstance(what, Function):
            version = columns.versions[columns.functions]
            columns.functions += 1
            self.record(what, place, args, kwargs or _NO_KEYWORDS, outputs_in(made), version)
        elif isinstance(what, Entering):
            self.entered(made, args, kwargs or _NO_KEYWORDS)
        else:
            self.left(args)
        if history is not None:
            history.add(self, entry, before, first)

    def record(
        self,
        function: Function,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
        version: int | None = None,
    ) -> tuple[Op, int, tuple[Tensor, ...], list[Label | None]]:
        """Record a finished call.

        Args:
            version: how often the last output had been written to when the next function was called, if one was.

        Returns:
            The op, how often it had run in this call of the model, and its outputs with their labels.
        """
        self.last_read = outputs[-1], version
        visits = self.visits_of(function, place, len(outputs))
        answer = self.answer(visits, function, args, kwargs, outputs)
        self.last_outputs = answer.last
        nth = visits.nth
        visits.nth = nth + 1
        if writes(function, kwargs):
            labels = self.resolver.wrote(function, args, kwargs, outputs, visits, answer)
        else:
            labels = answer.labels
            # before an output that is an argument, as dropout's, has a new event
            sources = [] if self.passive else self.resolver.sources(args, kwargs)
            for index, output in enumerate(outputs):
                view = function.may_view
                if view is None:
                    view = is_view(output, args, kwargs)
                treatment = answer.viewed[index] if view else answer.fresh[index]
                if treatment is None or not _fits(treatment.mark, output):
                    treatment = self.resolver.treat(function, answer, index, output, view=view)
                if treatment.open_cells and treatment.digested:
                    treatment = self.bounded(treatment)
                row = self.put(
                    visits.ops[index], treatment, output, version if output is outputs[-1] else None
                )
                self.known[id(output)] = (ref(output), treatment.mark, row, -1)
                if not self.passive:
                    self.resolver.saw(row, output, labels[index], sources)
        return visits.ops[0], nth, outputs, labels

    def visits_of(self, function: Function, place: Place, n_outputs: int) -> Visits:
        """The visits of an op of the module on top of the stack; those of this call begin at 0."""
        return self.counted(self.stack[-1].visits_of(function, place, n_outputs))

    def counted(self, visits: Visits) -> Visits:
        """The same, with those of this call counted from 0."""
        if visits.call != self.visit_of:
            visits.call, visits.nth = self.visit_of, 0
        return visits

    def answer(
        self,
        visits: Visits,
        function: Function,
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
            and visits.key[0] is function
            and len(found.labels) == len(outputs)
            and self.same_marks(args, visits.key)
        ):
            self.lasting = True
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
            answer = self.resolver.ask(function, args, kwargs, outputs, key)
            self.lasting = key is not None and self.answers.get(key) is answer
            return answer
        assert key is not None
        self.lasting = True
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
                marks.append(self.resolver.mark_of(value))
            elif kind in _SIMPLE:
                marks.append((kind, value))  # True is not 1 here
            else:
                raise TypeError(f"an argument of type {kind.__name__}")

    def end(self) -> None:
        """The run is over: read what is left, and let go of all values."""
        self.read()
        self.flush()
        self.last = NOTHING
        self.last_read = (NOTHING, None)

    # ------------------------------------------------------------------ modules

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record what goes into a module."""
        frame = self.frames.get(id(module))
        self.lasting = frame is not None and bool(frame.path)
        if frame is None:
            frame = self.resolver.stranger(module)
        self.stack.append(frame)
        self.arguments.append((args, kwargs))
        if not frame.path:
            return
        names = frame.names
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                self.pass_in(frame, names[position] if position < len(names) else str(position), value)
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                self.pass_in(frame, name, value)

    def pass_in(self, frame: Frame, name: str, value: Tensor) -> None:
        """Record a value that goes into a module."""
        known = self.known.get(id(value))
        if self.passive and known is not None and known[0]() is value and self.holds(known):
            self.alias(frame, name, INPUT, known)
        else:
            self.resolver.came_in(frame, name, value)

    def left(self, outputs: tuple[Tensor, ...]) -> None:
        """Record what comes out of a module."""
        frame = self.stack.pop()
        for index, value in enumerate(outputs):
            known = self.known.get(id(value))
            if (
                self.passive
                and known is not None
                and known[0]() is value
                and self.holds(known)
                and self.rows[known[2]][2].status != "view"
            ):
                self.alias(frame, "output", index, known)
            else:
                self.resolver.came_out(frame, index, value)
        self.arguments.pop()

    def alias(self, frame: Frame, name: str, output: int, known: Known) -> Visits:
        """Record that a value which is known goes into a module, or comes out."""
        mark = known[1]
        form = mark.passing
        if form is None:
            form = mark.passing = self.resolver.passing(mark)
        visits = self.visit(frame, name, output)
        self.rows.append((visits.ops[0], self.call, form, len(self.rows) - known[2], 0))
        return visits

    def visit(self, frame: Frame, name: str, output: int) -> Visits:
        """The visits of a module's input or output, this one counted."""
        visits = self.counted(frame.visits_in(name) if output == INPUT else frame.visits_out(output))
        visits.nth += 1
        return visits


# ---------------------------------------------------------------------- helpers


def _room_on(device: torch.device) -> int:
    """How many bytes of values may be kept alive on a device."""
    room = PENDING_BYTES.get(device.type, PENDING_BYTES["other"])
    if device.type != "cuda":
        return room
    return max(min(room, int(MOST_OF_FREE * _left_on(device))), PENDING_BYTES["cpu"])


def _left_on(device: torch.device) -> int:
    """How many bytes a GPU has left. It takes as long to ask as a layer to run, so it is asked once a second at most."""
    now = monotonic()
    asked, left = _left.get(device, (-math.inf, 0))
    if now - asked > _LASTS:
        free, _ = torch.cuda.mem_get_info(device)
        left = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        _left[device] = now, left
    return left


_LASTS = 1.0
"""Seconds for which what a GPU had left is taken to be what it has."""
_left: dict[torch.device, tuple[float, int]] = {}
"""When each was asked, and what it had."""


def _fits(mark: Mark, output: Tensor) -> bool:
    return output.shape == mark.size and output.dtype is mark.dtype and output.get_device() == mark.device
