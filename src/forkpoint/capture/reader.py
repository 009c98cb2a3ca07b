"""The reader: drains the tape into the ledger, entry by entry or a passage at once.

A stretch of entries whose like was read before is taken over as a whole (`passages`); of all others each goes its own
way, where the answers to every question that comes again are kept: the place of a call gives its op (`Visits`), the marks
of what goes into it give what comes out (`Answer`), label, shape and stride of a value how it is digested (`Treatment`).
Whatever comes for the first time is worked out by the resolver.

What an entry does to the ledger, field by field:

| field | meaning |
| --- | --- |
| `rows` | the trace's rows; one is added for each output |
| `known` | by the id of a tensor: a weak reference, its mark, the row of its value, and where the history has that |
| `queued` | rows of this entry whose values wait for their digests, for the history |
| `lasting` | whether what was worked out is the same for every call with such marks, so that the history may have it |
| `fresh` | whether the last value may still change: what is written to it at once belongs to it |
| `deferred` | whether entries may wait: not where somebody wants copies of values or changes them |

The tape itself is five lists with one element an entry, which the tap fills: `whats` (a function, or that a module is entered
or left), `places` (the call stack), `args`, `kwargs` and `made` (what came out). `befores` has an element for each function
alone: how often the output before it had been written to when it was called. Shifted by one, that is how often its own output
had been written to when the next was called (`versions`), so that a later write is noticed.

What it calls of those that it is made of: `put` adds a row and queues its value, `bounded` takes dimensions that are only
suspected to follow the tokens out of a treatment once there are too many, `settle` says that the last value is done
(`ledger`); `counted` has an op's visits begin at 0 in each call of the model, `entered` and `left` add rows of a module's inputs
and outputs (`boundaries`); `deliver` hands over whatever digests are there (`listener`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from forkpoint.capture.boundaries import Boundaries
from forkpoint.capture.digest.batch import Batch
from forkpoint.capture.functions import Function, is_view
from forkpoint.capture.history import History
from forkpoint.capture.labels import Label
from forkpoint.capture.ledger import NOTHING
from forkpoint.capture.listener import Listener
from forkpoint.capture.marks import Answer, Entering, Mark, Visits, version_of
from forkpoint.capture.mode import bytes_of, outputs_in, writes
from forkpoint.capture.pattern import Columns
from forkpoint.capture.resolver import Resolver
from forkpoint.capture.sites import CallStack
from forkpoint.capture.trace import Op

NO_KEYWORDS: dict[str, Any] = {}
_KEYWORDS = object()
_SEQUENCES = frozenset({tuple, list, torch.Size})
_SIMPLE = frozenset(
    {bool, float, complex, str, type(...), torch.device, torch.layout, torch.memory_format, type}
)
"""Kinds of arguments that can key a cache, besides tensors, whole numbers and dtypes."""
_calls = itertools.count()
"""Numbers for all calls that are ever recorded."""


class Reader(Boundaries):
    """Reads what stands on the tape.

    Args:
        listener, resolver, batch, digests: as for a ledger.
        passive: whether the run is only looked on: nobody wants copies of values, nor to change them.

    Attributes:
        history: what was read before; None where each entry has to go its own way.
    """

    def __init__(
        self, listener: Listener, resolver: Resolver, batch: Batch, digests: bool, passive: bool
    ) -> None:
        super().__init__(listener, resolver, batch, digests, passive)
        self.deferred = passive
        self.history: History | None = None
        self.visit_of = next(_calls)

    def begin(self, call: int) -> None:
        """A forward call of the model begins."""
        self.call = call
        self.visit_of = next(_calls)

    def read(self, whole: bool = True) -> None:
        """Put what is on the tape on the trace.

        Args:
            whole: False to leave some of it for the next time, if more is to come that belongs to it.
        """
        if self.fresh:
            self.settle()
        if not self.whats:
            self.listener.deliver()
            return
        versions = [*self.befores[1:], version_of(self.last)]
        columns = Columns(self.whats, self.places, self.args, self.kwargs, self.made, versions)
        history, position = self.history, 0
        while position < len(self.whats):
            taken = 0 if history is None else history.follow(self, columns, position, whole)
            if taken < 0:  # the entries so far may be the beginning of a passage: the rest of it is to come
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
        self.listener.deliver()

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
            self.record(what, place, args, kwargs or NO_KEYWORDS, outputs_in(made), version)
        elif isinstance(what, Entering):
            self.entered(made, args, kwargs or NO_KEYWORDS)
        else:
            self.left(args)
        if history is not None:
            history.add(self, entry, before, first)

    def record(
        self,
        function: Function,
        place: CallStack,
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
        self.resolver.last_outputs = answer.last
        nth = visits.nth
        visits.nth = nth + 1
        if writes(function, kwargs):
            labels = self.listener.wrote(function, args, kwargs, outputs, visits, answer)
        else:
            labels = answer.labels
            # before an output that is an argument, as dropout's, has a new event
            sources = [] if self.passive else self.listener.sources(args, kwargs)
            for index, output in enumerate(outputs):
                view = function.may_view
                if view is None:
                    view = is_view(output, args, kwargs)
                treatment = answer.viewed[index] if view else answer.own[index]
                if treatment is None or not _fits(treatment.mark, output):
                    treatment = self.resolver.treat(function, answer, index, output, view=view)
                if treatment.open_cells and treatment.digested:
                    treatment = self.bounded(treatment)
                row = self.put(
                    visits.ops[index], treatment, output, version if output is outputs[-1] else None
                )
                self.known[id(output)] = (ref(output), treatment.mark, row, -1)
                if not self.passive:
                    self.listener.saw(row, output, labels[index], sources)
        return visits.ops[0], nth, outputs, labels

    def visits_of(self, function: Function, place: CallStack, n_outputs: int) -> Visits:
        """The visits of an op of the module on top of the stack; those of this call begin at 0."""
        return self.counted(self.stack[-1].visits_of(function, place, n_outputs))

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
            and visits.answers is self.resolver.answers
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
            found = self.resolver.answers.get(key)
        except TypeError:  # an argument that can't be hashed
            key = None
        if found is None or len(found.labels) != len(outputs):
            answer = self.resolver.ask(function, args, kwargs, outputs, key)
            self.lasting = key is not None and self.resolver.answers.get(key) is answer
            return answer
        assert key is not None
        self.lasting = True
        visits.answers, visits.key, visits.answer = self.resolver.answers, key, found
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


def _fits(mark: Mark, output: Tensor) -> bool:
    return output.shape == mark.size and output.dtype is mark.dtype and output.get_device() == mark.device
